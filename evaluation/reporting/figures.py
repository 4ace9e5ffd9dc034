"""Curves as SVG that follows the page's light or dark colours, pictures as PNG; same bytes always.

Matplotlib draws with a few sentinel colours, which become CSS variables of the page. Nothing here
reads a file or knows a store.
"""

import base64
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib draws with -> what the page shows. Text is ink, ticks and frames are line.
_INK, _LINE = "#0a0b01", "#0a0b02"
_SERIES = [f"#0a0b{number:02x}" for number in range(0x10, 0x1A)]
_COLOURS = {_INK: "var(--ink)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}


class Line(NamedTuple):
    """One model's curve: a mean and a band over draws at each ``x``."""

    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    is_floor: bool


def few_shot_svg(lines: Sequence[Line], *, name: str) -> str:
    """Mean over draws against shots per class; the band is the 5th to the 95th percentile.

    The page draws the legend, in the colours of :func:`series_colours`: text inside a drawing is
    too small on a phone. Floors are dashed with hollow dots, so they stand apart in grey, too.

    Args:
        lines: In the order of the legend.
        name: Prefix of the ids inside the drawing; one of its kind on the page.
    """
    with _style():
        figure = _figure(6.0, 3.4)
        axes = figure.subplots()
        axes.axhline(0.5, color=_LINE, linewidth=1.5)
        for line, colour in zip(lines, _cycle(_SERIES, len(lines)), strict=True):
            faint = 0.05 if line.is_floor else 0.14
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=faint, linewidth=0)
            axes.plot(
                line.x,
                line.middle,
                color=colour,
                marker="o",
                markersize=4,
                markerfacecolor="none" if line.is_floor else colour,
                linestyle="--" if line.is_floor else "-",
            )
        axes.set_xscale("log", base=2)
        shots = sorted({value for line in lines for value in line.x})
        axes.set_xticks(shots, [f"{value:g}" for value in shots])
        axes.minorticks_off()
        axes.set_xlabel("labelled subjects per class")
        axes.set_ylabel("AUROC")
        return _svg(figure, name)


def series_colours(count: int) -> list[str]:
    """The CSS colour of each line of :func:`few_shot_svg`, in its order."""
    return [_COLOURS[colour] for colour in _cycle(_SERIES, count)]


def loss_svg(steps: Sequence[float], loss: Sequence[float], *, name: str) -> str:
    """Training loss by step: every value faintly, and its running median over 5% of the run."""
    with _style():
        figure = _figure(4.6, 2.6)
        axes = figure.subplots()
        axes.plot(steps, loss, color=_SERIES[0], alpha=0.3, linewidth=0.8)
        axes.plot(steps, running_median(loss), color=_SERIES[0], linewidth=1.8)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        return _svg(figure, name)


def running_median(values: Sequence[float]) -> np.ndarray:
    """Median over a centred window of 5% of the values, shorter at both ends."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    return np.array(
        [np.median(array[max(0, at - half) : at + half + 1]) for at in range(len(array))]
    )


def picture(array: np.ndarray, *, size: int = 160) -> str:
    """A grey picture as a ``data:`` address.

    Args:
        array: (H, W) in [0, 1]; H from anterior to posterior, W from the subject's right to left.
        size: The longer edge is enlarged by whole pixels to at least this, so that a page shows
            voxels as squares and never as a smear.
    """
    from matplotlib import colormaps, image

    factor = max(1, -(-size // max(array.shape)))
    pixels = np.clip(np.nan_to_num(array), 0.0, 1.0).repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    image.imsave(
        buffer,
        pixels,
        cmap=colormaps["gray"],
        vmin=0.0,
        vmax=1.0,
        format="png",
        metadata={"Software": None},  # type: ignore[dict-item]
        pil_kwargs={"compress_level": 9},
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _style() -> AbstractContextManager[None]:
    """Matplotlib's own defaults, whatever the machine's matplotlibrc says, and our few choices."""
    from matplotlib import style

    ours: dict[str, Any] = {
        "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
        "font.size": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "scanfm",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": _LINE,
        "grid.alpha": 0.6,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    return style.context(["default", ours])


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure", name: str) -> str:
    """The drawing as an ``<svg>`` element to stand in a page; ids are prefixed with ``name``."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    opening, rest = text[text.index("<svg") :].split(">", 1)
    # Without a size of its own the drawing takes the width it is given, on a phone as on a desk.
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    rest = rest.replace("font-family: 'DejaVu Sans'; ", "")  # the page's own font
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    for colour, variable in _COLOURS.items():
        rest = rest.replace(colour, variable)
    return "\n".join(line.rstrip() for line in f"{opening}>{rest}".splitlines())


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]
