"""The primary metric of many candidates over the same subjects, for choosing one of them."""

import numpy as np
from numpy.typing import NDArray

from foundation.metrics.by_name import METRICS, StatisticsError, measure

Floats = NDArray[np.float64]

_PAIRS_AT_ONCE = 4_000_000


def measures(label: Floats, scores: Floats, metric: str) -> Floats:
    """A metric of each of B candidates, (B,); NaN where these subjects do not define it.

    Args:
        label: (m,) or (m, L), as in ``Task.label``.
        scores: (B, m, K).
        metric: By name; the areas under the ROC curve are computed for all candidates at once.
    """
    if metric == "auroc" and scores.shape[2] == 1:
        return _aurocs(label, scores[:, :, 0])
    if metric == "macro_auroc":
        return _macro_aurocs(label, scores)
    return np.array([_measure(label, score, metric) for score in scores])


def qualities(label: Floats, scores: Floats, metric: str) -> Floats:
    """The same, larger is better: minus infinity where there is none, rounded, so ties are ties."""
    values = np.round(measures(label, scores, metric), 12)
    if METRICS[metric].lower_is_better:
        values = -values
    return np.where(np.isnan(values), -np.inf, values)


def as_score(quality: float, metric: str) -> float | None:
    """A quality as its metric; None where there is none."""
    if not np.isfinite(quality):
        return None
    return float(-quality if METRICS[metric].lower_is_better else quality)


def _measure(label: Floats, score: Floats, metric: str) -> float:
    try:
        return measure(label, score, metric)
    except StatisticsError:
        return float("nan")


def _macro_aurocs(label: Floats, scores: Floats) -> Floats:
    """Mean over the classes or labels of which these subjects hold both sides."""
    columns = label
    if label.ndim == 1:
        columns = (label[:, None] == np.arange(scores.shape[2])).astype(np.float64)
    both = [number for number, column in enumerate(columns.T) if {0.0, 1.0} <= {*column.tolist()}]
    if not both:
        return np.full(len(scores), np.nan)
    each = []
    for number in both:
        known = np.isfinite(columns[:, number])
        each.append(_aurocs(columns[known, number], scores[:, known, number]))
    mean: Floats = np.mean(each, axis=0)
    return mean


def _aurocs(label: Floats, scores: Floats) -> Floats:
    """Share of the pairs of a positive and a negative that are in order, ties one half, (B,)."""
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    pairs = positive.shape[1] * negative.shape[1]
    if not pairs:
        return np.full(len(scores), np.nan)
    step = max(1, _PAIRS_AT_ONCE // pairs)
    found = []
    for start in range(0, len(scores), step):
        higher = positive[start : start + step, :, None]
        lower = negative[start : start + step, None, :]
        wins = np.count_nonzero(higher > lower, axis=(1, 2))
        ties = np.count_nonzero(higher == lower, axis=(1, 2))
        found.append((wins + 0.5 * ties) / pairs)
    return np.where(np.isfinite(scores).all(axis=1), np.concatenate(found), np.nan)
