"""A run's loss curve, short enough for its provenance and its card."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

POINTS = 16
_BARS = "▁▂▃▄▅▆▇█"

Curve = Sequence[Sequence[float]]
"""[step, mean loss of the steps since the point before]"""


def loss_curve(lines: Iterable[Mapping[str, Any]], *, points: int = POINTS) -> list[list[float]]:
    """Means over equal spans of steps.

    Args:
        lines: Of ``log.jsonl``; those without a loss, such as incidents, are left out.
        points: At most so many.

    Returns:
        Last step and mean loss of each span that has any.
    """
    losses = {
        int(line["step"]): float(line["loss"])
        for line in lines
        if isinstance(line.get("loss"), int | float) and math.isfinite(line["loss"])
    }
    last = max(losses, default=0)
    spans: dict[int, list[int]] = {}
    for step in sorted(losses):
        spans.setdefault((step * points - 1) // last if last else 0, []).append(step)
    return [
        [span[-1], float(f"{sum(losses[step] for step in span) / len(span):.5g}")]
        for span in spans.values()
    ]


def in_bars(curve: Curve) -> str:
    """The losses as a line of bars, the largest the highest."""
    losses = [loss for _, loss in curve]
    low, high = min(losses), max(losses)
    span = high - low or 1.0
    return "".join(_BARS[round((loss - low) / span * (len(_BARS) - 1))] for loss in losses)
