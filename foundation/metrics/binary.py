"""Metrics of one yes or no per subject: ranking, decisions, probabilities.

Every metric is written once, for rows that carry weights: a plain score has all weights 1, and a
bootstrap draw is the same rows with the number of times each was drawn. So two thousand draws are
a few matrix operations, with no loop over draws.

All functions take label (n,) of 0 and 1, score (n,) and weight (B, n), and return (B,). A draw in
which the metric is not defined is NaN. Nothing is checked here: see ``metrics.py``.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOG_FLOOR = float(np.finfo(np.float64).eps)
"""A probability of 0 given to what happened is read as this, as scikit-learn does."""


def auroc(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Area under the ROC curve; a tie between a positive and a negative counts one half."""
    order, weight = _ascending(score, weight)
    positive = weight * label[order]
    return _auroc(score[order], positive, weight - positive)


def weighted_auroc(score: Floats, positive: Floats, negative: Floats) -> Floats:
    """AUROC of rows that count (B, n) as positives and (B, n) as negatives."""
    order, positive = _ascending(score, positive)
    return _auroc(score[order], positive, negative.take(order, axis=1))


def average_precision(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Step-wise area under precision and recall, tied scores taken as one threshold."""
    order, weight = _ascending(score, weight)
    starts = _starts(score[order])
    positive = np.add.reduceat(weight * label[order], starts, axis=1)[:, ::-1]
    called = np.cumsum(np.add.reduceat(weight, starts, axis=1)[:, ::-1], axis=1)
    # Every weight is a count, so where nothing is called yet there are no positives either.
    precision = np.cumsum(positive, axis=1) / np.where(called > 0, called, 1.0)
    return ratio((precision * positive).sum(1), positive.sum(1))


def balanced_accuracy(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean of sensitivity and specificity; a score of at least one half reads as positive."""
    return (sensitivity(label, score, weight) + specificity(label, score, weight)) / 2


def sensitivity(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the positives whose score is at least one half."""
    return ratio((weight * label) @ (score >= 0.5), weight @ label)


def specificity(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the negatives whose score is below one half."""
    return ratio((weight * (1 - label)) @ (score < 0.5), weight @ (1 - label))


def accuracy(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the subjects on the right side of one half."""
    return ratio(weight @ ((score >= 0.5) == (label == 1)), weight.sum(1))


def brier(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean squared distance of the probability of the positive class from the label."""
    return ratio(weight @ (score - label) ** 2, weight.sum(1))


def nll(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean negative log of the probability given to what happened, in nats."""
    happened = np.where(label == 1, score, 1 - score)
    return ratio(weight @ -np.log(np.clip(happened, LOG_FLOOR, 1.0)), weight.sum(1))


def threshold_at_specificity(
    label: Floats, score: Floats, *, min_specificity: float = 0.9
) -> float:
    """The lowest threshold that calls at most 10% of these negatives positive.

    It is chosen on subjects that are not scored with it (validation, or the other folds), and
    applied as ``score >= threshold``. Where many negatives tie, specificity may be well above.
    """
    negatives = np.sort(score[label == 0])
    allowed = int(np.floor((1 - min_specificity) * len(negatives) + 1e-9))
    # The highest negative that may not be called any more; what lies above it is called.
    limit = negatives[len(negatives) - allowed - 1]
    return float(np.nextafter(limit, np.inf))


def ratio(above: Floats, below: Floats) -> Floats:
    """``above / below``, NaN where nothing was drawn that the metric is about."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _ascending(score: Floats, weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The order of the scores, and the weights in it."""
    order = np.argsort(score, kind="stable")
    return order, weight.take(order, axis=1)


def _auroc(score: Floats, positive: Floats, negative: Floats) -> Floats:
    """Of rows in ascending order of the score."""
    starts = _starts(score)
    if len(starts) < len(score):
        positive = np.add.reduceat(positive, starts, axis=1)
        negative = np.add.reduceat(negative, starts, axis=1)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    won = np.einsum("bn,bn->b", positive, below)
    return ratio(won, positive.sum(1) * negative.sum(1))


def _starts(score: Floats) -> NDArray[np.int64]:
    """Where each distinct value starts in ascending scores."""
    return np.flatnonzero(np.diff(score, prepend=-np.inf))
