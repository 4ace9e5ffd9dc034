"""Each loss against its equation, written again one scan and one interval at a time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.finetuning.losses import (
    LossConfig,
    LossWeights,
    label_loss,
    loss_weights,
    survival_loss,
)
from foundation.finetuning.target import Target

BALANCED = LossConfig(class_weights="balanced")
# Not one of them is a float32: comparisons must round both sides alike.
ENDS = (10.1, 30.7, 365.1)
BINARY = Target(task="t", kind="binary", outputs=("1",))
MULTICLASS = Target(task="t", kind="multiclass", outputs=("a", "b", "c"))
MULTILABEL = Target(task="t", kind="multilabel", outputs=("a", "b", "c"))
ORDINAL = Target(task="t", kind="ordinal", outputs=("0", "1", "2", "3"))
REGRESSION = Target(task="t", kind="regression", outputs=("y",), centre=60.0, scale=5.0)
SURVIVAL = Target(task="t", kind="survival", outputs=("risk",), ends_days=ENDS)
ONES = {
    "binary": torch.ones(2),
    "multiclass": torch.ones(3),
    "multilabel": torch.ones(3, 2),
    "ordinal": torch.ones(4),
}
nan = math.nan
CASES = [
    (BINARY, [0.0, 1, 1, 0]),
    (MULTICLASS, [0.0, 2, 1, 2]),
    (MULTILABEL, [[0.0, 1, nan], [nan, nan, 1], [1, 0, 0], [nan, 1, 1]]),
    (ORDINAL, [0.0, 3, 1, 2]),
    (REGRESSION, [55.0, 61, 72, 60]),
    (SURVIVAL, [[10.1, 1.0], [12, 0], [400, 0], [365.1, 1]]),
]
NAMES = [target.kind for target, _ in CASES]


def loss_of(
    logits: Tensor,
    labels: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    delta: float | None = None,
) -> Tensor:
    weight = ONES.get(target.kind, torch.ones(0)) if weight is None else weight
    return label_loss(
        logits, labels, target, LossWeights(weight), label_smoothing=smoothing, huber_delta=delta
    )


def logits_of(target: Target, *, num: int = 4, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(num, target.num_logits, generator=noise)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cell(logit: float, truth: float, smoothing: float = 0.0) -> float:
    truth = truth * (1 - smoothing) + smoothing / 2
    chance = sigmoid(logit)
    return -truth * math.log(chance) - (1 - truth) * math.log(1 - chance)


def test_binary_is_the_weighted_cross_entropy() -> None:
    logits, labels = torch.tensor([[0.3], [-1.2]]), torch.tensor([1.0, 0.0])
    got = loss_of(logits, labels, BINARY, torch.tensor([0.5, 3.0]), smoothing=0.2)
    assert got.tolist() == pytest.approx([3 * cell(0.3, 1, 0.2), 0.5 * cell(-1.2, 0, 0.2)])


def test_multiclass_is_the_weighted_cross_entropy() -> None:
    logits, labels = logits_of(MULTICLASS), torch.tensor([0.0, 2, 1, 2])
    weights, smoothing = [0.5, 2.0, 1.5], 0.3
    got = loss_of(logits, labels, MULTICLASS, torch.tensor(weights), smoothing=smoothing)
    want = []
    for row, label in zip(logits.tolist(), [0, 2, 1, 2], strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        shares = [smoothing / 3 + (1 - smoothing) * (label == k) for k in range(3)]
        entropy = sum(share * (total - value) for share, value in zip(shares, row, strict=True))
        want.append(weights[label] * entropy)
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_ordinal_is_the_mean_over_the_steps_up() -> None:
    logits, labels = logits_of(ORDINAL), [0, 3, 1, 2]
    weights = [1.0, 0.5, 2.0, 4.0]
    got = loss_of(logits, torch.tensor(labels), ORDINAL, torch.tensor(weights), smoothing=0.1)
    want = [
        weights[label] * sum(cell(row[k], float(label > k), 0.1) for k in range(3)) / 3
        for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_missing_labels_do_not_count_and_get_no_gradient() -> None:
    logits = logits_of(MULTILABEL).requires_grad_()
    labels = torch.tensor(CASES[2][1])
    sides = torch.tensor([[0.5, 2.0], [1.0, 3.0], [0.7, 1.1]])
    got = loss_of(logits, labels, MULTILABEL, sides)
    want = [
        sum(
            sides[k, int(truth)].item() * cell(row[k], truth)
            for k, truth in enumerate(truths)
            if not math.isnan(truth)
        )
        / 3
        for row, truths in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert got.tolist() == pytest.approx(want, rel=1e-5)
    got.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, labels.isfinite())


def test_a_quantity_is_measured_in_standard_deviations() -> None:
    logits, labels = torch.tensor([[0.4], [-1.0], [0.0]]), torch.tensor([65.0, 62.0, 80.0])
    errors = [0.4 - 1.0, -1.0 - 0.4, 0.0 - 4.0]
    squares = [error**2 for error in errors]
    assert loss_of(logits, labels, REGRESSION).tolist() == pytest.approx(squares, rel=1e-5)
    # Below 1.5 the square; past it the tangent of the square there.
    want = [*squares[:2], 1.5**2 + 2 * 1.5 * (4.0 - 1.5)]
    got = loss_of(logits, labels, REGRESSION, delta=1.5)
    assert got.tolist() == pytest.approx(want, rel=1e-5)
    got = loss_of(logits, labels, REGRESSION, delta=100.0)
    assert got.tolist() == pytest.approx(squares, rel=1e-5)


def reference(logits: list[float], days: float, event: float) -> float:
    """Interval by interval, in the order of time."""
    begin, total = 0.0, 0.0
    for logit, end in zip(logits, ENDS, strict=True):
        if event and begin < days <= end:
            return total - math.log(sigmoid(logit))
        if end <= days:
            total -= math.log(1 - sigmoid(logit))
        begin = end
    return total


OUTCOMES = [
    (4.0, 1.0), (4.0, 0.0), (10.1, 1.0), (10.1, 0.0), (20.0, 1.0), (20.0, 0.0),
    (30.7, 1.0), (30.7, 0.0), (365.1, 1.0), (365.1, 0.0), (999.0, 1.0), (999.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_survival_is_the_likelihood_of_the_hazards(dtype: torch.dtype) -> None:
    logits = logits_of(SURVIVAL, num=len(OUTCOMES))
    got = loss_of(logits, torch.tensor(OUTCOMES, dtype=dtype), SURVIVAL)
    want = [reference(row, *told) for row, told in zip(logits.tolist(), OUTCOMES, strict=True)]
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_survival_gradients_are_of_the_intervals_that_are_told() -> None:
    logits = logits_of(SURVIVAL, num=len(OUTCOMES)).requires_grad_()
    survival_loss(logits, torch.tensor(OUTCOMES), ends_days=ENDS).sum().backward()
    told = [1, 0, 1, 1, 2, 1, 2, 2, 3, 3, 3, 3]
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[k < num for k in range(3)] for num in told]


def test_all_that_can_happen_has_a_likelihood_of_one() -> None:
    rows = torch.tensor([[5.0, 1.0], [25.0, 1.0], [300.0, 1.0], [365.1, 0.0]])
    logits = logits_of(SURVIVAL, num=1).double().expand(4, -1)
    assert survival_loss(logits, rows, ends_days=ENDS).neg().exp().sum().item() == pytest.approx(1)


def test_survival_is_best_at_the_share_of_events_among_those_at_risk() -> None:
    generator = np.random.default_rng(0)
    days = generator.exponential(100, 80)
    event = (generator.random(80) < 0.6).astype(np.float64)
    ends = np.array(ENDS)
    begins = np.array([0.0, *ENDS[:-1]])
    died = (days[:, None] > begins) & (days[:, None] <= ends) & (event > 0)[:, None]
    lived = (days[:, None] >= ends) & ~died
    hazard = died.sum(axis=0) / (died | lived).sum(axis=0)
    logits = torch.from_numpy(np.log(hazard / (1 - hazard))).requires_grad_()
    labels = torch.from_numpy(np.stack([days, event], axis=1))
    survival_loss(logits.expand(80, -1), labels, ends_days=ENDS).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=torch.double), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("target", "values"), CASES, ids=NAMES)
def test_a_scan_depends_on_no_other_so_two_ranks_are_one(target: Target, values: list) -> None:
    logits, labels = logits_of(target), torch.tensor(values)
    whole = loss_of(logits, labels, target)
    parts = [loss_of(logits[rows], labels[rows], target) for rows in (slice(2), slice(2, 4))]
    assert torch.equal(whole, torch.cat(parts))
    assert (whole > 0).any()


@pytest.mark.parametrize(("target", "values"), CASES, ids=NAMES)
def test_half_precision_goes_no_further_than_the_logits(target: Target, values: list) -> None:
    logits, labels = logits_of(target).bfloat16(), torch.tensor(values)
    want = loss_of(logits.double(), labels, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_of(logits, labels, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("target", "values"), CASES, ids=NAMES)
def test_certain_and_wrong_is_dear_and_finite(target: Target, values: list) -> None:
    for sign in (-1.0, 1.0):
        logits = torch.full((4, target.num_logits), sign * 1e4, requires_grad=True)
        loss = loss_of(logits, torch.tensor(values), target)
        loss.sum().backward()
        assert logits.grad is not None
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("target", "label"),
    [(BINARY, [0, 0, 0, 1.0]), (MULTICLASS, [0, 0, 1, 1, 1, 2.0]), (ORDINAL, [3, 0, 0, 1, 2.0])],
)
def test_balanced_classes_weigh_alike_and_a_training_row_1_on_average(
    target: Target, label: list[float]
) -> None:
    weights = loss_weights(np.array(label), target=target, config=BALANCED).by_class
    of_rows = weights[torch.tensor(label).long()]
    assert of_rows.mean().item() == pytest.approx(1)
    totals = torch.bincount(torch.tensor(label).long(), weights=of_rows)
    torch.testing.assert_close(totals, totals.mean().expand_as(totals))


def test_a_class_without_training_rows_changes_no_other() -> None:
    weights = loss_weights(np.array([0.0, 0, 0, 2]), target=MULTICLASS, config=BALANCED).by_class
    assert weights.tolist() == pytest.approx([4 / 6, 1, 2])


def test_labels_are_balanced_one_by_one_over_what_is_known() -> None:
    label = np.array([[0, nan, 1], [0, 1, 1], [0, nan, 1], [1, 0, 1.0]])
    weights = loss_weights(label, target=MULTILABEL, config=BALANCED).by_class
    want = torch.tensor([[4 / 6, 2.0], [1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(weights, want)


def test_without_balance_everything_weighs_1() -> None:
    shapes = {"binary": (2,), "multiclass": (3,), "multilabel": (3, 2), "ordinal": (4,)}
    for target, values in CASES:
        weights = loss_weights(np.array(values), target=target, config=LossConfig()).by_class
        assert torch.equal(weights, torch.ones(shapes.get(target.kind, (0,))))


@pytest.mark.parametrize(
    ("target", "config", "word"),
    [
        (REGRESSION, BALANCED, "class_weights"),
        (SURVIVAL, LossConfig(label_smoothing=0.1), "label_smoothing"),
        (BINARY, LossConfig(huber_delta=1.0), "huber_delta"),
    ],
)
def test_a_setting_without_a_use_is_refused(target: Target, config: LossConfig, word: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{word} says nothing for a {target.kind} task"):
        loss_weights(np.zeros(3), target=target, config=config)
