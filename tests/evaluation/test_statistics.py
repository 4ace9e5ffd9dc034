import time

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sklearn import metrics
from sklearn.preprocessing import label_binarize

from foundation.metrics import binary, survival
from foundation.metrics.by_name import (
    CHANCE_METRIC,
    KINDS,
    METRICS,
    METRICS_OF,
    PRIMARY,
    auroc,
    checked,
    decided,
    measure,
)
from foundation.metrics.rows import StatisticsError, undefined_outputs


def _binary(seed: int, n: int = 83, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(float)
    label[:2] = 0, 1
    score = np.clip(0.35 * label + rng.random(n) * 0.65, 0, 1)
    return label, np.round(score, 1) if ties else score


def _classes(seed: int, n: int = 61, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n).astype(float)
    label[:k] = range(k)
    score = rng.dirichlet(np.ones(k), n).round(2) + 0.01
    score[np.arange(n), label.astype(int)] += 0.2
    return label, score / score.sum(axis=1, keepdims=True)


def _labels(seed: int, n: int = 57) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random((n, 3)) < 0.4).astype(float)
    score = np.round(np.clip(0.2 * label + 0.8 * rng.random((n, 3)), 0, 1), 1)
    label[rng.random((n, 3)) < 0.2] = np.nan
    return label, score


def _times(seed: int, n: int = 59) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time_days = np.ceil(8 * rng.exponential(np.exp(-risk)))  # many ties
    return np.stack([time_days, rng.random(n) < 0.6], axis=1).astype(float), risk


ROWS = {
    "binary": _binary(1),
    "multiclass": _classes(1),
    "ordinal": _classes(2),
    "multilabel": _labels(1),
    "survival": _times(1),
    "regression": (_times(2)[0][:, 0], 3 * _times(2)[1] + 5),
    "segmentation": (np.zeros(57), np.where(np.isnan(_labels(2)[0]), np.nan, _labels(2)[1])),
    "retrieval": (np.zeros(57), _labels(2)[1]),
}


def test_auroc_by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): .5 > .1, .5 = .5 counts half, .9 > .1, .9 > .5: 3.5 of 4.
    assert auroc([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]) == pytest.approx(3.5 / 4)


