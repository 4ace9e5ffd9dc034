"""Bootstrap, BCa and DeLong against scipy, scikit-learn and slow direct computations."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from evaluation.statistics import bootstrap, delong
from evaluation.statistics.bootstrap import Draws, strata_of
from evaluation.statistics.drawing import SharedDraws, statistic_of
from evaluation.statistics.intervals import (
    BCA,
    DELONG,
    JACKKNIFE,
    LOGIT,
    MOST_LEFT_OUT,
    PERCENTILE,
    PERFECT,
    bounds_by,
    interval,
    method_of,
)
from foundation.metrics.by_name import measure


def _rows(seed: int, n: int = 47) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 3 == 0).astype(float)
    return label, np.round(1 / (1 + np.exp(-1.2 * label - rng.normal(size=n))), 2)


def _slow_delong(label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Covariance from the pairwise kernel, written out."""
    parts = []
    for score in scores:
        pos, neg = score[label == 1][:, None], score[label == 0][None]
        kernel = (pos > neg) + 0.5 * (pos == neg)
        parts.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    m, n = int(label.sum()), int((1 - label).sum())
    return np.cov([p for p, _ in parts]) / m + np.cov([q for _, q in parts]) / n


def test_percentile_equals_a_loop_over_scikit_learn() -> None:
    label, score = _rows(2)
    rng = np.random.default_rng(5)
    classes = [np.flatnonzero(label == level) for level in (0, 1)]
    values = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(members, len(members)) for members in classes])
        values.append(roc_auc_score(label[rows], score[rows]))
    draws = Draws(strata_of(label, "binary"), num=4000, seed=1)
    ours = bounds_by(PERCENTILE, 0.0, statistic_of(label, score, "auroc"), draws)
    assert ours == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.03)  # Monte Carlo


def test_draws_are_stratified_seeded_and_the_same_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label = np.array([0.0] * 30 + [1.0])
    whole = np.concatenate(list(Draws(strata_of(label, "binary"), num=50, seed=3)))
    assert (whole[:, 30] == 1).all()  # the one positive is in every draw
    assert (whole.sum(axis=1) == 31).all()
    again = np.concatenate(list(Draws(strata_of(label, "binary"), num=50, seed=3)))
    other = np.concatenate(list(Draws(strata_of(label, "binary"), num=50, seed=4)))
    assert np.array_equal(whole, again)
    assert not np.array_equal(whole, other)
    monkeypatch.setattr(bootstrap, "_ENTRIES_AT_ONCE", 31 * 7)
    blocks = [len(block) for block in Draws([np.arange(31)], num=50, seed=3)]
    assert blocks == [7] * 7 + [1]


def test_strata_are_classes_or_events_and_nothing_for_a_mean_over_subjects() -> None:
    assert [len(rows) for rows in strata_of(np.array([2.0, 0, 2, 1]), "ordinal")] == [1, 1, 2]
    times = np.array([[5.0, 1], [3, 0], [2, 0]])
    assert [rows.tolist() for rows in strata_of(times, "survival")] == [[1, 2], [0]]
    label, score = _rows(0)
    shared = SharedDraws(num=10, seed=0)
    assert len(shared.of(label, score, "auroc").strata) == 2
    assert len(shared.of(label, score, "brier").strata) == 1
    assert shared.of(label, score, "auroc") is shared.of(label, score[::-1], "average_precision")


def test_bca_equals_scipy_for_one_and_for_two_strata() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(1, 37)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    label, score = np.zeros(37), values[:, None]
    statistic = statistic_of(label, np.repeat(score, 3, axis=1), "mean_average_precision")
    draws = Draws([np.arange(37)], num=20_000, seed=2)
    ours = bounds_by(BCA, float(values.mean()), statistic, draws)
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.012)

    label, score = _rows(1)
    pos, neg = score[label == 1], score[label == 0]

    def of_pairs(p: np.ndarray, q: np.ndarray, axis: int = -1) -> np.ndarray:
        p, q = np.moveaxis(p, axis, -1)[..., :, None], np.moveaxis(q, axis, -1)[..., None, :]
        return ((p > q) + 0.5 * (p == q)).mean(axis=(-1, -2))

    theirs = stats.bootstrap(
        (pos, neg), of_pairs, n_resamples=6000, batch=500, method="BCa", rng=rng
    ).confidence_interval
    statistic = statistic_of(label, score, "auroc")
    draws = Draws(strata_of(label, "binary"), num=20_000, seed=2)
    ours = bounds_by(BCA, measure(label, score, "auroc"), statistic, draws)
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.012)
    left_out = bootstrap.jackknife(statistic, draws.strata)
    expected = [
        [roc_auc_score(np.delete(label, row), np.delete(score, row)) for row in rows]
        for rows in draws.strata
    ]
    for ours_, theirs_ in zip(left_out, expected, strict=True):
        assert ours_ == pytest.approx(theirs_, abs=1e-12)


