"""A chart as a few lines of SVG in the page's own colours and font: axes, lines, bands, dots.

No drawing library: a report holds dozens of charts and is made in seconds, and the same numbers
give the same bytes on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NUM_COLOURS = 10
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def colours(count: int) -> list[str]:
    """The page's colour of each of ``count`` lines, dark or light as the page is."""
    return [f"var(--series-{at % NUM_COLOURS + 1})" for at in range(count)]


@dataclass(frozen=True)
class Axis:
    """A scale: its ends, the ticks with their text, its title; ``is_log`` spaces by ratio."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies between the ends, from 0 to 1."""
        ends = [self.low, value, self.high]
        low, at, high = [math.log2(one) for one in ends] if self.is_log else ends
        return (at - low) / ((high - low) or 1.0)


def axis(values: Sequence[float], *, title: str, most_ticks: int = 6) -> Axis:
    """A scale over ``values`` that ends at round ticks."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (most_ticks - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * one for one in _STEPS if size * one >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (step / size == 2.5)
    ticks = tuple((at * step, f"{at * step:.{digits}f}") for at in range(first, last + 1))
    return Axis(first * step, last * step, ticks, title)


class Chart:
    """One pair of axes inside a drawing, in units of the drawing's view box."""

    def __init__(
        self, x: Axis, y: Axis, *, left: float, top: float, width: float, height: float
    ) -> None:
        self.x, self.y = x, y
        self.left, self.top, self.width, self.height = left, top, width, height
        self.parts: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Of a point, in units of the drawing."""
        across = self.left + self.width * self.x.share(x)
        return across, self.top + self.height * (1.0 - self.y.share(y))

    def frame(self, *, title: str = "", with_y: bool = True) -> None:
        """Grid, ticks, and titles of the axes."""
        right, bottom = self.left + self.width, self.top + self.height
        for value, text in self.y.ticks:
            _, at = self.place(self.x.low, value)
            self.parts.append(_line("grid", self.left, at, right, at))
            if with_y:
                self.parts.append(_text(text, self.left - 7, at + 4, anchor="end"))
        self.parts.append(_line("edge", self.left, bottom, right, bottom))
        for value, text in self.x.ticks:
            at, _ = self.place(value, self.y.low)
            self.parts.append(_line("edge", at, bottom, at, bottom + 4))
            self.parts.append(_text(text, at, bottom + 18))
        self.parts.append(_text(self.x.title, self.left + self.width / 2, bottom + 36))
        if with_y:
            self.parts.append(_upright(self.y.title, 12, self.top + self.height / 2))
        if title:
            self.parts.append(_text(title, self.left, self.top - 9, anchor="start"))

    def level(self, y: float) -> None:
        """A horizontal line, such as chance, where it lies within the scale."""
        if self.y.low <= y <= self.y.high:
            start, end = self.place(self.x.low, y), self.place(self.x.high, y)
            self.parts.append(_line("level", *start, *end))

    def rule(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A straight line between two points, such as the diagonal."""
        self.parts.append(_line("level", *self.place(*start), *self.place(*end)))

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        *,
        colour: str,
        is_dashed: bool = False,
        has_dots: bool = False,
        kind: str = "line",
    ) -> None:
        """A curve; a dashed one has hollow dots, so that it stands apart in grey, too."""
        points = [self.place(*point) for point in zip(x, y, strict=True)]
        name = f"{kind} dashed" if is_dashed else kind
        self.parts.append(
            f'<polyline class="{name}" style="--colour: {colour}" points="{_points(points)}"/>'
        )
        for across, down in points if has_dots else ():
            self.parts.append(
                f'<circle class="dot{" dashed" if is_dashed else ""}" style="--colour: {colour}" '
                f'cx="{across:.1f}" cy="{down:.1f}" r="3.2"/>'
            )

    def band(
        self,
        x: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        *,
        colour: str,
        is_faint: bool,
    ) -> None:
        """The area between two curves."""
        upper = [self.place(*point) for point in zip(x, high, strict=True)]
        lower = [self.place(*point) for point in zip(x, low, strict=True)]
        self.parts.append(
            f'<polygon class="band{" faint" if is_faint else ""}" style="--colour: {colour}" '
            f'points="{_points([*upper, *reversed(lower)])}"/>'
        )


def svg(charts: Sequence[Chart], *, width: float, height: float) -> str:
    """The drawing, without a size of its own: it takes the width that it is given."""
    inside = "\n".join(part for chart in charts for part in chart.parts)
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in points)


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _upright(text: str, x: float, y: float) -> str:
    turned = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {turned}>{escape(text)}</text>'
