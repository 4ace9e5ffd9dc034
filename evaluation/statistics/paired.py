"""Two models on the same subjects, and many models over many tasks.

The difference of two models has an interval (the same subjects drawn for both), a p value
(sign-flip permutation), and a size below which this many subjects could hardly have shown it.
Many comparisons are corrected by Holm; many tasks are put together by average ranks, as an AUROC
and an R2 have no common mean.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.bootstrap import Draws, percentile
from evaluation.statistics.delong import midranks
from evaluation.statistics.drawing import statistic_of
from evaluation.statistics.flips import flipped_differences
from foundation.metrics.by_name import checked

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_ROUNDING = 1e-12


class Comparison(NamedTuple):
    """Model a less model b.

    Attributes:
        difference: Of the metric, a - b.
        low: Lower end of the 95% interval, by the same draws of subjects; this, the upper end and
            ``detectable`` are NaN where no draw moves the difference.
        high: Upper end.
        p: Sign-flip permutation, two-sided.
        standard_error: Of the difference, over the draws.
        detectable: Smallest true difference that this many subjects would show in four of five
            studies, at p < .05.
    """

    difference: float
    low: float
    high: float
    p: float
    standard_error: float
    detectable: float


class Ranks(NamedTuple):
    """Average ranks over tasks; 1 is the best.

    Attributes:
        ranks: One per model, (M,).
        num_tasks: Those on which every model has a score.
        friedman_p: Of all models being alike; None with fewer than three models or two tasks.
        critical_difference: Of two average ranks at .05 (Nemenyi); None as above.
    """

    ranks: Floats
    num_tasks: int
    friedman_p: float | None
    critical_difference: float | None


def compare(
    label: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    metric: str,
    *,
    draws: Draws,
    num_permutations: int = 2000,
    seed: int = 0,
    drawn: Sequence[Floats] | None = None,
) -> Comparison:
    """Compare two models by one metric.

    Args:
        label: As in ``metrics.py``.
        a: Score of the first model, the same subjects in the same order.
        b: Score of the second.
        metric: A name of ``METRICS``.
        draws: Of these subjects.
        num_permutations: Random flips.
        seed: Of the flips.
        drawn: The metric of every draw for a and for b, where it is known already.

    Raises:
        StatisticsError: The rows do not define the metric.
    """
    truth, one = checked(label, a, metric)
    _, two = checked(label, b, metric)
    if drawn is None:
        drawn = [draws.of(statistic_of(truth, score, metric)) for score in (one, two)]
    apart: Floats = drawn[0] - drawn[1]
    whole = np.ones((1, len(truth)))
    difference = float(
        (statistic_of(truth, one, metric)(whole) - statistic_of(truth, two, metric)(whole))[0]
    )
    known = apart[np.isfinite(apart)]
    error = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    p = permutation_p(truth, one, two, metric, num_permutations=num_permutations, seed=seed)
    if not error > _ROUNDING:  # two perfect models, or one and a constant: not 0, but unknown
        return Comparison(difference, np.nan, np.nan, p, error, np.nan)
    return Comparison(difference, *percentile(apart), p, error, detectable_difference(error))


def permutation_p(
    label: Floats, a: Floats, b: Floats, metric: str, *, num_permutations: int, seed: int
) -> float:
    """Two-sided p of no difference: in each permutation every subject's two scores may swap.

    The observed order counts as one permutation, so p is never 0.
    """
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (num_permutations, len(label))) * 2.0 - 1.0
    observed, *permuted = flipped_differences(
        label, a, b, metric, signs=np.concatenate([np.ones((1, len(label))), signs])
    )
    # Sums of the same numbers in another order differ by rounding.
    as_far = np.abs(np.array(permuted)) >= abs(observed) - _ROUNDING
    return float((1 + as_far.sum()) / (1 + num_permutations))


def detectable_difference(
    standard_error: float, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference that is found with this power by a two-sided test."""
    return (_NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)) * standard_error


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down p values, in the order given; a NaN stays and is not counted as a test."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def average_ranks(scores: ArrayLike, *, lower_is_better: ArrayLike = False) -> Ranks:
    """Rank the models on each task and average the ranks.

    Args:
        scores: Primary metric, (tasks, models); a task where a model has none (NaN) is left out.
        lower_is_better: One per task, or one for all.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    sign = np.where(np.broadcast_to(np.asarray(lower_is_better), len(table)), 1.0, -1.0)
    complete = np.isfinite(table).all(axis=1)
    num_tasks, num_models = int(complete.sum()), table.shape[1]
    if not num_tasks:
        return Ranks(np.full(num_models, np.nan), 0, None, None)
    ranks = midranks(table[complete] * sign[complete, None])
    if num_models < 3 or num_tasks < 2:
        return Ranks(ranks.mean(axis=0), num_tasks, None, None)
    return Ranks(
        ranks.mean(axis=0), num_tasks, _friedman_p(ranks), _critical(num_models, num_tasks)
    )


def _friedman_p(ranks: Floats) -> float:
    from scipy.special import chdtrc

    tasks, models = ranks.shape
    between = tasks * float(((ranks.mean(axis=0) - (models + 1) / 2) ** 2).sum())
    within = float(((ranks - (models + 1) / 2) ** 2).sum()) / (tasks * (models - 1))
    return float(chdtrc(models - 1, between / within)) if within > 0 else 1.0


def _critical(models: int, tasks: int) -> float:
    """Nemenyi's critical difference (Demsar 2006)."""
    return _normal_range(models) / np.sqrt(2) * float(np.sqrt(models * (models + 1) / (6 * tasks)))


def _normal_range(models: int, *, quantile: float = 0.95) -> float:
    """Quantile of the range of as many standard normal values: the studentised range of a known
    variance. By bisection, as ``scipy.stats`` takes seconds to import."""
    from scipy.special import ndtr

    z = np.linspace(-8.0, 8.0, 801)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = models * np.trapezoid(density * (ndtr(z) - ndtr(z - middle)) ** (models - 1), z)
        low, high = (middle, high) if inside < quantile else (low, middle)
    return high
