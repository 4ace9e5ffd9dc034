"""Few-shot curves, on draws small enough to work out by hand."""

import pandas as pd
import pytest

from evaluation.reporting.few_shot import few_shot_curves

KINDS = {"floor_a": "floor", "mae": "backbone", "floor_b": "floor"}


def _draws(scores: dict[str, list[float]], shots: int) -> list[tuple[str, int, int, float]]:
    return [
        (model, shots, draw, score)
        for model, values in scores.items()
        for draw, score in enumerate(values)
    ]


def test_few_shot_pairs_draws_and_compares_with_the_strongest_floor() -> None:
    rows = _draws({"mae": [0.7, 0.9], "floor_a": [0.6, 0.7], "floor_b": [0.5, 0.4]}, shots=1)
    rows += _draws({"mae": [0.8, 0.8], "floor_a": [0.5, 0.5], "floor_b": [0.6, 0.55]}, shots=2)
    table = pd.DataFrame(rows, columns=["model", "shots", "draw", "score"])
    curves = few_shot_curves(table, kinds=KINDS, missing={4: "too few"})
    assert [(curve.model, curve.is_reference) for curve in curves] == [
        ("mae", False),
        ("floor_a", True),
        ("floor_b", False),
    ]
    first, _, last = curves[0].points
    assert (first.shots, first.draws) == (1, 2)
    assert first.mean == pytest.approx(0.8)
    assert (first.low, first.high) == (pytest.approx(0.71), pytest.approx(0.89))
    assert first.difference == pytest.approx(0.15)
    assert first.difference_low == pytest.approx(0.105)
    assert first.difference_high == pytest.approx(0.195)
    assert (last.shots, last.mean, last.reason) == (4, None, "too few")
    assert all(point.difference is None for point in curves[1].points)


def test_few_shot_leaves_out_a_draw_that_one_model_lacks() -> None:
    rows = _draws({"mae": [0.7, 0.9, 0.2], "floor_a": [0.6, 0.7]}, shots=1)
    table = pd.DataFrame(rows, columns=["model", "shots", "draw", "score"])
    curves = few_shot_curves(table, kinds=KINDS, missing={})
    assert [curve.points[0].draws for curve in curves] == [2, 2]
    assert curves[0].points[0].mean == pytest.approx(0.8)


def test_few_shot_without_floors_has_no_reference() -> None:
    table = pd.DataFrame(
        _draws({"mae": [0.7, 0.9]}, shots=1), columns=["model", "shots", "draw", "score"]
    )
    (curve,) = few_shot_curves(table, kinds=KINDS, missing={})
    assert not curve.is_reference
    assert curve.points[0].difference is None
