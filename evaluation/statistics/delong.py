"""Standard errors of AUROC without drawing: DeLong's, one model or a pair on the same subjects.

DeLong, DeLong and Clarke-Pearson 1988; midranks make it O(n log n) (Sun and Xu 2014).
"""

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.bootstrap import Bounds, logit_normal

Floats = NDArray[np.float64]

_NORMAL = NormalDist()


class DeLong(NamedTuple):
    """AUROC of M models on the same subjects, (M,), and its covariance, (M, M).

    The covariance is NaN where a class has fewer than two subjects.
    """

    auroc: Floats
    covariance: Floats


class PairedTest(NamedTuple):
    """The difference of two AUROCs, its standard error, and p (two-sided, normal)."""

    difference: float
    standard_error: float
    p: float


def delong(label: Floats, scores: Floats) -> DeLong:
    """AUROC with covariance.

    Args:
        label: 0 or 1, (n,); both classes are there.
        scores: One row per model, (M, n).
    """
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    together = midranks(np.concatenate([positive, negative], axis=1))
    # Of each positive, the share of negatives below it; of each negative, of positives above it.
    by_positive = (together[:, :m] - midranks(positive)) / n
    by_negative = 1.0 - (together[:, m:] - midranks(negative)) / m
    if min(m, n) < 2:
        covariance = np.full((len(scores), len(scores)), np.nan)
    else:
        covariance = np.atleast_2d(np.cov(by_positive) / m + np.cov(by_negative) / n)
    return DeLong(by_positive.mean(axis=1), covariance)


def logit_interval(label: Floats, score: Floats, *, coverage: float = 0.95) -> Bounds:
    """Interval of one AUROC, normal on its log-odds with DeLong's standard error."""
    found = delong(label, score[None])
    return logit_normal(
        float(found.auroc[0]), float(np.sqrt(found.covariance[0, 0])), coverage=coverage
    )


def paired_test(label: Floats, a: Floats, b: Floats) -> PairedTest:
    """Two models on the same subjects; p is 1 where their scores rank alike, NaN where the
    difference shows no spread to measure it by."""
    found = delong(label, np.stack([a, b]))
    difference = float(found.auroc[0] - found.auroc[1])
    c = found.covariance
    variance = float(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    error = sqrt(max(variance, 0.0)) if np.isfinite(variance) else float("nan")
    if np.isnan(error):
        return PairedTest(difference, error, error)
    if error < 1e-12:
        return PairedTest(difference, 0.0, 1.0 if abs(difference) < 1e-12 else float("nan"))
    return PairedTest(difference, error, 2 * _NORMAL.cdf(-abs(difference) / error))


def perfect_interval(num_positive: int, num_negative: int, *, coverage: float = 0.95) -> Bounds:
    """Interval of an AUROC of exactly 1, which shows no spread to estimate.

    The low end is where 1 would be just as far away as the quantile, by the standard error under
    exponential scores (Hanley and McNeil 1982; Newcombe 2006, method 5).
    """
    z, mean_size = _NORMAL.inv_cdf((1 + coverage) / 2), (num_positive + num_negative) / 2 - 1

    def too_far(value: float) -> bool:
        inside = 1 + mean_size * (1 - value) / (2 - value) + mean_size * value / (1 + value)
        variance = value * (1 - value) * inside / (num_positive * num_negative)
        return 1 - value > z * sqrt(variance)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return Bounds(low, 1.0)


def midranks(values: Floats) -> Floats:
    """Ranks from 1 along the last axis of (M, n); ties share the mean of theirs."""
    return np.stack([_midranks(row) for row in values])


def _midranks(row: Floats) -> Floats:
    order = np.argsort(row, kind="stable")
    starts = np.flatnonzero(np.diff(row[order], prepend=-np.inf))
    sizes = np.diff(starts, append=len(row))
    ranks = np.empty(len(row))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks
