"""Scores of every kind by hand, and as the metrics take them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.finetuning.links import (
    hazards,
    level_probabilities,
    mean_survival_days,
    scores_of,
    survival_at,
    survival_at_ends,
)
from foundation.finetuning.target import Target
from foundation.metrics.by_name import PRIMARY, checked

ENDS = (10.0, 30.0)
TARGETS = {
    "binary": Target(task="t", kind="binary", outputs=("1",)),
    "multiclass": Target(task="t", kind="multiclass", outputs=("a", "b", "c")),
    "multilabel": Target(task="t", kind="multilabel", outputs=("a", "b")),
    "ordinal": Target(task="t", kind="ordinal", outputs=("0", "1", "2", "3")),
    "regression": Target(task="t", kind="regression", outputs=("y",), centre=60.0, scale=5.0),
    "survival": Target(task="t", kind="survival", outputs=("risk",), ends_days=ENDS),
}
LABELS = {
    "binary": [0, 1, 1, 0],
    "multiclass": [0, 1, 2, 1],
    "multilabel": [[0, 1], [1, 0], [math.nan, 1], [1, 0]],
    "ordinal": [0, 3, 2, 1],
    "regression": [50.0, 61.0, 70.0, 66.0],
    "survival": [[5, 1], [12, 0], [30, 1], [40, 0]],
}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def one(kind: str, *values: float) -> list[float]:
    return scores_of(torch.tensor([values]), TARGETS[kind])[0].tolist()


def test_probabilities_of_classes_and_labels() -> None:
    assert one("binary", 0.7) == pytest.approx([sigmoid(0.7)])
    assert one("multilabel", 0.7, -2.0) == pytest.approx([sigmoid(0.7), sigmoid(-2.0)])
    total = math.exp(0.5) + math.exp(-1) + math.exp(2)
    want = [math.exp(value) / total for value in (0.5, -1, 2)]
    assert one("multiclass", 0.5, -1.0, 2.0) == pytest.approx(want)


def test_a_quantity_is_in_its_own_unit() -> None:
    assert one("regression", -0.4) == pytest.approx([58.0])


def test_levels_are_differences_of_what_is_reached() -> None:
    low, middle, high = sigmoid(3.0), sigmoid(1.0), sigmoid(-1.0)
    want = [1 - low, low - middle, middle - high, high]
    assert one("ordinal", 3.0, 1.0, -1.0) == pytest.approx(want)


def test_no_level_is_reached_more_often_than_a_lower_one() -> None:
    first, last = sigmoid(1.0), sigmoid(-1.0)
    assert one("ordinal", 1.0, 2.0, -1.0) == pytest.approx([1 - first, 0.0, first - last, last])
    probabilities = level_probabilities(torch.randn(50, 6, dtype=torch.double) * 4)
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(50, dtype=torch.double))


def test_survival_multiplies_and_its_area_is_the_risk() -> None:
    logits = torch.tensor([[logit(0.5), logit(0.25)]])
    torch.testing.assert_close(hazards(logits), torch.tensor([[0.5, 0.25]]))
    survival = survival_at_ends(logits)
    torch.testing.assert_close(survival, torch.tensor([[0.5, 0.375]]))
    # Trapezoids: 10 days at 0.75 on average, 20 days at 0.4375.
    assert mean_survival_days(survival, ends_days=ENDS).tolist() == pytest.approx([16.25])
    assert scores_of(logits, TARGETS["survival"]).tolist() == [pytest.approx([-16.25])]


def test_survival_between_ends_is_a_straight_line() -> None:
    survival = torch.tensor([[0.5, 0.375], [1.0, 0.0]])
    days = torch.tensor([0.0, 5.0, 10.0, 20.0, 30.0, 99.0])
    want = [[1.0, 0.75, 0.5, 0.4375, 0.375, 0.375], [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]]
    torch.testing.assert_close(survival_at(survival, days=days, ends_days=ENDS), torch.tensor(want))


def test_expected_days_are_the_integral_of_the_curve() -> None:
    ends = (3.0, 4.5, 40.0, 365.1)
    survival = survival_at_ends(torch.randn(5, 4, dtype=torch.double))
    days = torch.linspace(0, ends[-1], 200_001, dtype=torch.double)
    curve = survival_at(survival, days=days, ends_days=ends)
    want = torch.trapezoid(curve, days, dim=1)
    torch.testing.assert_close(
        mean_survival_days(survival, ends_days=ends), want, rtol=1e-6, atol=1e-3
    )


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_metrics_take_the_scores_of_every_kind(kind: str, size: float) -> None:
    target = TARGETS[kind]
    noise = torch.Generator().manual_seed(0)
    logits: Tensor = size * torch.randn(4, target.num_logits, generator=noise).bfloat16()
    scores = scores_of(logits, target)
    assert scores.shape == (4, len(target.outputs))
    checked(np.array(LABELS[kind]), scores.numpy(), PRIMARY[kind])


def test_a_larger_hazard_is_a_larger_risk_also_where_it_is_tiny() -> None:
    logits = torch.tensor([[-20.0, -20.0], [-19.0, -20.0], [-20.0, -19.0]])
    low, early, late = scores_of(logits, TARGETS["survival"])[:, 0].tolist()
    assert low < late < early
