"""Few-shot curves from the score of every draw: pure functions, no file is read here.

Models are compared draw by draw: a draw counts when every model was scored on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class FewShotPoint:
    """A model at ``shots`` subjects per class: mean and 5-95% band over draws, and the paired
    difference to the reference on the same draws (both None for the reference itself)."""

    shots: int
    draws: int
    mean: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class FewShotCurve:
    """The points of one model, one per number of shots of the task."""

    model: str
    kind: str
    is_reference: bool
    points: tuple[FewShotPoint, ...]


def few_shot_curves(
    scores: "pandas.DataFrame", *, kinds: Mapping[str, str], missing: Mapping[int, str]
) -> tuple[FewShotCurve, ...]:
    """Mean and 5-95% band over draws of every model, on the draws that all of them have.

    The reference of the paired differences is the strongest floor: the highest mean over all
    numbers of shots. Without floors there is none.

    Args:
        scores: One row per model, shots and draw, as ``evaluation.storing.store`` keeps them.
        kinds: "backbone" or "floor" of each model, in the order of the table.
        missing: Shots that could not be drawn, with the reason.
    """
    grids = {
        int(shots): part.pivot(index="draw", columns="model", values="score")
        .dropna(axis=1, how="all")
        .dropna()
        for shots, part in scores.groupby("shots", sort=True)
    }
    models = [model for model in kinds if (scores["model"] == model).any()]
    reference = _strongest_floor(grids, [model for model in models if kinds[model] == "floor"])
    ordered = sorted(models, key=lambda model: kinds[model] == "floor")
    return tuple(
        FewShotCurve(
            model,
            kinds[model],
            model == reference,
            (
                *(_point(shots, grid, model, reference) for shots, grid in grids.items()),
                *(_no_point(shots, reason) for shots, reason in sorted(missing.items())),
            ),
        )
        for model in ordered
    )


def _strongest_floor(grids: Mapping[int, "pandas.DataFrame"], floors: Sequence[str]) -> str | None:
    means = {
        floor: np.mean(
            [grid[floor].mean() for grid in grids.values() if floor in grid and len(grid)]
        )
        for floor in floors
        if any(floor in grid and len(grid) for grid in grids.values())
    }
    return max(means, key=lambda floor: (means[floor], floor)) if means else None


def _point(shots: int, grid: "pandas.DataFrame", model: str, reference: str | None) -> FewShotPoint:
    if model not in grid or not len(grid):
        return _no_point(shots, "no draw of this size that every model was scored on")
    values = grid[model].to_numpy(float)
    band = _mean_and_band(values)
    if reference is None or reference == model or reference not in grid:
        return FewShotPoint(shots, len(values), *band, None, None, None)
    difference = _mean_and_band(values - grid[reference].to_numpy(float))
    return FewShotPoint(shots, len(values), *band, *difference)


def _no_point(shots: int, reason: str) -> FewShotPoint:
    return FewShotPoint(shots, 0, None, None, None, None, None, None, reason)


def _mean_and_band(values: NDArray[np.float64]) -> tuple[float, float, float]:
    low, high = np.percentile(values, [5, 95])
    return float(values.mean()), float(low), float(high)
