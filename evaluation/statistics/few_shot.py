"""Label-efficiency curves from the score of every few-shot draw.

A curve is one model by one protocol. Curves are compared draw by draw: a draw counts when every
one of them was scored on it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]

Curve = tuple[str, str]  # model and protocol

MAIN_PROTOCOL = "linear"
_BAND = (5, 95)  # percentiles over draws
_FEW = "no draw of this size that every model was scored on"


def few_shot_curves(
    scores: "pandas.DataFrame",
    *,
    kinds: Mapping[str, str],
    missing: Sequence[Mapping[str, Any]] = (),
    lower_is_better: bool = False,
) -> dict[str, Any]:
    """Mean, SD and 5-95% over draws of each model at each number of labels, and the area.

    The reference of the paired differences is the strongest floor by the main protocol: the best
    mean over all sizes. Without floors there is none. The area lies under the score against log2 of
    the number of shots (of the fractions where there are no shots), divided by the range of log2,
    so that it reads as a mean score; its band is over draws, each of which has its own area.

    Args:
        scores: One row per model, protocol, x, unit ("shots" or "fraction") and draw, with its
            score.
        kinds: "backbone" or "floor" of each model, in the order of the table.
        missing: Sizes that could not be drawn: x, unit and reason.
        lower_is_better: Of the score.

    Returns:
        The ``few_shot`` entry of a task's statistics.
    """
    grids = _grids(scores)
    scored = set(zip(scores["model"], scores["protocol"], strict=True))
    protocols = sorted({one for _, one in scored}, key=lambda one: (one != MAIN_PROTOCOL, one))
    places = {model: place for place, model in enumerate(kinds)}
    curves = sorted(
        scored,
        key=lambda one: (kinds[one[0]] == "floor", places[one[0]], protocols.index(one[1])),
    )
    floors = [one for one in curves if kinds[one[0]] == "floor" and one[1] == protocols[0]]
    reference = _strongest(grids, floors, sign=-1.0 if lower_is_better else 1.0)
    return {
        "models": [
            {
                "model": curve[0],
                "kind": kinds[curve[0]],
                "protocol": curve[1],
                "points": [
                    *(_point(*key, grid, curve, reference) for key, grid in grids.items()),
                    *(_no_point(gap["x"], gap["unit"], gap["reason"]) for gap in missing),
                ],
                **_area(grids, curve),
            }
            for curve in curves
        ],
        "reference": reference[0] if reference else None,
        "reference_protocol": reference[1] if reference else None,
    }


def area_under_curve(x: Floats, scores: Floats) -> Floats:
    """Trapezoidal area over log2 x, divided by its range: (draws, points) -> (draws,).

    One point alone has no width and gives its score.
    """
    if len(x) == 1:
        return scores[:, 0]
    place = np.log2(x)
    width = np.diff(place) / (place[-1] - place[0])
    area: Floats = ((scores[:, 1:] + scores[:, :-1]) / 2) @ width
    return area


def _grids(scores: "pandas.DataFrame") -> dict[tuple[float, str], "pandas.DataFrame"]:
    """By size and unit, shots first: scores by draw and curve, complete draws only."""
    grids = {
        (float(x), str(unit)): part.pivot(
            index="draw", columns=["model", "protocol"], values="score"
        )
        .dropna(axis=1, how="all")
        .dropna()
        for (x, unit), part in scores.groupby(["x", "unit"], sort=True)
    }
    return dict(sorted(grids.items(), key=lambda item: (item[0][1] != "shots", item[0][0])))


def _strongest(
    grids: Mapping[tuple[float, str], "pandas.DataFrame"], floors: Sequence[Curve], *, sign: float
) -> Curve | None:
    means = {
        floor: sign * float(np.mean([grid[floor].mean() for grid in mine]))
        for floor in floors
        if (mine := [grid for grid in grids.values() if floor in grid and len(grid)])
    }
    return max(means, key=lambda floor: (means[floor], floor)) if means else None


def _point(
    x: float, unit: str, grid: "pandas.DataFrame", curve: Curve, reference: Curve | None
) -> dict[str, Any]:
    if curve not in grid or not len(grid):
        return _no_point(x, unit, _FEW)
    # All labels are one training set, however often it is drawn.
    rows = grid.iloc[:1] if (x, unit) == (1.0, "fraction") else grid
    values = rows[curve].to_numpy(float)
    point = _no_point(x, unit, None) | {
        "draws": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        **_band(values, "low", "high"),
    }
    if reference is None or reference == curve or reference not in grid:
        return point
    apart = values - rows[reference].to_numpy(float)
    return point | {
        "difference": float(apart.mean()),
        **_band(apart, "difference_low", "difference_high"),
    }


def _no_point(x: float, unit: str, reason: str | None) -> dict[str, Any]:
    numbers = ("mean", "sd", "low", "high", "difference", "difference_low", "difference_high")
    return {"x": x, "unit": unit, "draws": 0, **dict.fromkeys(numbers), "reason": reason}


def _area(grids: Mapping[tuple[float, str], "pandas.DataFrame"], curve: Curve) -> dict[str, Any]:
    """Over shots, or over fractions where there are no shots; on the draws of all sizes."""
    nothing: dict[str, Any] = dict.fromkeys(("area", "area_low", "area_high"))
    unit = next(iter(grids))[1] if grids else ""
    mine = {x: grid[curve] for (x, each), grid in grids.items() if each == unit and curve in grid}
    if not mine:
        return nothing
    import pandas

    table = pandas.DataFrame(mine).dropna()
    if not len(table):
        return nothing
    area = area_under_curve(table.columns.to_numpy(float), table.to_numpy(float))
    return {"area": float(area.mean()), **_band(area, "area_low", "area_high")}


def _band(values: Floats, low: str, high: str) -> dict[str, float | None]:
    if len(values) < 2:
        return {low: None, high: None}
    ends = np.percentile(values, _BAND)
    return {low: float(ends[0]), high: float(ends[1])}
