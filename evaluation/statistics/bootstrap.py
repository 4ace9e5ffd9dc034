"""Bootstrap by subject: draws within strata, percentile, BCa and logit intervals.

A statistic here is any function of weights (B, n) on the rows that gives (B,) values: all weights
1 for the rows as they are, counts for a bootstrap draw, a single 0 for a jackknife row.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

_ENTRIES_AT_ONCE = 4_000_000  # of a (draws, subjects) weight matrix: 32 MB
_NORMAL = NormalDist()


class Bounds(NamedTuple):
    """Ends of an interval; NaN where it is not defined."""

    low: float
    high: float


class Draws:
    """Bootstrap draws of subjects; the same seed and strata draw the same for every model.

    Args:
        strata: Disjoint rows that cover all; each keeps its size in every draw.
        num: Draws.
        seed: Of the draws.
    """

    def __init__(self, strata: Sequence[Rows], *, num: int, seed: int) -> None:
        self.strata, self.num, self.seed = list(strata), num, seed
        self.n = sum(len(members) for members in strata)
        self._step = max(1, _ENTRIES_AT_ONCE // max(1, self.n))
        self._only_block: Floats | None = None

    def __iter__(self) -> Iterator[Floats]:
        """Weights of one block of draws after the other, (b, n)."""
        if self._only_block is not None:
            yield self._only_block
            return
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.num, self._step):
            block = draw_counts(rng, self.strata, min(self._step, self.num - start), self.n)
            if len(block) == self.num:
                self._only_block = block
            yield block

    def of(self, statistic: Statistic) -> Floats:
        """The statistic of every draw, (num,)."""
        return np.concatenate([statistic(block) for block in self])


def strata_of(label: Floats, kind: str) -> list[Rows]:
    """What keeps its size in every draw: the classes, or the events of survival.

    Labels that several subjects cannot all keep at once (many labels, a quantity), and rows that
    are scores already, are drawn as one.
    """
    if kind in ("binary", "multiclass", "ordinal"):
        return [np.flatnonzero(label == level) for level in np.unique(label)]
    if kind == "survival":
        return [np.flatnonzero(label[:, 1] == event) for event in np.unique(label[:, 1])]
    return [np.arange(len(label))]


def draw_counts(rng: np.random.Generator, strata: Sequence[Rows], draws: int, n: int) -> Floats:
    """How often each of ``n`` rows is drawn, (draws, n); each stratum keeps its size."""
    counts = np.zeros((draws, n))
    row = np.arange(draws)[:, None]
    for members in strata:
        size = len(members)
        drawn = rng.integers(0, size, size=(draws, size)) + row * size
        counts[:, members] = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return counts


def percentile(drawn: Floats, *, coverage: float = 0.95) -> Bounds:
    """Percentile interval; a draw that does not define the statistic is left out."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Bounds(np.nan, np.nan)
    tail = 50.0 * (1.0 - coverage)
    low, high = np.percentile(known, [tail, 100.0 - tail])
    return Bounds(float(low), float(high))


def bca(
    value: float, drawn: Floats, left_out: Sequence[Floats], *, coverage: float = 0.95
) -> Bounds:
    """Bias-corrected and accelerated interval (Efron 1987; Efron and Tibshirani 1993, 14.3).

    Args:
        value: The statistic of the rows as they are.
        drawn: Of every draw.
        left_out: Of the rows without each subject, by stratum: see :func:`jackknife`.
        coverage: Nominal, two-sided.

    Returns:
        NaN where all draws lie on one side of the value, a jackknife value is not defined, or the
        acceleration is out of all measure.
    """
    known = drawn[np.isfinite(drawn)]
    below = (np.mean(known < value) + np.mean(known <= value)) / 2 if len(known) else 0.0
    a = acceleration(left_out)
    if not (0.0 < below < 1.0 and np.isfinite(a)):
        return Bounds(np.nan, np.nan)
    bias = _NORMAL.inv_cdf(float(below))
    ends = []
    for tail in ((1 - coverage) / 2, (1 + coverage) / 2):
        shifted = bias + _NORMAL.inv_cdf(tail)
        if a * shifted >= 1:
            return Bounds(np.nan, np.nan)
        ends.append(100 * _NORMAL.cdf(bias + shifted / (1 - a * shifted)))
    low, high = np.percentile(known, ends)
    return Bounds(float(low), float(high))


def acceleration(left_out: Sequence[Floats]) -> float:
    """Skewness of the influence of single subjects, of several strata; 0 where there is none."""
    influence = [(len(values) - 1) * (values.mean() - values) for values in left_out]
    third = sum(float((u**3).sum()) / len(u) ** 3 for u in influence)
    second = sum(float((u**2).sum()) / len(u) ** 2 for u in influence)
    return third / (6 * second**1.5) if second != 0 else 0.0


def jackknife(statistic: Statistic, strata: Sequence[Rows]) -> list[Floats]:
    """The statistic without each subject, by stratum; a stratum of one subject is not left out."""
    n = sum(len(members) for members in strata)
    step = max(1, _ENTRIES_AT_ONCE // max(1, n))
    found = []
    for members in strata:
        if len(members) < 2:
            continue
        parts = []
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            weight = np.ones((len(rows), n))
            weight[np.arange(len(rows)), rows] = 0.0
            parts.append(statistic(weight))
        found.append(np.concatenate(parts))
    return found


def jackknife_error(left_out: Sequence[Floats]) -> float:
    """Standard error from the statistic without each subject, by stratum."""
    parts = [(len(one) - 1) / len(one) * ((one - one.mean()) ** 2).sum() for one in left_out]
    return float(np.sqrt(sum(parts))) if parts else float("nan")


def logit_normal(value: float, standard_error: float, *, coverage: float = 0.95) -> Bounds:
    """Normal interval on the log-odds of a share, which never leaves (0, 1).

    Returns:
        NaN where the share is 0 or 1 or its standard error is not defined.
    """
    if not (0.0 < value < 1.0 and np.isfinite(standard_error)):
        return Bounds(np.nan, np.nan)
    middle = np.log(value) - np.log1p(-value)
    reach = _NORMAL.inv_cdf((1 + coverage) / 2) * standard_error / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(middle - reach))), 1 / (1 + np.exp(-(middle + reach)))
    return Bounds(float(low), float(high))
