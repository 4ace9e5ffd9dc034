"""Do probabilities mean what they say? Temperature scaling, calibration error, reliability bins.

Scores come as probabilities: (n,) of the positive class, or (n, K) of all classes. Their log-odds
are recovered, divided by one temperature, and turned back (Guo et al. 2017). The temperature is
never fitted on the subjects that are scored with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.metrics import binary, multiclass

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

NUM_BINS = 15
MAX_TEMPERATURE = 20.0
"""Temperatures are kept within 1/20 and 20: separable scores would ask for 0."""
_PROBABILITY_FLOOR = 1e-12


class Bin(NamedTuple):
    """Subjects of like scores: their mean score, the rate of what was predicted, how many."""

    mean_score: float
    rate: float
    n: int


class Calibration(NamedTuple):
    """Adaptive expected calibration error, proper scores, and the bins of the diagram.

    Few subjects in a bin are never right by exactly their mean score: ``ece_by_chance`` is the
    error these scores would have on average if each came true as often as it says.
    """

    ece: float
    nll: float
    brier: float
    bins: tuple[Bin, ...]
    ece_by_chance: float


class Tempered(NamedTuple):
    """Scores after temperature scaling, and the temperature (geometric mean over folds)."""

    score: Floats
    temperature: float


def calibration_of(label: Floats, score: Floats) -> Calibration:
    """How well calibrated the scores are.

    With two classes the score of the positive class is compared with the rate of positives; with
    more, the probability of the predicted class with the rate at which it is right.
    """
    predicted, happened = _events(label, score)
    bins = adaptive_bins(happened, predicted)
    metrics = binary if score.ndim == 1 else multiclass
    whole = np.ones((1, len(label)))
    return Calibration(
        expected_error(bins),
        float(metrics.nll(label, score, whole)[0]),
        float(metrics.brier(label, score, whole)[0]),
        bins,
        error_by_chance(predicted),
    )


def adaptive_bins(
    happened: Floats, predicted: Floats, *, num_bins: int = NUM_BINS
) -> tuple[Bin, ...]:
    """Bins that hold equally many subjects, as nearly as tied scores allow: a tie is never cut."""
    return tuple(
        Bin(float(predicted[mine].mean()), float(happened[mine].mean()), int(mine.sum()))
        for mine in _members(predicted, num_bins)
    )


def error_by_chance(
    predicted: Floats, *, num_bins: int = NUM_BINS, draws: int = 500, seed: int = 0
) -> float:
    """Mean calibration error of outcomes that are drawn with just these probabilities."""
    happened = np.random.default_rng(seed).random((draws, len(predicted))) < predicted
    by_bin = _members(predicted, num_bins).astype(np.float64).T
    return float((np.abs((happened - predicted) @ by_bin).sum(axis=1) / len(predicted)).mean())


def _members(predicted: Floats, num_bins: int) -> NDArray[np.bool_]:
    """(bins, n): whose score lies in which bin; an empty bin is left out."""
    _, place, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2)[place]  # rank of the middle of each tie, 0 to n
    number = np.floor(middle / len(predicted) * num_bins).astype(int)
    members: NDArray[np.bool_] = number == np.unique(number)[:, None]
    return members


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of rate and score, by subjects."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.mean_score - each.rate) for each in bins) / total


def fit_temperature(label: Floats, score: Floats) -> float:
    """The temperature with the least negative log-likelihood on these subjects.

    The loss is convex in 1 / temperature: Newton's steps, halved where they leave the bracket.
    """
    logits = _logits(score)
    true = logits[np.arange(len(label)), label.astype(int)].mean()

    def slope(inverse: float) -> tuple[float, float]:
        share = _softmax(logits * inverse)
        mean = (share * logits).sum(axis=1)
        return float(mean.mean() - true), float(
            (share * logits**2).sum(1).mean() - (mean**2).mean()
        )

    low, high, inverse = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE, 1.0
    if slope(low)[0] >= 0:
        return MAX_TEMPERATURE
    if slope(high)[0] <= 0:
        return 1 / MAX_TEMPERATURE
    for _ in range(100):
        value, curvature = slope(inverse)
        low, high = (inverse, high) if value < 0 else (low, inverse)
        step = inverse - value / curvature if curvature > 0 else low
        new = step if low < step < high else (low * high) ** 0.5
        if abs(new - inverse) <= 1e-10 * inverse:
            break
        inverse = new
    return 1 / inverse


def apply_temperature(score: Floats, temperature: float) -> Floats:
    """The probabilities at another temperature; above 1 they move towards equal shares."""
    scaled = _softmax(_logits(score) / temperature)
    return scaled[:, 1] if score.ndim == 1 else scaled


def cross_tempered(label: Floats, score: Floats, *, folds: Sequence[Rows]) -> Tempered:
    """Scale each fold of subjects by a temperature from the other folds."""
    scaled, fitted = score.copy(), []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(label)), fold)
        fitted.append(fit_temperature(label[others], score[others]))
        scaled[fold] = apply_temperature(score[fold], fitted[-1])
    return Tempered(scaled, float(np.exp(np.mean(np.log(fitted)))))


def stratified_folds(strata: Sequence[Rows], *, num_folds: int = 5, seed: int = 0) -> list[Rows]:
    """Disjoint folds of subjects; those of a stratum are dealt out one by one."""
    rng = np.random.default_rng(seed)
    dealt = np.concatenate([rng.permutation(members) for members in strata])
    folds = [np.sort(dealt[start::num_folds]) for start in range(num_folds)]
    return [fold for fold in folds if len(fold)]


def _events(label: Floats, score: Floats) -> tuple[Floats, Floats]:
    if score.ndim == 1:
        return score, label
    return score.max(axis=1), (score.argmax(axis=1) == label).astype(np.float64)


def _logits(score: Floats) -> Floats:
    both = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    return np.log(np.clip(both, _PROBABILITY_FLOOR, None))


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
