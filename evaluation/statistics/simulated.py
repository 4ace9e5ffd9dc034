"""Cohorts whose true score is known, to measure what an interval covers.

The AUROC cohorts are clustered as real ones are: a subject has one to four scans that share the
subject's own effect, and the score of a subject is the mean over scans, as the evaluation pools
them. Scores are binormal, so the true AUROC has a closed form. The other metrics have one cohort
each, at the subject, with a closed form or an integral; three are averaged over a large sample.
"""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.metrics.binary import weighted_auroc
from foundation.metrics.continuous import quadratic_kappa

Floats = NDArray[np.float64]
Generator = np.random.Generator

MOST_SCANS = 4
SUBJECT_SHARE = 0.5
"""Of the variance of one scan's score, what the scans of a subject share."""
_NORMAL = NormalDist()
_LARGE = 400_000


class Cohort(NamedTuple):
    """A population to draw cohorts from.

    Attributes:
        metric: What is measured.
        truth: Its true value.
        draw: ``(rng, n)`` -> label and score of n subjects, as in ``metrics.py``.
        prevalence: Of positives, or None.
    """

    metric: str
    truth: float
    draw: Callable[[Generator, int], tuple[Floats, Floats]]
    prevalence: float | None = None


class Scans(NamedTuple):
    """Scores of scans with the subject each is of, and the subjects' labels."""

    label: Floats
    score: Floats
    subject: NDArray[np.int64]


def clustered(auroc: float, prevalence: float) -> Cohort:
    """Subjects with several scans, pooled by the mean; ``auroc`` is that of subjects."""
    shift = _shift_for(auroc)

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        scans = draw_scans(rng, n, shift=shift, prevalence=prevalence)
        pooled = np.bincount(scans.subject, scans.score) / np.bincount(scans.subject)
        return scans.label, pooled

    return Cohort("auroc", auroc, draw, prevalence)


def draw_scans(rng: Generator, n: int, *, shift: float, prevalence: float) -> Scans:
    """One to four scans of each of n subjects; the positives are a fixed share."""
    label = (np.arange(n) < max(1, round(prevalence * n))).astype(np.float64)
    subject = np.repeat(np.arange(n), rng.integers(1, MOST_SCANS + 1, n))
    shared = sqrt(SUBJECT_SHARE) * rng.standard_normal(n) + shift * label
    own = sqrt(1 - SUBJECT_SHARE) * rng.standard_normal(len(subject))
    return Scans(label, shared[subject] + own, subject)


def auroc_of_subjects(shift: float) -> float:
    """True AUROC of scores pooled by subject, over the numbers of scans of both of a pair."""
    counts = np.arange(1, MOST_SCANS + 1)
    noise = (1 - SUBJECT_SHARE) * (1 / counts[:, None] + 1 / counts[None, :])
    spread = np.sqrt(2 * SUBJECT_SHARE + noise)
    return float(np.mean([_NORMAL.cdf(shift / each) for each in spread.ravel()]))


def auroc_of_scans(shift: float) -> float:
    """True AUROC of single scans of two subjects."""
    return _NORMAL.cdf(shift / sqrt(2))


def _shift_for(auroc: float) -> float:
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if auroc_of_subjects(middle) < auroc else (low, middle)
    return low


def clustered_scans(auroc: float, prevalence: float) -> Cohort:
    """The same scans taken as rows, as if each were of a subject of its own."""
    shift = _shift_for(auroc)

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        scans = draw_scans(rng, n, shift=shift, prevalence=prevalence)
        return scans.label[scans.subject], scans.score

    return Cohort("auroc", auroc_of_scans(shift), draw, prevalence)


def other_cohorts() -> list[Cohort]:
    """One of each other metric that has an interval."""
    return [
        _decisions("balanced_accuracy", 1.3, threshold=0.65),
        _decisions("sensitivity_at_90_specificity", 1.6, threshold=_NORMAL.inv_cdf(0.9)),
        _average_precision(1.2, 0.3),
        *_probabilities(2.0, 4.0),
        *_quantities(0.5),
        _classes(1.2),
        _levels(),
        *_survival(0.8),
        _overlaps(),
    ]


def _binormal(rng: Generator, n: int, shift: float, prevalence: float) -> tuple[Floats, Floats]:
    label = (np.arange(n) < max(1, round(prevalence * n))).astype(np.float64)
    return label, rng.standard_normal(n) + shift * label


