"""A forest plot beside a table: the intervals of its rows on one scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.reporting.numbers import number
from evaluation.reporting.tables.table import Places

EVERYWHERE = (-math.inf, math.inf)

Span = tuple[float | None, float | None, float | None]
"""low, value, high"""


@dataclass(frozen=True)
class Forest:
    """Places of each row, None where there is no interval, and the ends of the scale in words."""

    places: tuple[Places | None, ...]
    ends: tuple[str, str]


def forest(
    spans: Sequence[Span],
    *,
    line: float | None,
    limits: tuple[float, float] = EVERYWHERE,
) -> Forest:
    """Put intervals on one scale from 0 to 100.

    Args:
        spans: One per row.
        line: What the vertical line stands for (chance, no difference); None draws none.
        limits: The scale ends here at the latest: a floor far below chance (an R2 of -20) must not
            press all others into one point.
    """
    whole = [(low, high) for low, _, high in spans if low is not None and high is not None]
    if not whole:
        return Forest((None,) * len(spans), ("", ""))
    lines = [] if line is None else [line]
    start = max(min([*lines, *(low for low, _ in whole)]), limits[0])
    stop = min(max([*lines, *(high for _, high in whole)]), limits[1])
    width = (stop - start) or 1.0

    def place(value: float) -> float:
        return round(100 * min(max((value - start) / width, 0.0), 1.0), 1)

    at_line = None if line is None else place(line)
    places = tuple(
        Places(place(low), place(value), place(high), at_line)
        if low is not None and value is not None and high is not None
        else None
        for low, value, high in spans
    )
    return Forest(places, (number(start, stop), number(stop, start)))
