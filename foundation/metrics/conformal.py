"""What a score is good for when it may say "I do not know": conformal sets, risk and coverage.

Split conformal prediction (Vovk et al. 2005; Sadinle, Lei and Wasserman 2019): a set holds every
class whose probability is at least a threshold, and the threshold is such that the true class was
in the set of ``level`` of the subjects it was calibrated on. A new subject of the same population
is then covered with at least that probability, whatever the model; a group of subjects need not
be, so coverage is counted by group. Of the scores that could order the classes, the plain
probability gives the smallest sets on average. For a quantity the set is an interval around the
prediction, as wide on each side as the quantile of the absolute errors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Sets(NamedTuple):
    """The conformal set of each subject.

    Attributes:
        covered: Whether it holds the truth, (n,).
        size: Number of classes in it, or the width of the interval, (n,). Infinite where so few
            subjects calibrate that only everything is sure enough.
    """

    covered: NDArray[np.bool_]
    size: Floats


class RiskCoverage(NamedTuple):
    """Error rate among the most confident share of subjects, and its mean over all shares."""

    coverage: Floats
    risk: Floats
    area: float


def conformal_sets(
    calibration: tuple[Floats, Floats], label: Floats, score: Floats, *, level: float = 0.9
) -> Sets:
    """Sets of new subjects.

    Args:
        calibration: Label and score of other subjects than these.
        label: Class index, (n,).
        score: Probability of the positive class (n,), or of each class (n, K).
        level: Wanted coverage.
    """
    limit = conformal_quantile(nonconformity(*calibration), level=level)
    grid = class_probabilities(score)
    inside = 1 - grid <= limit
    return Sets(inside[np.arange(len(label)), label.astype(int)], inside.sum(axis=1).astype(float))


def conformal_intervals(
    calibration: tuple[Floats, Floats], label: Floats, score: Floats, *, level: float = 0.9
) -> Sets:
    """Intervals around the prediction of a quantity, label and score (n,)."""
    limit = conformal_quantile(np.abs(np.subtract(*calibration)), level=level)
    return Sets(np.abs(label - score) <= limit, np.full(len(label), 2 * limit))


def cross_conformal(
    label: Floats, score: Floats, *, folds: Sequence[Rows], level: float = 0.9, classes: bool
) -> Sets:
    """Sets of each fold of subjects, calibrated on the other folds; no model is trained again."""
    make = conformal_sets if classes else conformal_intervals
    covered, size = np.zeros(len(label), dtype=np.bool_), np.zeros(len(label))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(label)), fold)
        found = make((label[others], score[others]), label[fold], score[fold], level=level)
        covered[fold], size[fold] = found
    return Sets(covered, size)


def nonconformity(label: Floats, score: Floats) -> Floats:
    """1 less the probability given to the true class, (n,)."""
    truth: Floats = class_probabilities(score)[np.arange(len(label)), label.astype(int)]
    return 1 - truth


def conformal_quantile(values: Floats, *, level: float) -> float:
    """The value that a new one stays below with probability ``level``; infinite below it all."""
    place = int(np.ceil((len(values) + 1) * level - 1e-9))
    return float(np.sort(values)[place - 1]) if place <= len(values) else float("inf")


def class_probabilities(score: Floats) -> Floats:
    """(n, K); the probability of the positive class becomes those of both."""
    return np.stack([1 - score, score], axis=1) if score.ndim == 1 else score


def risk_coverage(label: Floats, score: Floats, *, num_points: int = 20) -> RiskCoverage:
    """Error rate of the most probable class when the least sure subjects are passed over.

    Tied subjects are taken in any order, so each counts the mean error of its tie. The area is the
    mean risk over all n shares (Geifman and El-Yaniv 2017); the curve is read at ``num_points``.
    """
    grid = class_probabilities(score)
    wrong = (grid.argmax(axis=1) != label).astype(np.float64)
    doubt, place = np.unique(-grid.max(axis=1), return_inverse=True)
    mean_error = np.bincount(place, wrong, len(doubt)) / np.bincount(place, minlength=len(doubt))
    risk = np.cumsum(mean_error[np.sort(place)]) / np.arange(1, len(label) + 1)
    kept = np.unique(np.ceil(np.linspace(0, len(label), num_points + 1)[1:]).astype(int))
    return RiskCoverage(kept / len(label), risk[kept - 1], float(risk.mean()))
