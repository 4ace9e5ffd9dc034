"""What one model's probabilities are worth: calibration, conformal sets, risk and coverage.

Whatever is fitted for it (a temperature, a threshold, a quantile) is fitted on validation when the
test split is shown; where only validation or cross-validation is shown, on the other folds of
subjects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.bootstrap import strata_of
from foundation.metrics import calibration, conformal
from foundation.metrics.binary import threshold_at_specificity
from foundation.metrics.by_name import decided

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

VALIDATION, CROSS_FITTED = "validation", "cross-fitted"
CONFORMAL_LEVEL = 0.9
_CLASSES = ("binary", "multiclass", "ordinal")
_FEWEST = 2  # of a class, or of subjects, so that the other folds still hold one


@dataclass(frozen=True)
class Shown:
    """One model by one protocol on the shown split.

    Attributes:
        kind: Of the task.
        label: As in ``metrics.py``.
        score: As in ``metrics.py``.
        subjects: n pseudonyms.
        validation: Label and score of the validation split, when another one is shown.
        seed: Of the folds.
        protocol: The one that made the scores.
    """

    kind: str
    label: Floats
    score: Floats
    subjects: tuple[str, ...]
    validation: tuple[Floats, Floats] | None = None
    seed: int = 0
    protocol: str = ""
    folds: list[Rows] = field(init=False)

    def __post_init__(self) -> None:
        strata = strata_of(self.label, self.kind)
        object.__setattr__(self, "folds", calibration.stratified_folds(strata, seed=self.seed))

    @property
    def fitted_on(self) -> str:
        """Where temperatures, thresholds and quantiles come from."""
        return CROSS_FITTED if self.validation is None else VALIDATION

    @property
    def can_be_fitted(self) -> bool:
        """Whether what they are fitted on holds more than one class, a binary one both."""
        label = self.label if self.validation is None else self.validation[0]
        fewest = _FEWEST if self.validation is None else 1
        if self.kind not in _CLASSES:
            return len(label) >= fewest
        counts = np.unique(label, return_counts=True)[1]
        if self.kind == "binary":
            return len(counts) == 2 and int(counts.min()) >= fewest
        return len(counts) > 1


def decisions_at_specificity(shown: Shown) -> Floats | None:
    """0 or 1 of each subject at 90% specificity of others; None where there are too few."""
    if not shown.can_be_fitted:
        return None
    if shown.validation is not None:
        return decided(shown.score, threshold_at_specificity(*shown.validation))
    calls = np.zeros(len(shown.label))
    for fold in shown.folds:
        others = np.setdiff1d(np.arange(len(shown.label)), fold)
        limit = threshold_at_specificity(shown.label[others], shown.score[others])
        calls[fold] = decided(shown.score[fold], limit)
    return calls


def calibration_entry(shown: Shown) -> dict[str, Any] | None:
    """Before and after temperature scaling, of one class of several."""
    if shown.kind not in ("binary", "multiclass") or not _usable(shown):
        return None
    if shown.validation is not None:
        temperature = calibration.fit_temperature(*shown.validation)
        after = calibration.apply_temperature(shown.score, temperature)
    else:
        after, temperature = calibration.cross_tempered(shown.label, shown.score, folds=shown.folds)
    return {
        "temperature": temperature,
        "fitted_on": shown.fitted_on,
        "before": _as_stored(calibration.calibration_of(shown.label, shown.score)),
        "after": _as_stored(calibration.calibration_of(shown.label, after)),
    }


def conformal_entry(shown: Shown, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Coverage and size of conformal sets, of all subjects and by group."""
    if shown.kind != "regression" and not (shown.kind in _CLASSES and _usable(shown)):
        return None
    if not shown.can_be_fitted:
        return None
    level, classes = CONFORMAL_LEVEL, shown.kind != "regression"
    if shown.validation is not None:
        make = conformal.conformal_sets if classes else conformal.conformal_intervals
        sets = make(shown.validation, shown.label, shown.score, level=level)
    else:
        sets = conformal.cross_conformal(
            shown.label, shown.score, folds=shown.folds, level=level, classes=classes
        )
    everyone = np.ones(len(shown.label), dtype=np.bool_)
    return {
        "level": level,
        **_counted(sets, everyone),
        "by_group": {
            column: _by_value(sets, [values.get(subject) for subject in shown.subjects])
            for column, values in groups.items()
        },
        "calibrated_on": shown.fitted_on,
    }


def risk_coverage_entry(shown: Shown) -> dict[str, Any] | None:
    """The risk-coverage curve, of one class of several."""
    if shown.kind not in _CLASSES or not _is_probability(shown.score):
        return None
    curve = conformal.risk_coverage(shown.label, shown.score)
    return {"coverage": curve.coverage.tolist(), "risk": curve.risk.tolist(), "area": curve.area}


def _usable(shown: Shown) -> bool:
    known = shown.score if shown.validation is None else shown.validation[1]
    return shown.can_be_fitted and _is_probability(shown.score) and _is_probability(known)


def _is_probability(score: Floats) -> bool:
    return bool(len(score) and score.min() >= 0 and score.max() <= 1)


def _as_stored(found: calibration.Calibration) -> dict[str, Any]:
    return found._asdict() | {"bins": [each._asdict() for each in found.bins]}


def _by_value(sets: conformal.Sets, values: list[Any]) -> dict[str, dict[str, Any]]:
    names = np.array(["unknown" if value is None else str(value) for value in values])
    return {str(name): _counted(sets, names == name) for name in np.unique(names)}


def _counted(sets: conformal.Sets, rows: NDArray[np.bool_]) -> dict[str, Any]:
    size = float(sets.size[rows].mean())
    return {
        "coverage": float(sets.covered[rows].mean()),
        "mean_size": size if np.isfinite(size) else None,
        "n": int(rows.sum()),
    }