def test_average_precision_by_hand() -> None:
    # Descending: 1, 0, 1: precision 1 at recall 1/2, 2/3 at recall 1.
    value = measure([1, 0, 1], [0.9, 0.8, 0.7], "average_precision")
    assert value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_binary_and_regression_metrics_equal_scikit_learn(seed: int, ties: bool) -> None:
    label, score = _binary(seed, ties=ties)
    inside = np.clip(score, 0.01, 0.99)
    large = label * 900 + 2e4, score * 900 + 2e4
    pairs = [
        (measure(label, score, "auroc"), metrics.roc_auc_score(label, score)),
        (
            measure(label, score, "average_precision"),
            metrics.average_precision_score(label, score),
        ),
        (
            measure(label, decided(score, 0.4), "balanced_accuracy"),
            metrics.balanced_accuracy_score(label, score >= 0.4),
        ),
        (
            measure(label, decided(score, 0.4), "sensitivity_at_90_specificity"),
            metrics.recall_score(label, score >= 0.4),
        ),
        (measure(label, score, "brier"), metrics.brier_score_loss(label, score)),
        (measure(label, inside, "nll"), metrics.log_loss(label, inside)),
        (measure(*large, "r2"), metrics.r2_score(label, score)),
        (measure(label, score, "mean_absolute_error"), metrics.mean_absolute_error(label, score)),
    ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_and_ordinal_metrics_equal_scikit_learn(seed: int) -> None:
    label, score = _classes(seed)
    top, expected = score.argmax(axis=1), np.round(score @ np.arange(4), 12)
    pairs = [
        ("macro_auroc", metrics.roc_auc_score(label, score, multi_class="ovr")),
        ("accuracy", metrics.accuracy_score(label, top)),
        ("balanced_accuracy", metrics.balanced_accuracy_score(label, top)),
        ("brier", metrics.brier_score_loss(label, score, scale_by_half=False)),
        ("nll", metrics.log_loss(label, score)),
        (
            "quadratic_kappa",
            metrics.cohen_kappa_score(label, np.floor(expected + 0.5), weights="quadratic"),
        ),
        ("mean_absolute_error", metrics.mean_absolute_error(label, expected)),
        ("concordance", concordance_index(label, expected)),
    ]
    for metric, theirs in pairs:
        assert measure(label, score, metric) == pytest.approx(theirs, abs=1e-12), metric


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_metrics_are_means_over_the_known_rows_of_each_label(seed: int) -> None:
    label, score = _labels(seed)
    for metric, of_one in (
        ("macro_auroc", metrics.roc_auc_score),
        ("macro_average_precision", metrics.average_precision_score),
        ("brier", metrics.brier_score_loss),
    ):
        known = np.isfinite(label)
        theirs = [of_one(label[known[:, k], k], score[known[:, k], k]) for k in range(3)]
        assert measure(label, score, metric) == pytest.approx(np.mean(theirs), abs=1e-12)


def test_a_label_of_one_class_is_left_out_with_a_reason_and_never_0() -> None:
    label, score = _labels(0)
    label = np.concatenate([label, np.zeros((57, 1)), np.full((57, 1), np.nan)], axis=1)
    wide = np.concatenate([score, score[:, :2]], axis=1)
    assert measure(label, wide, "macro_auroc") == pytest.approx(
        measure(label[:, :3], score, "macro_auroc")
    )
    assert undefined_outputs(label, wide, "multilabel") == {
        3: "all 57 subjects are 0",
        4: "no subject has this label",
    }


@pytest.mark.parametrize("seed", range(4))
def test_concordance_equals_lifelines(seed: int) -> None:
    label, risk = _times(seed)
    theirs = concordance_index(label[:, 0], -risk, label[:, 1])
    assert measure(label, risk, "concordance") == pytest.approx(theirs, abs=1e-12)
    values = label[:, 0] + np.round(np.random.default_rng(seed).normal(0, 5, len(risk)))
    assert measure(label[:, 0], values, "concordance") == pytest.approx(
        concordance_index(label[:, 0], values), abs=1e-12
    )


def test_concordance_by_hand() -> None:
    # Known order: 1 before 2, 3, 4 and 2 before 3 (tied time, censored), 4; 3 is censored.
    label = [[1, 1], [5, 1], [5, 0], [9, 1]]
    assert measure(label, [4, 1, 1, 2], "concordance") == pytest.approx((3 + 0.5 + 0) / 5)


def test_time_dependent_auroc_by_an_explicit_double_sum() -> None:
    label, risk = _times(5)
    time_days, event = label.T
    n = len(risk)

    def uncensored_before(when: float) -> float:
        survival_ = 1.0
        for each in np.unique(time_days[time_days < when]):
            leaves = int(((time_days == each) & (event == 0)).sum())
            at_risk = int((time_days > each).sum()) + leaves
            survival_ *= 1 - leaves / at_risk if at_risk else 1.0
        return survival_

    values = []
    for when in np.quantile(time_days[event == 1], (0.25, 0.5, 0.75), method="inverted_cdf"):
        above = below = 0.0
        for i in range(n):
            for j in range(n):
                if time_days[i] <= when and event[i] and time_days[j] > when:
                    weight = 1 / uncensored_before(time_days[i])
                    below += weight
                    above += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
        values.append(above / below)
    assert measure(label, risk, "time_dependent_auroc") == pytest.approx(np.mean(values), abs=1e-12)


def test_censoring_survival_equals_lifelines() -> None:
    from lifelines import KaplanMeierFitter

    label, _ = _times(6)
    label[:, 0] += 0.25 * (label[:, 1] == 0)  # a censoring follows an event at the same time
    curve = KaplanMeierFitter().fit(label[:, 0], 1 - label[:, 1])
    theirs = curve.survival_function_at_times(label[:, 0] - 1e-6).to_numpy()
    ours = survival.censoring_survival(label, np.ones((1, len(label))))[0]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_without_censoring_the_time_dependent_auroc_is_that_of_early_against_late() -> None:
    rng = np.random.default_rng(0)
    label = np.stack([rng.exponential(1, 40), np.ones(40)], axis=1)
    risk = -label[:, 0] + rng.normal(0, 1, 40)
    times = survival.evaluation_times(label)
    expected = [metrics.roc_auc_score(label[:, 0] <= when, risk) for when in times]
    assert measure(label, risk, "time_dependent_auroc") == pytest.approx(np.mean(expected))


def test_dice_and_retrieval_leave_out_what_is_not_there() -> None:
    # Class 0: mean of .5 and .7; class 1: .8 alone; class 2 is in no mask.
    score = np.array([[0.5, np.nan, np.nan], [0.7, 0.8, np.nan]])
    assert measure([0, 0], score, "dice") == pytest.approx((0.6 + 0.8) / 2)
    assert undefined_outputs(np.zeros(2), score, "segmentation") == {
        2: "in no subject's mask, predicted or true"
    }
    assert measure([0, 0], score[:, :1], "dice") == pytest.approx(0.6)
    found = np.array([[0.5, 0.0, 1.0], [0.2, 1.0, 1.0], [np.nan] * 3])
    assert measure([0, 1, 2], found, "mean_average_precision") == pytest.approx(0.35)
    assert measure([0, 1, 2], found, "hit_at_1") == pytest.approx(0.5)
    assert measure([0, 1, 2], found, "hit_at_5") == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_repetitions(kind: str) -> None:
    label, score = ROWS[kind]
    times = np.random.default_rng(0).integers(1, 4, len(label))
    for name in METRICS_OF[kind]:
        values = decided(score, 0.5) if name == "sensitivity_at_90_specificity" else score
        weight = np.stack([times, np.ones(len(label))]).astype(float)
        weighted = METRICS[name](*checked(label, values, name), weight)
        repeated = np.repeat(label, times, axis=0), np.repeat(values, times, axis=0)
        assert weighted == pytest.approx(
            [measure(*repeated, name), measure(label, values, name)], abs=1e-12
        ), name


def test_a_draw_that_does_not_define_the_metric_is_nan() -> None:
    label, score = ROWS["binary"]
    only_negatives = (1 - label)[None]
    for name in ("auroc", "average_precision", "balanced_accuracy"):
        assert np.isnan(METRICS[name](label, score, only_negatives)).all()


def test_every_kind_has_its_metrics_and_every_metric_its_kinds() -> None:
    assert set(METRICS_OF) == set(KINDS) == set(PRIMARY)
    for kind, names in METRICS_OF.items():
        assert all(kind in METRICS[name].kinds for name in names)
        label, score = checked(*ROWS[kind], PRIMARY[kind])
        assert METRICS[PRIMARY[kind]].kind_of(label, score) == kind
    assert {METRICS[name].chance for name in CHANCE_METRIC.values()} == {0.5}


def test_a_threshold_calls_at_most_a_tenth_of_the_negatives() -> None:
    label = np.array([0.0] * 20 + [1.0] * 3)
    score = np.array([*np.linspace(0, 0.95, 20), 0.86, 0.9, 0.2])
    limit = binary.threshold_at_specificity(label, score)
    assert (score[label == 0] >= limit).mean() == pytest.approx(0.1)
    assert measure(label, decided(score, limit), "sensitivity_at_90_specificity") == pytest.approx(
        2 / 3
    )
    tied = np.full(20, 0.3)
    assert not decided(tied, binary.threshold_at_specificity(np.zeros(20), tied)).any()


def test_two_thousand_draws_of_three_hundred_subjects_take_well_under_a_second() -> None:
    label, score = _binary(0, n=300, ties=False)
    weight = np.random.default_rng(0).integers(0, 3, (2000, 300)).astype(float)
    start = time.process_time()
    METRICS["auroc"](label, score, weight)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("label", "score", "metric", "words"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "auroc", "both classes, all 3 are 1"),
        ([], [], "auroc", "both classes, there is none"),
        ([0, 2], [0.1, 0.2], "auroc", "labels 0 and 1"),
        ([0, 1], [0.1, np.nan], "auroc", "finite"),
        ([0, 1], [0.1], "brier", "shapes"),
        ([0, 1], [0.1, 1.2], "brier", "probabilities"),
        ([0, 1], [0.1, 0.9], "sensitivity_at_90_specificity", "chosen on validation"),
        ([5, 5], [1, 2], "r2", "labels that differ"),
        ([0, 1], [0, 1], "aucroc", "no metric 'aucroc'"),
        ([0, 1], [0, 1], "macro_auroc", "multiclass and multilabel"),
        ([0, 3], [[0.5, 0.5], [0.2, 0.8]], "macro_auroc", "labels 0 to 1"),
        ([1, 1], [[0.5, 0.5], [0.2, 0.8]], "macro_auroc", "all 2 are 1"),
        ([[0.0, 1.0], [0.0, np.nan]], [[0.5, 0.5], [0.2, 0.8]], "macro_auroc", "no label"),
        ([[1, 0], [2, 0]], [0.1, 0.2], "concordance", "all 2 times are censored"),
        ([0, 0], [[np.nan], [np.nan]], "dice", "no subject"),
    ],
)  # fmt: skip
def test_rows_that_define_no_statistic_are_refused(
    label: list, score: list, metric: str, words: str
) -> None:
    with pytest.raises(StatisticsError, match=words):
        measure(label, score, metric)


def test_one_class_of_three_may_be_missing() -> None:
    label, score = _classes(0, k=3)
    kept = label < 2
    expected = np.mean(
        [
            metrics.roc_auc_score(
                label_binarize(label[kept], classes=range(3))[:, k], score[kept, k]
            )
            for k in range(2)
        ]
    )
    assert measure(label[kept], score[kept], "macro_auroc") == pytest.approx(expected)
