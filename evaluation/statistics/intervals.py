"""The interval of each metric: the one place that chooses how it is made, by measured coverage.

``coverage.json`` holds what each method covers in a simulation (see ``coverage.py``); the choices
below are read off it, and a test holds them to it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics import bootstrap
from evaluation.statistics.bootstrap import Bounds, Draws, Statistic
from evaluation.statistics.delong import logit_interval, perfect_interval
from evaluation.statistics.drawing import SharedDraws, statistic_of
from foundation.metrics.by_name import checked
from foundation.metrics.rows import StatisticsError

Floats = NDArray[np.float64]

PERCENTILE, BCA, LOGIT = "percentile bootstrap", "BCa bootstrap", "logit bootstrap"
JACKKNIFE = "logit jackknife"
DELONG, PERFECT = "logit DeLong", "score interval of a perfect AUROC"

METHOD: dict[str, str] = {
    "auroc": DELONG,
    # A high average precision hangs on a few subjects: every bootstrap falls short of it.
    "average_precision": JACKKNIFE,
    "macro_average_precision": JACKKNIFE,
}
"""By metric; all others by BCa, which covers as much as the percentiles or more, and in small
cohorts clearly more."""

MOST_LEFT_OUT = 1000
"""Subjects that are left out one by one; of more, the percentiles cover as well."""

_FLAT = "every draw gave this value, so the interval is narrower than the truth"
_FEW = "too few subjects for an interval"


class Interval(NamedTuple):
    """A score with its 95% interval; what is missing is None, with the reason.

    Attributes:
        value: The metric of the rows as they are.
        low: Lower end.
        high: Upper end.
        method: How the interval was made.
        reason: Why something is missing, or is not what it seems.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str | None
    reason: str | None


def interval(
    label: ArrayLike,
    score: ArrayLike,
    metric: str,
    *,
    num_bootstraps: int = 2000,
    seed: int = 0,
    draws: SharedDraws | None = None,
) -> Interval:
    """A metric over one row per subject with its interval over subjects.

    Args:
        label: As in ``metrics.py``.
        score: As in ``metrics.py``.
        metric: A name of ``METRICS``.
        num_bootstraps: Draws of n subjects with replacement.
        seed: Of the draws.
        draws: Shared with other models, instead of the two above.
    """
    try:
        truth, value = checked(label, score, metric)
    except StatisticsError as error:
        return Interval(None, None, None, None, str(error))
    statistic = statistic_of(truth, value, metric)
    point = float(statistic(np.ones((1, len(truth))))[0])
    if not np.isfinite(point):
        return Interval(None, None, None, None, "not defined by these subjects")
    if draws is None:
        draws = SharedDraws(num=num_bootstraps, seed=seed)
    drawn_by = draws.of(truth, value, metric)
    bounds, method = _bounds(truth, value, metric, point, statistic, drawn_by)
    if not np.isfinite(bounds).all():
        return Interval(point, None, None, None, _FEW)
    # Only a constant score makes the same value in every draw exact.
    is_flat = bounds.high - bounds.low < 1e-12 and not _is_constant(value)
    return Interval(point, bounds.low, bounds.high, method, _FLAT if is_flat else None)


def bounds_by(
    method: str, point: float, statistic: Statistic, draws: Draws, *, drawn: Floats | None = None
) -> Bounds:
    """The interval by one of the resampling methods; NaN where the method gives none."""
    if method == JACKKNIFE:
        left_out = bootstrap.jackknife(statistic, draws.strata)
        return bootstrap.logit_normal(point, bootstrap.jackknife_error(left_out))
    drawn = draws.of(statistic) if drawn is None else drawn
    if method == BCA:
        return bootstrap.bca(point, drawn, bootstrap.jackknife(statistic, draws.strata))
    if method == LOGIT:
        spread = drawn[np.isfinite(drawn)]
        error = float(spread.std(ddof=1)) if len(spread) > 1 else float("nan")
        return bootstrap.logit_normal(point, error)
    return bootstrap.percentile(drawn)


def method_of(metric: str, n: int) -> str:
    """How the interval of a metric over n subjects is made, where the method gives one."""
    method = METHOD.get(metric, BCA)
    return PERCENTILE if method != DELONG and n > MOST_LEFT_OUT else method


def _is_constant(score: Floats) -> bool:
    """Whether all subjects have the same score, of each output its own."""
    return bool(np.array_equal(score, np.broadcast_to(score[:1], score.shape), equal_nan=True))


def auroc_bounds(label: Floats, score: Floats, point: float) -> Bounds:
    """By DeLong on the log-odds; where the AUROC is 0 or 1, as of a perfect one."""
    positive = int(label.sum())
    if point in (0.0, 1.0):
        low, high = perfect_interval(positive, len(label) - positive)
        return Bounds(low, high) if point == 1.0 else Bounds(1 - high, 1 - low)
    return logit_interval(label, score)


def _bounds(
    label: Floats, score: Floats, metric: str, point: float, statistic: Statistic, draws: Draws
) -> tuple[Bounds, str]:
    method = method_of(metric, len(label))
    if method == DELONG:
        return auroc_bounds(label, score, point), PERFECT if point in (0.0, 1.0) else DELONG
    found = bounds_by(method, point, statistic, draws)
    if method == PERCENTILE or np.isfinite(found).all():
        return found, method
    return bounds_by(PERCENTILE, point, statistic, draws), PERCENTILE