def test_bca_has_no_interval_where_all_draws_lie_on_one_side() -> None:
    assert np.isnan(bootstrap.bca(1.0, np.ones(9) * 0.5, [np.array([0.4, 0.5])])).all()


@pytest.mark.parametrize("seed", range(4))
def test_delong_equals_the_pairwise_computation(seed: int) -> None:
    label, a = _rows(seed)
    _, b = _rows(seed + 10)
    found = delong.delong(label, np.stack([a, b]))
    assert found.auroc == pytest.approx([roc_auc_score(label, a), roc_auc_score(label, b)])
    covariance = _slow_delong(label, np.stack([a, b]))
    assert found.covariance == pytest.approx(covariance, abs=1e-14)
    test = delong.paired_test(label, a, b)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test.standard_error == pytest.approx(error)
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(test.difference) / error))


def test_logit_interval_by_hand() -> None:
    label, score = _rows(3)
    value, error = roc_auc_score(label, score), np.sqrt(_slow_delong(label, score[None]))
    middle, reach = stats.logistic.ppf(value), 1.959964 * error / (value * (1 - value))
    expected = stats.logistic.cdf([middle - reach, middle + reach])
    assert delong.logit_interval(label, score) == pytest.approx(expected, abs=1e-6)
    found = interval(label, score, "auroc")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)
    assert found.method == DELONG


def test_a_perfect_auroc_has_a_lower_end_below_1() -> None:
    found = interval([0] * 12 + [1] * 9, range(21), "auroc")
    assert (found.value, found.high, found.method) == (1.0, 1.0, PERFECT)
    assert found.low is not None
    # Where 1 is 1.96 standard errors away (Hanley and McNeil's, equal mean sizes).
    a, half = found.low, (12 + 9) / 2 - 1
    variance = a * (1 - a) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a)) / (12 * 9)
    assert 1 - a == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)
    mirrored = interval([0] * 12 + [1] * 9, range(21, 0, -1), "auroc")
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - a))


def test_midranks_equal_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 6, (3, 17)).astype(float)
    assert np.array_equal(delong.midranks(values), stats.rankdata(values, axis=1))


def test_the_logit_interval_of_a_bootstrap_stays_inside_0_and_1() -> None:
    label, score = _rows(4)
    statistic = statistic_of(label, score, "average_precision")
    draws = Draws(strata_of(label, "binary"), num=500, seed=0)
    low, high = bounds_by(LOGIT, 0.98, statistic, draws)
    assert 0 < low < 0.98 < high < 1


def test_the_jackknife_error_of_a_mean_and_of_a_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random(13), rng.random(7)
    of_mean = [(one.sum() - one) / 12]
    assert bootstrap.jackknife_error(of_mean) == pytest.approx(one.std(ddof=1) / np.sqrt(13))
    apart = [of_mean[0] - two.mean(), one.mean() - (two.sum() - two) / 6]
    expected = np.sqrt(one.var(ddof=1) / 13 + two.var(ddof=1) / 7)
    assert bootstrap.jackknife_error(apart) == pytest.approx(expected)
    assert np.isnan(bootstrap.jackknife_error([]))


def test_average_precision_has_the_logit_interval_of_the_jackknife() -> None:
    label, score = _rows(5)
    found = interval(label, score, "average_precision")
    assert found.method == JACKKNIFE
    statistic = statistic_of(label, score, "average_precision")
    left_out = bootstrap.jackknife(statistic, strata_of(label, "binary"))
    error = bootstrap.jackknife_error(left_out)
    assert found.value is not None
    expected = bootstrap.logit_normal(found.value, error)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_of_many_subjects_the_percentiles_are_taken() -> None:
    assert method_of("r2", MOST_LEFT_OUT) == BCA
    assert method_of("r2", MOST_LEFT_OUT + 1) == PERCENTILE
    assert method_of("auroc", MOST_LEFT_OUT + 1) == DELONG


@pytest.mark.parametrize("metric", ["r2", "mean_absolute_error"])
def test_regression_intervals_hold_the_score(metric: str) -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(3000, 400, 60)
    found = interval(label, label + rng.normal(0, 300, 60), metric, num_bootstraps=500)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_what_cannot_be_said_is_none_with_a_reason() -> None:
    assert interval([1, 1], [0.1, 0.2], "auroc") == (
        None, None, None, None, "auroc needs subjects of both classes, all 2 are 1",
    )  # fmt: skip
    few = interval([1, 0, 0], [0.2, 0.2, 0.9], "auroc")
    assert few == (0.25, None, None, None, "too few subjects for an interval")
    flat = interval([0.0, 1, 0, 1], [0.0, 1, 0, 1], "balanced_accuracy", num_bootstraps=20)
    assert flat.low == flat.high == 1
    assert flat.reason is not None
    assert "narrower than the truth" in flat.reason
    constant = interval([0.0, 1, 0, 1], [0.3] * 4, "auroc")
    assert constant[:3] == (0.5, 0.5, 0.5)
    assert constant.reason is None
