"""What a model's scores are worth, fitted on subjects it was not trained on, kept beside its head.

A temperature makes probabilities mean what they say (Guo et al. 2017), a conformal limit says which
classes, or which interval, hold the truth for a new subject of the same population in nine cases
of ten. The limit is fitted on the scores as they are and not on tempered ones: the temperature has
seen the same subjects, and the promise of split conformal prediction holds for what has not.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from foundation.finetuning.target import Target
from foundation.metrics.calibration import MAX_TEMPERATURE, apply_temperature, fit_temperature
from foundation.metrics.conformal import (
    class_probabilities,
    conformal_quantile,
    nonconformity,
)
from recipes.load import Section

Floats = NDArray[np.float64]
FittedOn = Literal["validation", "out of fold"]

LEVEL = 0.9
FEWEST = 20
"""Subjects that a temperature is fitted on; a conformal limit says itself when it has too few."""
_NONE_FOR = {
    "survival": "a survival is told by its curve, which nothing is fitted for afterwards",
    "segmentation": "a mask has no probability that is told",
}
_CLASSES = ("binary", "multiclass", "ordinal")
_NEAR_BOUND = 1.01


class Calibration(Section):
    """Of one model; ``None`` where nothing could be fitted, and ``reason`` says why.

    A multi-label model has one temperature and one limit for each label, any other at most one.
    """

    fitted_on: FittedOn
    num_subjects: int = Field(ge=0)
    level: float = Field(default=LEVEL, gt=0, lt=1)
    temperatures: tuple[float | None, ...] = ()
    limits: tuple[float | None, ...] = Field(
        default=(),
        description="a class is in the set while 1 less its probability is at most this; of a "
        "quantity the half width of the interval, in its unit",
    )
    reason: str = Field(default="", description="why something is missing")

    @model_validator(mode="after")
    def _check(self) -> "Calibration":
        if any(each is not None and each <= 0 for each in self.temperatures):
            raise ValueError(f"a temperature is above 0, got {self.temperatures}")
        if any(each is not None and each < 0 for each in self.limits):
            raise ValueError(f"a limit is at least 0, got {self.limits}")
        return self


def fit_calibration(
    label: ArrayLike, scores: ArrayLike, target: Target, *, fitted_on: FittedOn
) -> Calibration:
    """Fit on held-out subjects, one row each.

    Args:
        label: As a task holds it: (n,), of several labels (n, L) with NaN where one is missing, of
            a survival (n, 2).
        scores: (n, K), as ``foundation.finetuning.links`` gives them.
        target: What they are of.
        fitted_on: Validation subjects, or each by the fold that did not train on it.
    """
    truth = np.asarray(label, dtype=np.float64)
    found = np.asarray(scores, dtype=np.float64)
    count = len(found)
    if target.kind in _NONE_FOR:
        return Calibration(fitted_on=fitted_on, num_subjects=count, reason=_NONE_FOR[target.kind])
    if target.kind == "regression":
        limit = _limit(np.abs(truth - found[:, 0]))
        reason = "" if limit is not None else f"{count} subjects are too few for an interval"
        return Calibration(fitted_on=fitted_on, num_subjects=count, limits=(limit,), reason=reason)
    fitted = [_of_classes(*each) for each in _by_label(truth, found, target)]
    reasons = dict.fromkeys(reason for _, _, reason in fitted if reason)
    return Calibration(
        fitted_on=fitted_on,
        num_subjects=count,
        temperatures=tuple(temperature for temperature, _, _ in fitted),
        limits=tuple(limit for _, limit, _ in fitted),
        reason="; ".join(reasons),
    )


def apply_calibration(scores: ArrayLike, calibration: Calibration | None, target: Target) -> Floats:
    """Scores at their temperature; those without one are as they were.

    Args:
        scores: (n, K).
        calibration: None for a model that has none.
        target: What they are of.

    Returns:
        (n, K): probabilities again; what is no probability is not touched.
    """
    found = np.array(scores, dtype=np.float64)
    if calibration is None or target.kind not in (*_CLASSES, "multilabel"):
        return found
    for number, temperature in enumerate(calibration.temperatures):
        if temperature is None:
            continue
        if found.shape[1] > 1 and target.kind != "multilabel":
            return apply_temperature(found, temperature)
        found[:, number] = apply_temperature(found[:, number], temperature)
    return found


def conformal_classes(scores: ArrayLike, limit: float) -> NDArray[np.bool_]:
    """Which classes the set of each subject holds.

    The most probable one is in every set, even where the limit would leave the set empty: that can
    only cover more.

    Args:
        scores: (n,) of the positive class or (n, K), not tempered.
        limit: Of the calibration.

    Returns:
        (n, K) bool, of (n,) scores (n, 2).
    """
    shares = class_probabilities(np.asarray(scores, dtype=np.float64))
    inside: NDArray[np.bool_] = 1 - shares <= limit
    inside[np.arange(len(shares)), shares.argmax(axis=1)] = True
    return inside


def _by_label(truth: Floats, scores: Floats, target: Target) -> list[tuple[Floats, Floats, str]]:
    """Label and score of what is calibrated by itself, and its name if there are several."""
    if target.kind == "binary":
        return [(truth, scores[:, 0], "")]
    if target.kind != "multilabel":
        return [(truth, scores, "")]
    known = ~np.isnan(truth)
    return [
        (truth[known[:, each], each], scores[known[:, each], each], f"{name}: ")
        for each, name in enumerate(target.outputs)
    ]


def _of_classes(truth: Floats, scores: Floats, name: str) -> tuple[float | None, float | None, str]:
    """Temperature, limit, and why one of them is missing."""
    temperature, reason = _temperature(truth, scores)
    limit = _limit(nonconformity(truth, scores)) if len(truth) else None
    reasons = [reason] if reason else []
    if limit is None:
        reasons.append(f"{len(truth)} subjects are too few for a set")
    return temperature, limit, name + "; ".join(reasons) if reasons else ""


def _temperature(truth: Floats, scores: Floats) -> tuple[float | None, str]:
    if len(truth) < FEWEST:
        return None, f"{len(truth)} subjects are too few for a temperature, {FEWEST} are asked for"
    if len(np.unique(truth)) < 2:
        return None, "all subjects are of one class, which no temperature can be fitted on"
    found = fit_temperature(truth, scores)
    if found * MAX_TEMPERATURE < _NEAR_BOUND:
        return None, "every subject is told apart, so that any temperature is too high"
    return found, ""


def _limit(values: Floats) -> float | None:
    found = conformal_quantile(values, level=LEVEL)
    return found if np.isfinite(found) else None
