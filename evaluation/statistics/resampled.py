"""Spread of a score over training sets: repeated cross-validation and resampled training sets.

Scores of overlapping training sets are correlated, so the plain standard error of their mean is
too small, the more so the more often they are repeated.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Spread(NamedTuple):
    """Mean and standard deviation of ``num`` scores, with an interval; None where undefined."""

    num: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def nadeau_bengio(scores: ArrayLike, *, test_share: float, coverage: float = 0.95) -> Spread:
    """Corrected interval of the mean score of repeated cross-validation.

    The variance of the mean is ``(1/J + n_test/n_train) * s^2`` over J folds, with J - 1 degrees of
    freedom (Nadeau and Bengio 2003; Bouckaert and Frank 2004).

    Args:
        scores: One per fold, of all repeats; a fold that does not define the metric (NaN) is left
            out.
        test_share: n_test / n_train, 1 / (K - 1) for K folds.
        coverage: Nominal, two-sided.
    """
    from scipy.special import stdtrit

    values = _known(scores)
    num = len(values)
    if num < 2:
        return Spread(num, float(values.mean()) if num else None, None, None, None)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    reach = float(stdtrit(num - 1, (1 + coverage) / 2)) * np.sqrt(1 / num + test_share) * sd
    return Spread(num, mean, sd, mean - reach, mean + reach)


def training_spread(scores: ArrayLike) -> Spread:
    """Mean, SD and 2.5-97.5% range over models trained on resampled training sets.

    It says how much the score would move with another training set of this size, and stands beside
    the interval over test subjects: neither holds the other.
    """
    values = _known(scores)
    if len(values) < 2:
        mean = float(values.mean()) if len(values) else None
        return Spread(len(values), mean, None, None, None)
    low, high = np.percentile(values, [2.5, 97.5])
    return Spread(
        len(values), float(values.mean()), float(values.std(ddof=1)), float(low), float(high)
    )


def _known(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64).ravel()
    return values[np.isfinite(values)]
