"""Metrics of a quantity or of ordered levels: explained variance, error, agreement, order.

Label is (n,): a quantity, or the index of a level. Score is the predicted quantity (n,), or the
probability of every level (n, K), which is read through its expected level. Weight is (B, n), the
result (B,).
"""

import numpy as np
from numpy.typing import NDArray

from foundation.metrics.binary import ratio
from foundation.metrics.survival import concordant_share

Floats = NDArray[np.float64]


def expected_level(score: Floats) -> Floats:
    """(n,): the mean of the predicted distribution over the levels 0 to K - 1."""
    level = score @ np.arange(score.shape[1]) / score.sum(axis=1)
    # What is equal but for rounding is a tie.
    return np.round(level, 12)


def nearest_level(score: Floats) -> Floats:
    """(n,): the level nearest to the expected one."""
    return np.floor(expected_level(score) + 0.5)


def r2(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the label's variance that is explained; negative when worse than the mean."""
    total = weight.sum(1)
    mean = weight @ label / total
    # Deviations from each draw's own mean, never E[x^2] - E[x]^2: volumes are in the thousands.
    spread = (weight * (label - mean[:, None]) ** 2).sum(1)
    return 1.0 - ratio(weight @ (score - label) ** 2, spread)


def mean_absolute_error(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean absolute error in the label's own unit."""
    return ratio(weight @ np.abs(score - label), weight.sum(1))


def concordance(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Share of the pairs with different labels that the score puts in the right order."""
    return concordant_share(label, np.ones(len(label)), -score, weight)


def level_error(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean absolute error of the expected level."""
    return mean_absolute_error(label, expected_level(score), weight)


def level_concordance(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Concordance of the expected level."""
    return concordance(label, expected_level(score), weight)


def quadratic_kappa(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Cohen's kappa with quadratic weights, of the level nearest to the expected one.

    The expected squared disagreement of two independent raters is the sum of their variances and
    the squared distance of their means, so no table of levels is needed.
    """
    level = nearest_level(score)
    total = weight.sum(1)
    label_mean, level_mean = weight @ label / total, weight @ level / total
    by_chance = (
        (weight * (label - label_mean[:, None]) ** 2).sum(1)
        + (weight * (level - level_mean[:, None]) ** 2).sum(1)
    ) / total + (label_mean - level_mean) ** 2
    return 1.0 - ratio(weight @ (label - level) ** 2 / total, by_chance)
