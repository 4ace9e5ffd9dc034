"""What is told of an outcome: the cells of its row, calibrated, each with how unsure it is.

| kind | cells | uncertainty |
|---|---|---|
| binary, multiclass, ordinal | ``label``, ``probability_CLASS`` | ``uncertainty``; ``set`` |
| multilabel | ``label``, ``probability_LABEL`` | ``uncertainty``; ``set_LABEL`` |
| regression | ``value`` | ``low``, ``high`` |
| survival | ``risk``, ``survival_DAYSd``, ``median_days`` | ``low_days``, ``high_days`` |
| segmentation | ``volume_CLASS_ml`` | ``uncertainty`` |

Beside probabilities stands ``calibrated``: ``yes`` where they are at the temperature that held-out
subjects gave, ``no`` where these were too few: then they are what the network says, often too sure.
Of several labels it names those that are, if not all.

``uncertainty`` of classes is the entropy of the told probabilities over that of a tie, from 0
(certain) to 1 (no idea); of several labels the mean over them. ``set`` is the conformal set: the
classes that hold the truth for nine of ten new subjects of the population it was fitted on, and
``low`` to ``high`` the interval that does. ``low_days`` to ``high_days`` is the 80% range of the
predicted time to the event: until when one of ten, and nine of ten, have had it. Of a segmentation
``uncertainty`` is the same entropy, averaged over the voxels by how likely each is no background.
What a model cannot tell, for want of calibration or because a curve does not fall that low, is NaN
in a column of numbers and empty in one of text.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from foundation.finetuning.calibration import (
    Calibration,
    apply_calibration,
    conformal_classes,
)
from foundation.finetuning.target import Target
from foundation.metrics.by_name import Floats
from foundation.metrics.conformal import class_probabilities
from foundation.predicting.outcome import Outcome

Cell = str | float
Cells = Mapping[str, Cell]

RANGE = (0.1, 0.9)
"""Shares that have had the event at the ends of the range of a time."""
_AND = "; "


def cells_of(outcome: Outcome, target: Target, calibration: Calibration | None) -> Cells:
    """The cells of one row; their names depend on the target only.

    Args:
        outcome: Of a scan, or the mean over the scans of a subject.
        target: What it is of.
        calibration: Of the model, if any.
    """
    if target.kind == "segmentation":
        return _of_masks(outcome, target)
    if target.kind == "survival":
        return _of_survival(outcome, target)
    if target.kind == "regression":
        return _of_value(outcome, calibration)
    if target.kind == "multilabel":
        return _of_labels(outcome["scores"], target, calibration)
    return _of_classes(outcome["scores"], target, calibration)


def entropy(shares: Floats) -> float:
    """Of probabilities (K,) over that of a tie, 0 to 1."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum() / math.log(len(shares)))


def time_at(survival: Floats, *, share: float, ends_days: Sequence[float]) -> float:
    """When the curve falls to ``share``, on straight lines between the ends; NaN if it does not."""
    curve = np.concatenate([[1.0], survival])
    days = np.concatenate([[0.0], ends_days])
    below = np.flatnonzero(curve <= share)
    if not len(below):
        return math.nan
    after = int(below[0])
    before = after - 1
    part = (curve[before] - share) / (curve[before] - curve[after])
    return float(days[before] + part * (days[after] - days[before]))


def _of_classes(scores: Floats, target: Target, calibration: Calibration | None) -> Cells:
    shares = _shares(apply_calibration(scores[None], calibration, target)[0])
    limit = calibration.limits[0] if calibration and calibration.limits else None
    raw = scores if len(scores) == 1 else scores[None]
    return {
        "label": target.classes[int(shares.argmax())],
        **{
            f"probability_{name}": float(share)
            for name, share in zip(target.classes, shares, strict=True)
        },
        "calibrated": _calibrated(calibration, target),
        "uncertainty": entropy(shares),
        "set": "" if limit is None else _chosen(target.classes, conformal_classes(raw, limit)[0]),
    }


def _of_labels(scores: Floats, target: Target, calibration: Calibration | None) -> Cells:
    chances = apply_calibration(scores[None], calibration, target)[0]
    limits = calibration.limits if calibration and calibration.limits else (None,) * len(scores)
    sets = {
        f"set_{name}": ""
        if limit is None
        else _chosen(("0", "1"), conformal_classes(score[None], limit)[0])
        for name, score, limit in zip(target.classes, scores, limits, strict=True)
    }
    return {
        "label": _chosen(target.classes, chances >= 0.5),
        **{
            f"probability_{name}": float(chance)
            for name, chance in zip(target.classes, chances, strict=True)
        },
        "calibrated": _calibrated(calibration, target),
        "uncertainty": float(np.mean([entropy(_shares(each[None])) for each in chances])),
        **sets,
    }


def _of_value(outcome: Outcome, calibration: Calibration | None) -> Cells:
    value = float(outcome["scores"][0])
    limit = calibration.limits[0] if calibration and calibration.limits else None
    half = math.nan if limit is None else limit
    return {"value": value, "low": value - half, "high": value + half}


def _of_survival(outcome: Outcome, target: Target) -> Cells:
    survival, ends = outcome["survival"], target.ends_days
    first, last = (time_at(survival, share=1 - share, ends_days=ends) for share in RANGE)
    return {
        "risk": float(outcome["scores"][0]),
        **{f"survival_{end:.10g}d": float(s) for end, s in zip(ends, survival, strict=True)},
        "median_days": time_at(survival, share=0.5, ends_days=ends),
        "low_days": first,
        "high_days": last,
    }


def _of_masks(outcome: Outcome, target: Target) -> Cells:
    volumes = zip(target.outputs, outcome["volumes_ml"], strict=True)
    return {
        **{f"volume_{name}_ml": float(volume) for name, volume in volumes},
        "uncertainty": float(outcome["entropy"][0]),
    }


def _calibrated(calibration: Calibration | None, target: Target) -> str:
    """Whether all told probabilities are; of several labels, if only some, which."""
    temperatures = calibration.temperatures if calibration else ()
    fitted = [temperature is not None for temperature in temperatures]
    if not any(fitted):
        return "no"
    return "yes" if all(fitted) else _chosen(target.classes, fitted)


def _shares(scores: Floats) -> Floats:
    """(K,) probabilities of all classes; a single one is that of the positive class."""
    return scores if len(scores) > 1 else class_probabilities(scores)[0]


def _chosen(names: Sequence[str], inside: Sequence[bool]) -> str:
    return _AND.join(name for name, is_in in zip(names, inside, strict=True) if is_in)
