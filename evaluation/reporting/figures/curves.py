"""Curves: scores by training size, risk by coverage, training loss by step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting.figures.chart import Axis, Chart, axis, colours, svg

WIDTH, HEIGHT = 488.0, 300.0
CLOSE = 1.12  # training sizes of a smaller ratio would write over each other
_BOX = {"left": 58.0, "top": 12.0, "width": 410.0, "height": 240.0}


class Line(NamedTuple):
    """One model's curve: a score and a band at each ``x``."""

    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    is_dashed: bool


def few_shot_svg(lines: Sequence[Line], *, unit: str, metric: str, chance: float | None) -> str:
    """Mean over draws against training size; the band is the 5th to the 95th percentile.

    The page draws the legend, in the colours of :func:`chart.colours`: text inside a drawing is too
    small on a phone. Floors are dashed with hollow dots.

    Args:
        lines: In the order of the legend.
        unit: "shots" per class or "fraction" of the labels.
        metric: What the axis says.
        chance: Where the line of chance is, or None.
    """
    sizes = sorted({value for line in lines for value in line.x})
    shown = [f"{size:g}" if unit == "shots" else f"{100 * size:g}%" for size in sizes]
    title = "labelled subjects per class" if unit == "shots" else "share of the training labels"
    return _scores_svg(lines, _sizes_axis(sizes, shown, title), metric=metric, chance=chance)


def fraction_svg(lines: Sequence[Line], *, metric: str, chance: float | None) -> str:
    """Score against the number of training subjects, with 95% intervals.

    Args:
        lines: In the order of the legend; from scratch they are dashed with hollow dots.
        metric: What the axis says.
        chance: Where the line of chance is, or None.
    """
    sizes = sorted({value for line in lines for value in line.x})
    shown = [f"{size:g}" for size in sizes]
    axis_of_sizes = _sizes_axis(sizes, shown, "training subjects with labels")
    return _scores_svg(lines, axis_of_sizes, metric=metric, chance=chance)


def _sizes_axis(sizes: Sequence[float], shown: Sequence[str], title: str) -> Axis:
    """Training sizes by their ratios; a tick too close to the last one with a text has none."""
    ticks: list[tuple[float, str]] = []
    last = 0.0
    for size, text in zip(sizes, shown, strict=True):
        is_close = size < CLOSE * last
        ticks.append((size, "" if is_close else text))
        last = last if is_close else size
    return Axis(sizes[0] / 1.15, sizes[-1] * 1.15, tuple(ticks), title, is_log=True)


def _scores_svg(lines: Sequence[Line], x: Axis, *, metric: str, chance: float | None) -> str:
    heights = [value for line in lines for ends in (line.low, line.high) for value in ends]
    y = axis(heights if chance is None else [*heights, chance], title=metric)
    chart = Chart(x, y, **_BOX)
    chart.frame()
    if chance is not None:
        chart.level(chance)
    for line, colour in zip(lines, colours(len(lines)), strict=True):
        chart.band(line.x, line.low, line.high, colour=colour, is_faint=line.is_dashed)
    for line, colour in zip(lines, colours(len(lines)), strict=True):
        chart.line(line.x, line.middle, colour=colour, is_dashed=line.is_dashed, has_dots=True)
    return svg([chart], width=WIDTH, height=HEIGHT)


class Risk(NamedTuple):
    """One model's risk among its most certain subjects."""

    coverage: Sequence[float]
    risk: Sequence[float]
    is_floor: bool


def risk_coverage_svg(lines: Sequence[Risk]) -> str:
    """Risk against the share of subjects that are answered, the most certain first."""
    ticks = tuple((share, f"{100 * share:g}%") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    x = Axis(0.0, 1.0, ticks, "share of subjects answered, the most certain first")
    y = axis([0.0, *(value for line in lines for value in line.risk)], title="error rate")
    chart = Chart(x, y, **_BOX)
    chart.frame()
    for line, colour in zip(lines, colours(len(lines)), strict=True):
        chart.line(line.coverage, line.risk, colour=colour, is_dashed=line.is_floor)
    return svg([chart], width=WIDTH, height=HEIGHT)


def loss_svg(steps: Sequence[float], loss: Sequence[float]) -> str:
    """Training loss by step: every value faintly, and its running median over 5% of the run."""
    (colour,) = colours(1)
    smooth = running_median(loss).tolist()
    x = axis([steps[0], steps[-1]], title="step")
    chart = Chart(x, axis(list(loss), title="loss"), **_BOX)
    chart.frame()
    chart.line(steps, loss, colour=colour, kind="line raw")
    chart.line(steps, smooth, colour=colour)
    return svg([chart], width=WIDTH, height=HEIGHT)


def running_median(values: Sequence[float]) -> NDArray[np.float64]:
    """Median over a centred window of 5% of the values, shorter at both ends."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    return np.array(
        [np.median(array[max(0, at - half) : at + half + 1]) for at in range(len(array))]
    )
