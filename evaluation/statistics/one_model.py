"""What is said of one model by one protocol on the shown split."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.bootstrap import percentile
from evaluation.statistics.coverage import measured_coverage
from evaluation.statistics.delong import logit_interval
from evaluation.statistics.drawing import SharedDraws, statistic_of
from evaluation.statistics.intervals import Interval, interval
from evaluation.statistics.reliability import (
    Shown,
    calibration_entry,
    conformal_entry,
    decisions_at_specificity,
    risk_coverage_entry,
)
from evaluation.statistics.resampled import nadeau_bengio, training_spread
from foundation.metrics import binary
from foundation.metrics.by_name import decided
from foundation.metrics.multiclass import one_vs_rest

Floats = NDArray[np.float64]

EQUAL_SHARES = ("prototypes",)
"""Protocols whose probabilities do not know how common a class is: the nearer class mean wins."""
_AT_SPECIFICITY = "sensitivity_at_90_specificity"


class Facts(NamedTuple):
    """Of the task.

    Attributes:
        kind: One of ``metrics.KINDS``.
        metrics: Shown, the primary one first.
        outputs: Names of the columns of a score.
        prevalence: Training share of positives, or of each class; None where it is not known.
        groups: By column: the value of each subject.
        cv_folds: Folds of one repeat of its cross-validation.
    """

    kind: str
    metrics: tuple[str, ...]
    outputs: tuple[str, ...]
    prevalence: float | Sequence[float] | None
    groups: Mapping[str, Mapping[str, Any]]
    cv_folds: int | None


def model_entry(
    shown: Shown,
    facts: Facts,
    *,
    draws: SharedDraws,
    training_scores: ArrayLike | None,
    fold_scores: ArrayLike | None,
) -> dict[str, Any]:
    """The entry of ``models`` in a task's statistics, without the model's name."""
    scores = {metric: score_entry(shown, facts, metric, draws) for metric in facts.metrics}
    has_auroc = facts.kind == "binary" and scores["auroc"]["value"] is not None
    return {
        "n": len(shown.label),
        "positives": positives_of(shown.label, facts.kind),
        "scores": scores,
        "by_output": _by_output(shown, facts, draws),
        "delong": _ends(*logit_interval(shown.label, shown.score)) if has_auroc else None,
        "bootstrap": _bootstrap(shown, draws) if has_auroc else None,
        "training_spread": None
        if training_scores is None
        else training_spread(training_scores)._asdict(),
        "folds": None if fold_scores is None else _folds(fold_scores, facts.cv_folds),
        "calibration": calibration_entry(shown),
        "conformal": conformal_entry(shown, facts.groups),
        "risk_coverage": risk_coverage_entry(shown),
    }


def positives_of(label: Floats, kind: str) -> int | None:
    """Positives of a binary label, events of survival; None for other kinds."""
    if kind == "survival":
        return int(label[:, 1].sum())
    return int(label.sum()) if kind == "binary" else None


def score_for(shown: Shown, facts: Facts, metric: str) -> Floats | None:
    """What the metric is computed on: the score, or the decision that it leads to.

    Returns:
        None where too few subjects are there to choose a threshold on others.
    """
    if metric == "balanced_accuracy":
        knows_shares = shown.protocol not in EQUAL_SHARES
        return _at_prevalence(shown.score, facts.prevalence if knows_shares else None)
    return decisions_at_specificity(shown) if metric == _AT_SPECIFICITY else shown.score


def score_entry(shown: Shown, facts: Facts, metric: str, draws: SharedDraws) -> dict[str, Any]:
    """One metric with its interval, and how often such intervals cover where that was measured."""
    score = score_for(shown, facts, metric)
    if score is None:
        few = "too few subjects of a class to choose a threshold on others"
        return _stored(Interval(None, None, None, None, few), metric, len(shown.label))
    found = interval(shown.label, score, metric, draws=draws)
    stored = _stored(found, metric, len(shown.label))
    if metric != _AT_SPECIFICITY or found.value is None:
        return stored
    reached = binary.specificity(shown.label, score, np.ones((1, len(score))))
    return stored | {"threshold_on": shown.fitted_on, "specificity": float(reached[0])}


def _at_prevalence(score: Floats, prevalence: float | Sequence[float] | None) -> Floats:
    """Scores whose decision is where the training set's shares put it, not at equal shares."""
    if score.ndim == 1:
        share = 0.5 if prevalence is None else float(np.asarray(prevalence).ravel()[-1])
        return decided(score, share)
    if prevalence is None:
        return score
    return score / np.maximum(np.asarray(prevalence, dtype=np.float64), 1e-12)


def _stored(found: Interval, metric: str, n: int) -> dict[str, Any]:
    # What was simulated has a width: of a constant score nothing was measured.
    known = found.low is not None and found.high is not None and found.low < found.high
    covered = measured_coverage(metric, found.method, n, found.value) if known else None
    return {**found._asdict(), "coverage": covered}


def _by_output(shown: Shown, facts: Facts, draws: SharedDraws) -> dict[str, Any] | None:
    """One class or label at a time."""
    counts: list[tuple[int, int | None]]
    if facts.kind == "segmentation":
        grid = shown.score.reshape(len(shown.score), -1)
        found = [interval(shown.label, column, "dice", draws=draws) for column in grid.T]
        counts = [(int(count), None) for count in np.isfinite(grid).sum(axis=0)]
    elif facts.kind in ("multiclass", "multilabel"):
        labels = shown.label
        if facts.kind == "multiclass":
            labels = one_vs_rest(labels, shown.score.shape[1])
        rows = [np.isfinite(label) for label in labels.T]
        found = [
            interval(label[known], score[known], "auroc")
            for label, score, known in zip(labels.T, shown.score.T, rows, strict=True)
        ]
        counts = [
            (int(known.sum()), int(label[known].sum()))
            for label, known in zip(labels.T, rows, strict=True)
        ]
    else:
        return None
    return {
        name: {
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "n": n,
            "positives": positives,
            "method": each.method,
            "reason": each.reason,
        }
        for name, each, (n, positives) in zip(facts.outputs, found, counts, strict=True)
    }


def _bootstrap(shown: Shown, draws: SharedDraws) -> dict[str, float | None]:
    mine = draws.of(shown.label, shown.score, "auroc")
    return _ends(*percentile(mine.of(statistic_of(shown.label, shown.score, "auroc"))))


def _folds(scores: ArrayLike, cv_folds: int | None) -> dict[str, Any]:
    values = np.asarray(scores, dtype=np.float64)
    num_folds = values.shape[1] if values.ndim == 2 else cv_folds
    if num_folds is None:
        raise ValueError(
            "scores of folds without the number of folds of a repeat: give Settings.cv_folds, or "
            "scores as (repeats, folds)"
        )
    return nadeau_bengio(values, test_share=1 / (num_folds - 1))._asdict()


def _ends(low: float, high: float) -> dict[str, float | None]:
    known = np.isfinite(low) and np.isfinite(high)
    return {"low": low if known else None, "high": high if known else None}