def _decisions(metric: str, shift: float, *, threshold: float) -> Cohort:
    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        label, score = _binormal(rng, n, shift, 0.3)
        return label, (score >= threshold).astype(np.float64)

    sensitivity = _NORMAL.cdf(shift - threshold)
    balanced = (sensitivity + _NORMAL.cdf(threshold)) / 2
    truth = balanced if metric == "balanced_accuracy" else sensitivity
    return Cohort(metric, truth, draw, 0.3)


def _average_precision(shift: float, prevalence: float) -> Cohort:
    """Precision at each threshold, averaged over the scores of positives."""
    at = np.linspace(-6, 7, 8001)
    positive = np.array([_NORMAL.cdf(shift - each) for each in at]) * prevalence
    negative = np.array([_NORMAL.cdf(-each) for each in at]) * (1 - prevalence)
    density = np.array([_NORMAL.pdf(each - shift) for each in at])
    precision = positive / (positive + negative)
    truth = float((precision * density).sum() * (at[1] - at[0]))
    return Cohort(
        "average_precision", truth, lambda rng, n: _binormal(rng, n, shift, prevalence), prevalence
    )


def _probabilities(a: float, b: float) -> list[Cohort]:
    """Calibrated probabilities from a beta distribution, and what comes of them."""

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        chance = rng.beta(a, b, n)
        return (rng.random(n) < chance).astype(np.float64), chance

    chance = np.random.default_rng(0).beta(a, b, _LARGE)
    entropy = -(chance * np.log(chance) + (1 - chance) * np.log1p(-chance)).mean()
    squared = a * b / ((a + b) * (a + b + 1))
    prevalence = a / (a + b)
    return [
        Cohort("brier", squared, draw, prevalence),
        Cohort("nll", float(entropy), draw, prevalence),
    ]


def _quantities(r2: float) -> list[Cohort]:
    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        predicted = sqrt(r2) * rng.standard_normal(n)
        return predicted + sqrt(1 - r2) * rng.standard_normal(n), predicted

    error = sqrt(1 - r2) * sqrt(2 / np.pi)
    return [Cohort("r2", r2, draw), Cohort("mean_absolute_error", error, draw)]


def _classes(shift: float) -> Cohort:
    """Three classes; a subject's own class has the shifted score."""

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        label = (np.arange(n) % 3).astype(np.float64)
        score = rng.standard_normal((n, 3))
        score[np.arange(n), label.astype(int)] += shift
        return label, score

    return Cohort("macro_auroc", _NORMAL.cdf(shift / sqrt(2)), draw)


def _levels() -> Cohort:
    """Four ordered levels, predicted with an error of about one."""

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        label = (np.arange(n) % 4).astype(np.float64)
        level = np.clip(np.round(label + rng.normal(0, 0.9, n)), 0, 3).astype(int)
        return label, np.eye(4)[level]

    many = draw(np.random.default_rng(0), _LARGE)
    truth = float(quadratic_kappa(*many, np.ones((1, _LARGE)))[0])
    return Cohort("quadratic_kappa", truth, draw)


def _survival(log_hazard: float) -> list[Cohort]:
    """Exponential times by a proportional hazard, about a third of them censored."""

    def times(rng: Generator, n: int) -> tuple[Floats, Floats, Floats]:
        risk = rng.standard_normal(n)
        return risk, rng.exponential(np.exp(-log_hazard * risk)), rng.exponential(2.0, n)

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        risk, event, censored = times(rng, n)
        label = np.stack([np.minimum(event, censored), event <= censored], axis=1)
        return label.astype(np.float64), risk

    rng = np.random.default_rng(0)
    (one, risk), (two, other) = draw(rng, _LARGE), draw(rng, _LARGE)
    first = (one[:, 0] < two[:, 0]) & (one[:, 1] > 0)
    second = (two[:, 0] < one[:, 0]) & (two[:, 1] > 0)
    right = np.where(first, risk > other, other > risk)
    risk, event, censored = times(rng, _LARGE)
    over = np.quantile(event[event <= censored], (0.25, 0.5, 0.75))
    by_time = [weighted_auroc(risk, *_sides(event, when))[0] for when in over]
    return [
        Cohort("concordance", float(right[first | second].mean()), draw),
        Cohort("time_dependent_auroc", float(np.mean(by_time)), draw),
    ]


def _sides(event: Floats, when: float) -> tuple[Floats, Floats]:
    before = (event <= when).astype(np.float64)[None]
    return before, 1 - before


def _overlaps() -> Cohort:
    """Dice of two classes of each subject, some of them without one of the two."""

    def draw(rng: Generator, n: int) -> tuple[Floats, Floats]:
        score = rng.beta(6, 2, (n, 2))
        score[rng.random((n, 2)) < 0.2] = np.nan
        return np.zeros(n), score

    return Cohort("dice", 0.75, draw)
