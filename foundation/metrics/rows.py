"""Which rows define a score: what is refused, and what is left out, each with its reason.

The shapes of labels and scores of each kind of task are those of ``metrics.py``.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foundation.metrics import multiclass

Floats = NDArray[np.float64]


class StatisticsError(ValueError):
    """A statistic that these rows do not define."""


def as_columns(label: Floats, score: Floats) -> tuple[Floats, Floats]:
    """A single column of scores as a vector, unless it is that of a single one of many labels."""
    is_one_label = label.ndim == 2 and label.shape[1] == 1
    if score.ndim == 2 and score.shape[1] == 1 and not is_one_label:
        score = score[:, 0]
    return label, score


def check_rows(label: Floats, score: Floats, *, kind: str, metric: str) -> None:
    """Refuse rows of one kind of task that do not define the metric.

    Raises:
        StatisticsError: It says why.
    """
    if len(label) != len(score):
        raise StatisticsError(
            f"{metric} takes one label and one score a subject, got shapes {label.shape} and "
            f"{score.shape}"
        )
    labels_may_miss = kind == "multilabel"
    scores_may_miss = kind in ("segmentation", "retrieval")
    if (
        np.isinf(label).any()
        or np.isinf(score).any()
        or (
            (np.isnan(label).any() and not labels_may_miss)
            or (np.isnan(score).any() and not scores_may_miss)
        )
    ):
        raise StatisticsError(f"{metric}: a label or a score is not a finite number")
    _CHECKS[kind](label, score, metric)


def undefined_outputs(label: Floats, score: Floats, kind: str) -> dict[int, str]:
    """The outputs of a multi-class, multi-label or segmentation score that have no value, why."""
    if kind == "segmentation":
        grid = score.reshape(len(score), -1)
        empty = np.flatnonzero(~np.isfinite(grid).any(axis=0))
        return {int(k): "in no subject's mask, predicted or true" for k in empty}
    columns = multiclass.one_vs_rest(label, score.shape[1]) if label.ndim == 1 else label
    reasons = {}
    for k, column in enumerate(columns.T):
        known = column[np.isfinite(column)]
        if not len(known):
            reasons[k] = "no subject has this label"
        elif (known == known[0]).all():
            reasons[k] = f"all {len(known)} subjects are {int(known[0])}"
    return reasons


def _check_binary(label: Floats, score: Floats, metric: str) -> None:
    if not _is_yes_or_no(label):
        raise StatisticsError(f"{metric} takes labels 0 and 1, got {np.unique(label)[:4].tolist()}")
    if not len(label) or label.min() == label.max():
        held = f"all {len(label)} are {int(label[0])}" if len(label) else "there is none"
        raise StatisticsError(f"{metric} needs subjects of both classes, {held}")
    _require_probability(score, metric)
    if metric == "sensitivity_at_90_specificity" and not _is_yes_or_no(score):
        raise StatisticsError(
            f"{metric} takes decisions, 0 or 1, by a threshold chosen on validation; see "
            "foundation.metrics.binary.threshold_at_specificity"
        )


def _check_classes(label: Floats, score: Floats, metric: str) -> None:
    if not len(label):
        raise StatisticsError(f"{metric} needs at least one subject")
    if not ((label % 1 == 0) & (label >= 0) & (label < score.shape[1])).all():
        raise StatisticsError(
            f"{metric} takes labels 0 to {score.shape[1] - 1}, got {np.unique(label)[:4].tolist()}"
        )
    _require_probability(score, metric)
    if label.min() == label.max() and metric not in ("accuracy", "brier", "nll"):
        raise StatisticsError(
            f"{metric} needs subjects of two classes, all {len(label)} are {int(label[0])}"
        )


def _is_yes_or_no(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _require_probability(score: Floats, metric: str) -> None:
    if metric in ("brier", "nll") and len(score) and not (0 <= score.min() <= score.max() <= 1):
        raise StatisticsError(f"{metric} takes probabilities, got scores outside of 0 to 1")


def _check_labels(label: Floats, score: Floats, metric: str) -> None:
    if label.shape != score.shape:
        raise StatisticsError(f"{metric}: {label.shape} labels and {score.shape} scores")
    if not _is_yes_or_no(label[np.isfinite(label)]):
        raise StatisticsError(f"{metric} takes labels 0, 1 and missing")
    if len(undefined_outputs(label, score, "multilabel")) == label.shape[1]:
        raise StatisticsError(f"{metric}: no label has subjects of both classes")


def _check_quantity(label: Floats, score: Floats, metric: str) -> None:
    del score
    if not len(label):
        raise StatisticsError(f"{metric} needs at least one subject")
    if metric in ("r2", "concordance") and label.min() == label.max():
        raise StatisticsError(f"{metric} needs labels that differ, all {len(label)} are equal")


def _check_survival(label: Floats, score: Floats, metric: str) -> None:
    del score
    if label.shape[1] != 2 or not _is_yes_or_no(label[:, 1]):
        raise StatisticsError(f"{metric} takes a time and an event of 0 or 1")
    if not label[:, 1].any():
        raise StatisticsError(f"{metric} needs an event, all {len(label)} times are censored")


def _check_subject_scores(label: Floats, score: Floats, metric: str) -> None:
    del label
    if not np.isfinite(score).any():
        raise StatisticsError(f"{metric}: no subject has a score")


_CHECKS: dict[str, Callable[[Floats, Floats, str], None]] = {
    "binary": _check_binary,
    "multiclass": _check_classes,
    "multilabel": _check_labels,
    "regression": _check_quantity,
    "ordinal": _check_classes,
    "survival": _check_survival,
    "segmentation": _check_subject_scores,
    "retrieval": _check_subject_scores,
}
