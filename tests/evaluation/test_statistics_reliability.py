"""Calibration, conformal sets and risk-coverage curves."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from evaluation.statistics.reliability import (
    Shown,
    calibration_entry,
    conformal_entry,
    decisions_at_specificity,
    risk_coverage_entry,
)
from foundation.metrics import calibration, conformal
from foundation.metrics.binary import threshold_at_specificity


def _binary(seed: int, n: int, *, too_sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that would be calibrated at temperature ``too_sure``."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-0.5, 1.5, n)
    label = (rng.random(n) < expit(log_odds)).astype(float)
    return label, expit(too_sure * log_odds)


def _classes(seed: int, n: int, *, too_sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    label = np.array([rng.choice(3, p=row) for row in softmax(logits, axis=1)], dtype=float)
    return label, softmax(too_sure * logits, axis=1)


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"s{number:04d}" for number in range(n))


def test_the_temperature_equals_scipys_minimum() -> None:
    label, score = _binary(0, 300, too_sure=2.5)

    def loss(log_t: float) -> float:
        p = expit(logit(score) / np.exp(log_t))
        return float(-np.log(np.where(label == 1, p, 1 - p)).mean())

    best = np.exp(
        minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
    )
    assert calibration.fit_temperature(label, score) == pytest.approx(best, rel=1e-5)
    assert best == pytest.approx(2.5, rel=0.35)

    label, score = _classes(1, 300, too_sure=0.4)

    def loss_of_classes(log_t: float) -> float:
        scaled = log_softmax(np.log(score) / np.exp(log_t), axis=1)
        return float(-scaled[np.arange(300), label.astype(int)].mean())

    found = minimize_scalar(
        loss_of_classes, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}
    )
    assert calibration.fit_temperature(label, score) == pytest.approx(np.exp(found.x), rel=1e-5)


def test_temperatures_are_bounded_and_change_no_order() -> None:
    separable = np.array([0.0, 0, 1, 1]), np.array([0.4, 0.45, 0.55, 0.6])
    assert calibration.fit_temperature(*separable) == pytest.approx(1 / 20)
    upside_down = np.array([1.0, 1, 0, 0]), separable[1]
    assert calibration.fit_temperature(*upside_down) == pytest.approx(20)
    _, score = _binary(2, 50)
    scaled = calibration.apply_temperature(score, 3.0)
    assert np.array_equal(np.argsort(scaled), np.argsort(score))
    assert scaled == pytest.approx(expit(logit(score) / 3))
    assert calibration.apply_temperature(score, 1.0) == pytest.approx(score)
    assert np.isfinite(calibration.apply_temperature(np.array([0.0, 1.0]), 0.5)).all()


def test_adaptive_bins_by_hand_never_cut_a_tie() -> None:
    predicted = np.array([0.1, 0.2, 0.2, 0.2, 0.8, 0.9])
    happened = np.array([0.0, 0, 1, 0, 1, 1])
    bins = calibration.adaptive_bins(happened, predicted, num_bins=3)
    assert [each.n for each in bins] == [1, 3, 2]
    assert bins[1].rate == pytest.approx(1 / 3)
    assert bins[1].mean_score == pytest.approx(0.2)
    expected = (1 * 0.1 + 3 * (1 / 3 - 0.2) + 2 * 0.15) / 6
    assert calibration.expected_error(bins) == pytest.approx(expected)
    shuffled = np.random.default_rng(0).permutation(6)
    assert calibration.adaptive_bins(happened[shuffled], predicted[shuffled], num_bins=3) == bins
    constant = calibration.adaptive_bins(happened, np.full(6, 0.5))
    assert constant == ((0.5, 0.5, 6),)


def test_bins_hold_equally_many() -> None:
    label, score = _binary(3, 150)
    assert [each.n for each in calibration.adaptive_bins(label, score)] == [10] * 15


def test_calibration_of_several_classes_is_of_the_predicted_one() -> None:
    score = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    found = calibration.calibration_of(np.array([0.0, 1.0]), score)
    assert found.bins == ((0.6, 0.0, 1), (0.7, 1.0, 1))
    assert found.ece == pytest.approx((0.6 + 0.3) / 2)
    assert found.nll == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)


@pytest.mark.parametrize("make", [_binary, _classes])
def test_scaling_heals_scores_that_are_too_sure(make) -> None:
    label, score = make(4, 400, too_sure=3.0)
    kind = "binary" if score.ndim == 1 else "multiclass"
    crossed = calibration_entry(Shown(kind, label, score, _names(400)))
    held = calibration_entry(
        Shown(kind, label, score, _names(400), validation=make(5, 400, too_sure=3.0))
    )
    for entry, where in ((crossed, "cross-fitted"), (held, "validation")):
        assert entry is not None
        assert entry["fitted_on"] == where
        assert entry["temperature"] == pytest.approx(3.0, rel=0.4)
        for name in ("ece", "nll", "brier"):
            assert entry["after"][name] < entry["before"][name]


def test_nobody_is_scaled_by_a_temperature_that_has_seen_them() -> None:
    label, score = _binary(6, 60, too_sure=3.0)
    shown = Shown("binary", label, score, _names(60))
    assert sorted(np.concatenate(shown.folds)) == list(range(60))
    counts = [label[fold].sum() for fold in shown.folds]
    assert max(counts) - min(counts) <= 1
    before = calibration.cross_tempered(label, score, folds=shown.folds).score
    poisoned = label.copy()
    poisoned[shown.folds[2]] = 1 - poisoned[shown.folds[2]]
    after = calibration.cross_tempered(poisoned, score, folds=shown.folds).score
    assert np.array_equal(before[shown.folds[2]], after[shown.folds[2]])
    assert not np.array_equal(before, after)
    calls = decisions_at_specificity(shown)
    poisoned_calls = decisions_at_specificity(Shown("binary", poisoned, score, _names(60)))
    assert calls is not None
    assert poisoned_calls is not None
    fold = shown.folds[2]
    others = np.setdiff1d(np.arange(60), fold)
    limit = threshold_at_specificity(label[others], score[others])
    assert np.array_equal(calls[fold], score[fold] >= limit)


def test_the_quantile_is_the_one_of_split_conformal() -> None:
    values = np.arange(1.0, 20)  # 19: ceil(20 * .9) = 18
    assert conformal.conformal_quantile(values, level=0.9) == 18
    assert conformal.conformal_quantile(np.arange(1.0, 10), level=0.9) == 9
    assert conformal.conformal_quantile(np.arange(1.0, 9), level=0.9) == np.inf


@pytest.mark.parametrize("make", [_binary, _classes])
def test_conformal_sets_cover_what_they_say(make) -> None:
    covered, sizes = [], []
    for seed in range(60):
        known, new = make(seed, 99, too_sure=4.0), make(1000 + seed, 200, too_sure=4.0)
        sets = conformal.conformal_sets(known, *new, level=0.9)
        covered.append(sets.covered.mean())
        sizes.append(sets.size.mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)
    assert 1 < np.mean(sizes) < (2 if make is _binary else 3)


def test_a_set_holds_the_classes_above_the_threshold() -> None:
    known = np.arange(19) % 2 * 1.0, np.where(np.arange(19) % 2, 0.6, 0.4)  # 1 - p of truth is .4
    sets = conformal.conformal_sets(known, np.array([1.0, 0.0, 1.0]), np.array([0.9, 0.61, 0.5]))
    assert sets.covered.tolist() == [True, False, False]
    assert sets.size.tolist() == [1, 1, 0]
    nothing_known = conformal.conformal_sets((known[0][:5], known[1][:5]), *known)
    assert (nothing_known.size == 2).all()


def test_conformal_intervals_of_a_quantity() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(0, 1, 500)
    score = label + rng.normal(0, 0.5, 500)
    shown = Shown("regression", label, score, _names(500))
    entry = conformal_entry(shown, {})
    assert entry is not None
    assert entry["coverage"] == pytest.approx(0.9, abs=0.03)
    assert entry["mean_size"] == pytest.approx(2 * 1.645 * 0.5, rel=0.1)
    few = conformal_entry(Shown("regression", label[:6], score[:6], _names(6)), {})
    assert few is not None
    assert (few["coverage"], few["mean_size"]) == (1.0, None)  # infinitely wide


def test_coverage_by_group_counts_every_subject_once() -> None:
    label, score = _binary(7, 90)
    site = {name: "north" if place % 3 else "south" for place, name in enumerate(_names(90)[:-1])}
    entry = conformal_entry(Shown("binary", label, score, _names(90)), {"site": site})
    assert entry is not None
    by_site = entry["by_group"]["site"]
    assert {name: each["n"] for name, each in by_site.items()} == {
        "north": 59, "south": 30, "unknown": 1,
    }  # fmt: skip
    mean = sum(each["n"] * each["coverage"] for each in by_site.values()) / 90
    assert mean == pytest.approx(entry["coverage"])


def test_risk_coverage_by_hand() -> None:
    # Most confident first: right, wrong and right at .8 (half wrong each), wrong.
    label, score = np.array([1.0, 1, 0, 1]), np.array([0.9, 0.8, 0.8, 0.4])
    curve = conformal.risk_coverage(label, score, num_points=4)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])
    assert curve.area == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)
    entry = risk_coverage_entry(Shown("binary", label, score, _names(4)))
    assert entry is not None
    assert entry["risk"][-1] == 0.5


def test_nothing_is_said_where_it_would_mean_nothing() -> None:
    one_positive = Shown("binary", np.array([0.0] * 9 + [1]), np.linspace(0, 1, 10), _names(10))
    assert calibration_entry(one_positive) is None
    assert conformal_entry(one_positive, {}) is None
    assert decisions_at_specificity(one_positive) is None
    distance = Shown("binary", *_binary(0, 40), _names(40))
    odds = Shown("binary", distance.label, logit(distance.score), _names(40))
    assert calibration_entry(odds) is None
    assert risk_coverage_entry(odds) is None
    times = Shown("survival", np.ones((5, 2)), np.arange(5.0), _names(5))
    assert calibration_entry(times) is None
    assert conformal_entry(times, {}) is None
    assert risk_coverage_entry(times) is None
