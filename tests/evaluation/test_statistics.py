import time

import numpy as np
import pytest
from sklearn import metrics

from evaluation.statistics import metrics as statistics


def _rows(seed: int, n: int = 83, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(float)
    label[:2] = 0, 1
    score = np.clip(0.35 * label + rng.random(n) * 0.65, 0, 1)
    return label, np.round(score, 1) if ties else score


def test_auroc_by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): .5 > .1, .5 = .5 counts half, .9 > .1, .9 > .5: 3.5 of 4.
    assert statistics.auroc([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]) == pytest.approx(3.5 / 4)


def test_average_precision_by_hand() -> None:
    # Descending: 1, 0, 1: precision 1 at recall 1/2, 2/3 at recall 1.
    value = statistics.average_precision([1, 0, 1], [0.9, 0.8, 0.7])
    assert value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn(seed: int, ties: bool) -> None:
    label, score = _rows(seed, ties=ties)
    pairs = [
        (statistics.auroc(label, score), metrics.roc_auc_score(label, score)),
        (statistics.average_precision(label, score), metrics.average_precision_score(label, score)),
        (
            statistics.balanced_accuracy(label, score, threshold=0.4),
            metrics.balanced_accuracy_score(label, score >= 0.4),
        ),
        (statistics.brier(label, score), metrics.brier_score_loss(label, score)),
        (statistics.r2(label * 900 + 2e4, score * 900 + 2e4), metrics.r2_score(label, score)),
        (
            statistics.mean_absolute_error(label, score),
            metrics.mean_absolute_error(label, score),
        ),
    ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_weights_are_repetitions() -> None:
    label, score = _rows(1)
    times = np.random.default_rng(0).integers(1, 4, len(label))
    repeated = np.repeat(label, times), np.repeat(score, times)
    for name, metric in statistics.METRICS.items():
        weighted = metric(label, score, times[None].astype(float))[0]
        assert weighted == pytest.approx(statistics.measure(*repeated, name), abs=1e-12), name


def test_bootstrap_equals_a_loop_over_scikit_learn() -> None:
    label, score = _rows(2)
    rng = np.random.default_rng(5)
    classes = [np.flatnonzero(label == level) for level in (0, 1)]
    values = []
    for _ in range(600):
        rows = np.concatenate([rng.choice(members, len(members)) for members in classes])
        values.append(metrics.roc_auc_score(label[rows], score[rows]))
    expected = np.percentile(values, [2.5, 97.5])
    low, high = statistics.bootstrap_interval(
        label, score, statistics.auroc, num_bootstraps=4000, seed=1
    )
    assert (low, high) == pytest.approx(expected, abs=0.02)  # Monte-Carlo error of both
    assert low < statistics.auroc(label, score) < high


def test_bootstrap_is_stratified_seeded_and_named() -> None:
    label, score = np.array([0.0] * 30 + [1.0]), np.linspace(0, 1, 31)
    first = statistics.bootstrap_draws(label, score, "auroc", num_bootstraps=50, seed=3)
    again = statistics.bootstrap_draws(label, score, statistics.auroc, num_bootstraps=50, seed=3)
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()  # the one positive is in every draw
    other = statistics.bootstrap_draws(*_rows(0), "auroc", num_bootstraps=50, seed=4)
    assert not np.array_equal(
        other, statistics.bootstrap_draws(*_rows(0), "auroc", num_bootstraps=50, seed=5)
    )


def test_regression_interval_holds_the_score() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(3000, 400, 60)
    score = label + rng.normal(0, 300, 60)
    low, high = statistics.bootstrap_interval(label, score, "r2", num_bootstraps=500, seed=0)
    assert low < statistics.r2(label, score) < high < 1


def test_two_thousand_draws_of_three_hundred_subjects_take_well_under_a_second() -> None:
    label, score = _rows(0, n=300, ties=False)
    start = time.perf_counter()
    statistics.bootstrap_interval(label, score, "auroc", num_bootstraps=2000, seed=0)
    assert time.perf_counter() - start < 0.9


@pytest.mark.parametrize(
    ("label", "score", "metric", "words"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "auroc", "both classes, all 3 are 1"),
        ([], [], "auroc", "both classes, there is none"),
        ([0, 2], [0.1, 0.2], "auroc", "labels 0 and 1"),
        ([0, 1], [0.1, np.nan], "auroc", "finite"),
        ([0, 1], [0.1], "brier", "shapes"),
        ([5, 5], [1, 2], "r2", "labels that differ"),
        ([0, 1], [0, 1], "aucroc", "no metric 'aucroc'"),
    ],
)
def test_rows_that_define_no_statistic_are_refused(
    label: list, score: list, metric: str, words: str
) -> None:
    with pytest.raises(statistics.StatisticsError, match=words):
        statistics.measure(label, score, metric)
