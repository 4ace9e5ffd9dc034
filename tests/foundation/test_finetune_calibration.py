"""What is fitted on held-out scores, and what it promises of new ones."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import minimize_scalar

from foundation.finetuning.calibration import (
    FEWEST,
    Calibration,
    apply_calibration,
    conformal_classes,
    fit_calibration,
)
from tests.foundation.tuned_models import TARGETS

Floats = np.ndarray


def overconfident(n: int, *, seed: int = 0, num_classes: int = 3) -> tuple[Floats, Floats]:
    """Classes drawn from a softmax, and scores from twice the logits: temperature 2 is right."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, num_classes))
    shares = softmax(logits)
    label = (rng.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).astype(float)
    return label, softmax(2 * logits)


def softmax(logits: Floats) -> Floats:
    raised = np.exp(logits)
    return raised / raised.sum(axis=1, keepdims=True)


def test_a_temperature_is_the_one_of_the_least_loss() -> None:
    label, scores = overconfident(400)
    found = fit_calibration(label, scores, TARGETS["multiclass"], fitted_on="validation")

    def loss(temperature: float) -> float:
        shares = softmax(np.log(scores) / temperature)
        return float(-np.log(shares[np.arange(400), label.astype(int)]).mean())

    best = minimize_scalar(loss, bounds=(0.3, 6), method="bounded", options={"xatol": 1e-8})
    (temperature,) = found.temperatures
    assert temperature == pytest.approx(best.x, abs=1e-4)
    assert temperature == pytest.approx(2, abs=0.4)
    expected = softmax(np.log(scores) / temperature)
    np.testing.assert_allclose(
        apply_calibration(scores, found, TARGETS["multiclass"]), expected, atol=1e-9
    )
    assert (found.num_subjects, found.fitted_on, found.reason) == (400, "validation", "")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_sets_hold_the_truth_of_nine_in_ten_new_subjects(kind: str) -> None:
    classes = 2 if kind == "binary" else 3
    covered = []
    for seed in range(40):
        label, scores = overconfident(300, seed=seed, num_classes=classes)
        scores = scores[:, 1:] if kind == "binary" else scores
        found = fit_calibration(label[:100], scores[:100], TARGETS[kind], fitted_on="out of fold")
        limit = found.limits[0]
        assert limit is not None
        new = scores[100:]
        inside = conformal_classes(new[:, 0] if kind == "binary" else new, limit)
        assert inside.any(axis=1).all()
        covered.append(inside[np.arange(200), label[100:].astype(int)].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_labels_are_calibrated_one_by_one_over_those_that_are_known() -> None:
    rng = np.random.default_rng(1)
    chance = rng.uniform(0.02, 0.98, (300, 2))
    label = (rng.random((300, 2)) < chance).astype(float)
    odds = np.log(chance / (1 - chance))
    scores = 1 / (1 + np.exp(-odds * [3, 1]))  # the first label is overconfident
    label[25:, 1] = np.where(np.arange(275) % 2, np.nan, label[25:, 1])
    target = TARGETS["multilabel"]
    found = fit_calibration(label, scores, target, fitted_on="validation")
    first, second = found.temperatures
    assert first == pytest.approx(3, abs=0.7)
    assert second == pytest.approx(1, abs=0.4)
    known = ~np.isnan(label[:, 1])
    alone = fit_calibration(
        label[known, 1], scores[known, 1:], TARGETS["binary"], fitted_on="validation"
    )
    assert alone.temperatures == (second,)
    assert alone.limits == (found.limits[1],)
    told = apply_calibration(scores, found, target)
    assert first is not None
    np.testing.assert_allclose(told[:, 0], 1 / (1 + np.exp(-odds[:, 0] * 3 / first)), atol=1e-9)
    label[10:, 1] = np.nan
    few = fit_calibration(label, scores, target, fitted_on="validation")
    assert few.temperatures[1] is None
    assert few.reason.startswith("fluid: 10 subjects are too few")


def test_an_interval_is_as_wide_as_nine_in_ten_errors() -> None:
    label = np.arange(1.0, 20.0)
    errors = np.array([*range(1, 19), 500.0])
    found = fit_calibration(
        label, (label - errors)[:, None], TARGETS["regression"], fitted_on="validation"
    )
    assert found.limits == (18.0,)  # the 18th of 19: ceil(20 * 0.9)
    assert found.temperatures == ()
    scores = np.array([[3.0]])
    assert apply_calibration(scores, found, TARGETS["regression"]) == scores
    few = fit_calibration(label[:8], label[:8, None], TARGETS["regression"], fitted_on="validation")
    assert few.limits == (None,)
    assert few.reason == "8 subjects are too few for an interval"


def test_what_cannot_be_fitted_says_why() -> None:
    label, scores = overconfident(FEWEST - 1)
    target = TARGETS["multiclass"]
    few = fit_calibration(label, scores, target, fitted_on="validation")
    assert few.temperatures == (None,)
    assert few.limits[0] is not None
    assert few.reason == "19 subjects are too few for a temperature, 20 are asked for"
    np.testing.assert_array_equal(apply_calibration(scores, few, target), scores)
    label, scores = overconfident(40)
    one = fit_calibration(label * 0, scores, target, fitted_on="validation")
    assert one.reason.startswith("all subjects are of one class")
    sure = fit_calibration(scores.argmax(axis=1), scores, target, fitted_on="validation")
    assert sure.temperatures == (None,)
    assert sure.reason.startswith("every subject is told apart")
    for kind, truth in (("survival", np.ones((30, 2))), ("segmentation", np.zeros(30))):
        none = fit_calibration(truth, np.zeros((30, 1)), TARGETS[kind], fitted_on="validation")
        assert (none.temperatures, none.limits, none.num_subjects) == ((), (), 30)
        assert none.reason


def test_a_set_is_never_empty() -> None:
    inside = conformal_classes(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), 0.25)
    np.testing.assert_array_equal(inside, [[True, False, False], [False, False, True]])
    inside = conformal_classes(np.array([0.3, 0.9]), 0.75)
    np.testing.assert_array_equal(inside, [[True, True], [False, True]])


@pytest.mark.parametrize(
    "wrong", [{"temperatures": (0.0,)}, {"limits": (-1.0,)}, {"limits": (float("inf"),)}]
)
def test_what_is_no_calibration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate({"fitted_on": "validation", "num_subjects": 3, **wrong})
