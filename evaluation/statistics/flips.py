"""What swapping two models' scores of a subject does to the difference of a metric.

Under the hypothesis that two models are alike, each subject's two scores may be swapped. For most
metrics the difference after any swaps is linear in the swaps: with s = +1 (kept) or -1 (swapped)
of each subject it is ``s @ effects``. So ten thousand permutations are one matrix product.

For a mean of per-subject values that is plain. For metrics of pairs (AUROC, concordance) a pair
counts +p with both kept and -p with both swapped, +q with the first alone kept and -q with the
second alone: that is (s1 + s2) p / 2 + (s1 - s2) q / 2, so it is linear as well. Agreement and Dice
are made of sums that are linear; what is left is computed swap by swap.

Two models' scores have different scales (a calibrated probability, a distance), so for metrics of
order the scores are turned into midranks within each model first: the metric does not change, and
only then is a swap of two scores a fair exchange.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.delong import midranks
from foundation.metrics.binary import ratio
from foundation.metrics.by_name import METRICS
from foundation.metrics.continuous import expected_level, nearest_level
from foundation.metrics.multiclass import mean_of_defined, one_vs_rest
from foundation.metrics.rows import undefined_outputs
from foundation.metrics.survival import known_order

Floats = NDArray[np.float64]

_ROWS_AT_ONCE = 500


def flipped_differences(
    label: Floats, a: Floats, b: Floats, metric: str, *, signs: Floats
) -> Floats:
    """The metric of a less that of b after each row of swaps, signs (P, n) -> (P,)."""
    kind = METRICS[metric].kind_of(label, a)
    effects = flip_effects(label, a, b, metric)
    if effects is not None:
        return signs @ effects
    if kind == "segmentation":
        return _of_dice(a, b, signs) - _of_dice(b, a, signs)
    if metric == "quadratic_kappa":
        return _of_kappa(label, a, b, signs) - _of_kappa(label, b, a, signs)
    return _one_by_one(label, a, b, metric, signs)


def flip_effects(label: Floats, a: Floats, b: Floats, metric: str) -> Floats | None:
    """What each subject adds to the difference of the metric, kept (+) or swapped (-), (n,).

    Returns:
        None for a metric whose difference is not linear in the swaps.
    """
    kind = METRICS[metric].kind_of(label, a)
    if metric == "auroc":
        return _of_order(label[:, None], a[:, None], b[:, None])
    if metric == "macro_auroc":
        labels = one_vs_rest(label, a.shape[1]) if kind == "multiclass" else label
        return _of_order(labels, a, b)
    if metric == "concordance":
        return _of_concordance(label, a, b, kind)
    return _of_means(label, a, b, metric, kind)


def _one_by_one(label: Floats, a: Floats, b: Floats, metric: str, signs: Floats) -> Floats:
    whole = np.ones((1, len(label)))
    compute = METRICS[metric]
    found = []
    for sign in signs:
        kept = sign > 0 if a.ndim == 1 else (sign > 0)[:, None]
        one, two = np.where(kept, a, b), np.where(kept, b, a)
        found.append(float((compute(label, one, whole) - compute(label, two, whole))[0]))
    return np.array(found)


def _sums(a: Floats, b: Floats, signs: Floats) -> Floats:
    """The sum over subjects of a where the sign is +, of b where it is -: (P,) or (P, K)."""
    total: Floats = (a + b).sum(axis=0) / 2 + signs @ ((a - b) / 2)
    return total


def _of_dice(a: Floats, b: Floats, signs: Floats) -> Floats:
    """Dice where a class may be in neither mask by one model and not by the other."""
    one, two = (score.reshape(len(score), -1) for score in (a, b))
    overlap = _sums(np.nan_to_num(one), np.nan_to_num(two), signs)
    known, other = (np.isfinite(each).astype(np.float64) for each in (one, two))
    count = _sums(known, other, signs)
    # Sums of halves are exact, so a class that nobody has counts exactly 0.
    return mean_of_defined(ratio(overlap, count).T)


def _of_kappa(label: Floats, a: Floats, b: Floats, signs: Floats) -> Floats:
    """Quadratic kappa from the sums it is made of."""
    n, one, two = len(label), nearest_level(a), nearest_level(b)
    apart = _sums((one - label) ** 2, (two - label) ** 2, signs) / n
    mean, square = _sums(one, two, signs) / n, _sums(one**2, two**2, signs) / n
    by_chance = label.var() + square - mean**2 + (label.mean() - mean) ** 2
    return 1.0 - ratio(apart, by_chance)


def _of_order(labels: Floats, a: Floats, b: Floats) -> Floats:
    """Mean over the defined labels of the effects on each AUROC."""
    defined = [
        k for k in range(labels.shape[1]) if k not in undefined_outputs(labels, a, "multilabel")
    ]
    effects = np.zeros(len(labels))
    for k in defined:
        known = np.flatnonzero(np.isfinite(labels[:, k]))
        label = labels[known, k]
        effects[known] += _of_auroc(label, a[known, k], b[known, k]) / len(defined)
    return effects


def _of_auroc(label: Floats, a: Floats, b: Floats) -> Floats:
    a, b = midranks(np.stack([a, b]))
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    pairs = len(positive) * len(negative)
    effects = np.zeros(len(label))
    for one, two, sign in ((a, b, 1.0), (b, a, -1.0)):
        # Of each positive: the share of negatives below it, by the same model and by the other.
        for other, mixed in ((one, 1.0), (two, -1.0)):
            above, below = _wins(one[positive], other[negative])
            effects[positive] += sign * above / (2 * pairs)
            effects[negative] += sign * mixed * below / (2 * pairs)
    return effects


def _wins(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    """How many of ``low`` each of ``high`` beats, and of ``high`` beat each of ``low``."""
    ordered = np.sort(low)
    wins = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    ordered = np.sort(high)
    losses = np.searchsorted(ordered, low, "left") + np.searchsorted(ordered, low, "right")
    return wins / 2.0, len(high) - losses / 2.0


def _of_concordance(label: Floats, a: Floats, b: Floats, kind: str) -> Floats:
    if kind == "survival":
        time, event = label.T
    else:
        time, event = label, np.ones(len(label))
    if kind == "ordinal":
        a, b = expected_level(a), expected_level(b)
    # A risk is high where the time is short; a predicted value is high where the label is high.
    a, b = midranks(np.stack([a, b]) * (1.0 if kind == "survival" else -1.0))
    effects, comparable = np.zeros(len(label)), 0.0
    for rows in _blocks(len(label)):
        pairs = known_order(time, event, rows)
        comparable += pairs.sum()
        same = pairs * (_wins_pairwise(a[rows], a) - _wins_pairwise(b[rows], b))
        mixed = pairs * (_wins_pairwise(a[rows], b) - _wins_pairwise(b[rows], a))
        effects[rows] += (same + mixed).sum(axis=1) / 2
        effects += (same - mixed).sum(axis=0) / 2
    return effects / comparable


def _wins_pairwise(first: Floats, second: Floats) -> Floats:
    return (np.sign(first[:, None] - second[None, :]) + 1) / 2


def _blocks(n: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(n, start + _ROWS_AT_ONCE)) for start in range(0, n, _ROWS_AT_ONCE)]


def _of_means(label: Floats, a: Floats, b: Floats, metric: str, kind: str) -> Floats | None:
    """Effects on a metric that is a mean of per-subject values, up to a factor."""
    n = len(label)
    if metric == "r2":
        spread = ((label - label.mean()) ** 2).sum()
        return ((b - label) ** 2 - (a - label) ** 2) / spread
    if metric == "mean_absolute_error" and kind == "regression":
        return (np.abs(a - label) - np.abs(b - label)) / n
    if metric in ("brier", "nll", "accuracy") or kind == "retrieval":
        values = _of_each(label, a, metric) - _of_each(label, b, metric)
        return np.nan_to_num(values) / n if _same_gaps(a, b) else None
    if kind == "segmentation" and _same_gaps(a, b):
        one, two = (score.reshape(n, -1) for score in (a, b))
        count = np.isfinite(one).sum(axis=0)
        shares = np.nan_to_num(one - two) / np.maximum(count, 1)
        return shares.sum(axis=1) / (count > 0).sum()
    return None


def _of_each(label: Floats, score: Floats, metric: str) -> Floats:
    """The metric of each subject on its own, (n,)."""
    compute = METRICS[metric]
    blocks = _blocks(len(label))
    return np.concatenate([compute(label[rows], score[rows], np.eye(len(rows))) for rows in blocks])


def _same_gaps(a: Floats, b: Floats) -> bool:
    return bool(np.array_equal(np.isnan(a), np.isnan(b)))
