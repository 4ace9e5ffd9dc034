"""Reliability curves: how often a predicted probability came true, before and after scaling."""

from collections.abc import Sequence
from typing import NamedTuple

from evaluation.reporting.figures.chart import Axis, Chart, colours, svg
from evaluation.reporting.results import Bin

MOST_PANELS = 4
_HALVES = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
_MOST_LETTERS = 28
_LEFT, _TOP, _EDGE, _GAP = 58.0, 26.0, 170.0, 22.0


class Panel(NamedTuple):
    """One model's bins."""

    title: str
    before: Sequence[Bin]
    after: Sequence[Bin]


def reliability_svg(panels: Sequence[Panel]) -> str:
    """A panel per model: hollow dots before, full dots after; the diagonal is perfect.

    Args:
        panels: At most ``MOST_PANELS``; the drawing is as wide with one as with four, so that
            letters have one size on the page.
    """
    x = Axis(0.0, 1.0, _HALVES, "predicted probability")
    y = Axis(0.0, 1.0, _HALVES, "observed rate")
    charts = []
    for at, panel in enumerate(panels):
        left = _LEFT + at * (_EDGE + _GAP)
        chart = Chart(x, y, left=left, top=_TOP, width=_EDGE, height=_EDGE)
        chart.frame(title=_fitting(panel.title), with_y=at == 0)
        chart.rule((0.0, 0.0), (1.0, 1.0))
        for bins, colour, is_dashed in zip(
            (panel.before, panel.after), colours(2), (True, False), strict=True
        ):
            scores, rates = [one.mean_score for one in bins], [one.rate for one in bins]
            chart.line(scores, rates, colour=colour, is_dashed=is_dashed, has_dots=True)
        charts.append(chart)
    width = _LEFT + MOST_PANELS * (_EDGE + _GAP)
    return svg(charts, width=width, height=_TOP + _EDGE + 48.0)


def _fitting(title: str) -> str:
    """A title that ends before the next panel; the caption has it in full."""
    if len(title) <= _MOST_LETTERS:
        return title
    return f"{title[: _MOST_LETTERS - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
