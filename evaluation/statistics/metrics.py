"""Metrics with exact handling of ties, and bootstrap intervals by subject.

Every metric is written once, for rows that carry weights: a plain score has all weights 1, and a
bootstrap draw is the same rows with the number of times each was drawn. So two thousand draws are
a few matrix operations, with no loop over draws.

One row stands for one subject. Several scans of a subject are pooled before they come here.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_Weighted = Callable[[Floats, Floats, Floats], Floats]  # label (n,), score (n,), weight (b, n)

_ENTRIES_AT_ONCE = 4_000_000  # of a (draws, subjects) weight matrix: 32 MB


class StatisticsError(ValueError):
    """A statistic that these rows do not define."""


def auroc(label: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve; a tie between a positive and a negative counts one half.

    Raises:
        StatisticsError: One class is missing, or a value is not finite or not 0/1.
    """
    return measure(label, score, "auroc")


def average_precision(label: ArrayLike, score: ArrayLike) -> float:
    """Step-wise area under precision and recall, tied scores taken as one threshold."""
    return measure(label, score, "average_precision")


def balanced_accuracy(label: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> float:
    """Mean of sensitivity and specificity; ``score >= threshold`` reads as positive."""
    truth, value = _checked(label, score, "balanced_accuracy")
    weight = np.ones((1, len(truth)))
    return float(_balanced_accuracy(truth, value - threshold + 0.5, weight)[0])


def brier(label: ArrayLike, score: ArrayLike) -> float:
    """Mean squared distance of the probability of the positive class from the label."""
    return measure(label, score, "brier")


def r2(label: ArrayLike, score: ArrayLike) -> float:
    """Share of the label's variance that is explained; negative when worse than the mean.

    Raises:
        StatisticsError: All labels are equal, or a value is not finite.
    """
    return measure(label, score, "r2")


def mean_absolute_error(label: ArrayLike, score: ArrayLike) -> float:
    """Mean absolute error in the label's own unit."""
    return measure(label, score, "mean_absolute_error")


def measure(label: ArrayLike, score: ArrayLike, metric: str) -> float:
    """The metric named ``metric`` (see ``METRICS``) over one row per subject."""
    truth, value = _checked(label, score, metric)
    return float(METRICS[metric](truth, value, np.ones((1, len(truth))))[0])


def bootstrap_interval(
    label: ArrayLike,
    score: ArrayLike,
    metric: str | Callable[..., float],
    *,
    num_bootstraps: int = 2000,
    seed: int = 0,
    coverage: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval over subjects, drawn within each class for a binary label.

    Args:
        label: One per subject, (n,).
        score: One per subject, (n,).
        metric: One of ``METRICS``, by name or as the function of this module.
        num_bootstraps: Draws of n subjects with replacement.
        seed: Of the draws; the same seed and n draw the same subjects for every model.
        coverage: Nominal, two-sided.
    """
    draws = bootstrap_draws(label, score, metric, num_bootstraps=num_bootstraps, seed=seed)
    tail = 50.0 * (1.0 - coverage)
    # A draw of one value only has no R2; it is left out here, and never counted as a score.
    low, high = np.nanpercentile(draws, [tail, 100.0 - tail])
    return float(low), float(high)


def bootstrap_draws(
    label: ArrayLike,
    score: ArrayLike,
    metric: str | Callable[..., float],
    *,
    num_bootstraps: int = 2000,
    seed: int = 0,
) -> Floats:
    """The metric of each bootstrap draw, (num_bootstraps,); paired across models by the seed."""
    name = metric if isinstance(metric, str) else metric.__name__
    truth, value = _checked(label, score, name)
    strata = [np.flatnonzero(truth == level) for level in (0, 1)]
    if name not in BINARY:
        strata = [np.arange(len(truth))]
    rng = np.random.default_rng(seed)
    step = max(1, _ENTRIES_AT_ONCE // len(truth))
    parts = []
    for start in range(0, num_bootstraps, step):
        weight = draw_counts(rng, strata, min(step, num_bootstraps - start), len(truth))
        parts.append(METRICS[name](truth, value, weight))
    return np.concatenate(parts)


def draw_counts(
    rng: np.random.Generator, strata: list[NDArray[np.int64]], draws: int, n: int
) -> Floats:
    """How often each of ``n`` rows is drawn, (draws, n); each stratum keeps its size."""
    counts = np.zeros((draws, n))
    row = np.arange(draws)[:, None]
    for members in strata:
        size = len(members)
        drawn = rng.integers(0, size, size=(draws, size)) + row * size
        counts[:, members] = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return counts


def _checked(label: ArrayLike, score: ArrayLike, metric: str) -> tuple[Floats, Floats]:
    if metric not in METRICS:
        raise StatisticsError(f"no metric {metric!r}; known: {', '.join(sorted(METRICS))}")
    truth, value = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != value.shape:
        raise StatisticsError(
            f"{metric} takes one label and one score a subject, got shapes {truth.shape} and "
            f"{value.shape}"
        )
    if not (np.isfinite(truth).all() and np.isfinite(value).all()):
        raise StatisticsError(f"{metric}: a label or a score is not a finite number")
    levels = np.unique(truth)
    if metric in BINARY:
        if not np.isin(levels, (0, 1)).all():
            raise StatisticsError(f"{metric} takes labels 0 and 1, got {levels[:4].tolist()}")
        if len(levels) < 2:
            held = f"all {len(truth)} are {int(levels[0])}" if len(truth) else "there is none"
            raise StatisticsError(f"{metric} needs subjects of both classes, {held}")
    elif metric == "r2" and len(levels) < 2:
        raise StatisticsError(f"r2 needs labels that differ, all {len(truth)} are equal")
    elif not len(truth):
        raise StatisticsError(f"{metric} needs at least one subject")
    return truth, value


def _by_rank(label: Floats, score: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, ascending, (b, levels)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    weight, label = weight[:, order], label[order]
    positive = np.add.reduceat(weight * label, starts, axis=1)
    return positive, np.add.reduceat(weight * (1 - label), starts, axis=1)


def _auroc(label: Floats, score: Floats, weight: Floats) -> Floats:
    positive, negative = _by_rank(label, score, weight)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def _average_precision(label: Floats, score: Floats, weight: Floats) -> Floats:
    positive, negative = (part[:, ::-1] for part in _by_rank(label, score, weight))
    true_positives = np.cumsum(positive, axis=1)
    called = true_positives + np.cumsum(negative, axis=1)
    precision = true_positives / np.maximum(called, 1)
    return (precision * positive).sum(1) / positive.sum(1)


def _balanced_accuracy(label: Floats, score: Floats, weight: Floats) -> Floats:
    right = (score >= 0.5) == (label == 1)
    recalls = [(weight * level) @ right / (weight @ level) for level in (label, 1 - label)]
    return (recalls[0] + recalls[1]) / 2


def _brier(label: Floats, score: Floats, weight: Floats) -> Floats:
    return weight @ (score - label) ** 2 / weight.sum(1)


def _mean_absolute_error(label: Floats, score: Floats, weight: Floats) -> Floats:
    return weight @ np.abs(score - label) / weight.sum(1)


def _r2(label: Floats, score: Floats, weight: Floats) -> Floats:
    total = weight.sum(1)
    mean = weight @ label / total
    # Deviations from each draw's own mean, never E[x^2] - E[x]^2: volumes are in the thousands.
    spread = (weight * (label - mean[:, None]) ** 2).sum(1)
    spread[spread == 0] = np.nan
    return 1.0 - weight @ (score - label) ** 2 / spread


METRICS: dict[str, _Weighted] = {
    "auroc": _auroc,
    "average_precision": _average_precision,
    "balanced_accuracy": _balanced_accuracy,
    "brier": _brier,
    "mean_absolute_error": _mean_absolute_error,
    "r2": _r2,
}
BINARY = frozenset({"auroc", "average_precision", "balanced_accuracy", "brier"})
