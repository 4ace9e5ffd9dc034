"""Metrics over several outputs: one class of many, or many labels that may be missing.

Label is (n,) class indices for one class of many, or (n, L) of 0, 1 and NaN for many labels; score
is (n, K), weight (B, n), the result (B,). A macro average is over the outputs that are defined: a
class or label that no subject has (or every one) is left out, never counted as 0. The loops run
over outputs, never over draws.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foundation.metrics import binary
from foundation.metrics.binary import LOG_FLOOR, ratio

Floats = NDArray[np.float64]
Weighted = Callable[[Floats, Floats, Floats], Floats]


def one_vs_rest(label: Floats, num_classes: int) -> Floats:
    """(n, K) of 0 and 1, so that one class of many is scored label by label."""
    return (label[:, None] == np.arange(num_classes)).astype(np.float64)


def by_output(label: Floats, score: Floats, weight: Floats, *, metric: Weighted) -> Floats:
    """A binary metric of each label, (L, B), over the rows where the label is known."""
    rows = [np.isfinite(column) for column in label.T]
    return np.stack(
        [
            metric(column[known], values[known], weight if known.all() else weight[:, known])
            for column, values, known in zip(label.T, score.T, rows, strict=True)
        ]
    )


def macro_auroc(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean AUROC of each class against the rest."""
    return macro_auroc_of_labels(one_vs_rest(label, score.shape[1]), score, weight)


def macro_auroc_of_labels(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean AUROC of the labels."""
    return mean_of_defined(by_output(label, score, weight, metric=binary.auroc))


def macro_average_precision(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean average precision of the labels."""
    return mean_of_defined(by_output(label, score, weight, metric=binary.average_precision))


def brier_of_labels(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean over labels of the Brier score of each."""
    return mean_of_defined(by_output(label, score, weight, metric=binary.brier))


def accuracy(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the subjects whose most probable class is theirs; the first of a tie is taken."""
    return ratio(weight @ (score.argmax(axis=1) == label), weight.sum(1))


def balanced_accuracy(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean over the classes of the share whose most probable class is theirs."""
    right = score.argmax(axis=1) == label
    member = one_vs_rest(label, score.shape[1]).T
    return mean_of_defined(
        np.stack([ratio((weight * one) @ right, weight @ one) for one in member])
    )


def brier(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean squared distance of the probabilities from the one-hot label, between 0 and 2."""
    apart = ((score - one_vs_rest(label, score.shape[1])) ** 2).sum(axis=1)
    return ratio(weight @ apart, weight.sum(1))


def nll(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean negative log of the probability given to the true class, in nats."""
    happened = score[np.arange(len(label)), label.astype(int)]
    return ratio(weight @ -np.log(np.clip(happened, LOG_FLOOR, 1.0)), weight.sum(1))


def dice(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean over the classes of the mean Dice of the subjects; NaN is a class that is not there."""
    del label  # the masks were compared where they lie
    grid = score.reshape(len(score), -1)
    known = np.isfinite(grid)
    overlap, count = weight @ np.where(known, grid, 0.0), weight @ known.astype(np.float64)
    return mean_of_defined(ratio(overlap, count).T)


def mean_of_defined(values: Floats) -> Floats:
    """Mean along the first axis of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))
