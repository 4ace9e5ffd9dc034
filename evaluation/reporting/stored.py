"""From ``statistics/TASK.json`` to results: every field is taken over by name, none by default.

What is not a field of a result never reaches a page, so no list of subjects can slip in.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from evaluation.reporting.results import (
    Bin,
    Calibration,
    Comparison,
    Conformal,
    FewShot,
    FewShotCurve,
    FewShotPoint,
    FractionLine,
    FractionPoint,
    Fractions,
    Limits,
    ModelResult,
    OutputScore,
    Quality,
    Results,
    RiskCoverage,
    Score,
    Sets,
    Shuffled,
    Spread,
)

Taken = TypeVar("Taken")
MOST_GROUPS = 24
"""Values of a group column that are shown: a column of more tells subjects apart, not groups."""


def read_results(stored: Mapping[str, Any]) -> Results:
    """Take over what ``statistics/TASK.json`` holds.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: Its layout is another one.
    """
    metrics = tuple(stored["metrics"])
    few_shot, shuffled = stored.get("few_shot"), stored.get("shuffled")
    fractions = stored.get("fractions")
    return _take(
        Results,
        stored,
        metric=stored["metric"],
        metrics=metrics,
        split=stored["split"],
        n=stored["n"],
        outputs=tuple(stored["outputs"]),
        num_bootstraps=stored["num_bootstraps"],
        seed=stored["seed"],
        rows=tuple(_row(entry, metrics) for entry in stored["models"]),
        comparisons=_comparisons(stored),
        few_shot=_few_shot(few_shot) if few_shot else None,
        shuffled=tuple(_take(Shuffled, entry) for entry in _listed(shuffled)),
        fractions=_fractions(fractions) if fractions else None,
    )


def _comparisons(entry: Mapping[str, Any]) -> tuple[Comparison, ...]:
    return tuple(_take(Comparison, one, p_holm=None) for one in entry["comparisons"])


def _fractions(entry: Mapping[str, Any]) -> Fractions:
    lines = tuple(
        _take(
            FractionLine,
            one,
            points=tuple(_take(FractionPoint, point) for point in one["points"]),
        )
        for one in entry["lines"]
    )
    return Fractions(lines, _comparisons(entry))


def _row(entry: Mapping[str, Any], metrics: tuple[str, ...]) -> ModelResult:
    outputs = (entry.get("by_output") or {}).items()
    return _take(
        ModelResult,
        entry,
        model=entry["model"],
        kind=entry["kind"],
        protocol=entry["protocol"],
        n=entry["n"],
        scores=tuple(_take(Score, entry["scores"][name], metric=name) for name in metrics),
        by_output=tuple(_take(OutputScore, one, output=name) for name, one in outputs),
        delong=_optional(Limits, entry.get("delong")),
        bootstrap=_optional(Limits, entry.get("bootstrap")),
        training_spread=_optional(Spread, entry.get("training_spread")),
        folds=_optional(Spread, entry.get("folds")),
        calibration=_calibration(entry["calibration"]) if entry.get("calibration") else None,
        conformal=_conformal(entry["conformal"]) if entry.get("conformal") else None,
        risk_coverage=_risk(entry["risk_coverage"]) if entry.get("risk_coverage") else None,
    )


def _calibration(entry: Mapping[str, Any]) -> Calibration:
    return _take(
        Calibration, entry, before=_quality(entry["before"]), after=_quality(entry["after"])
    )


def _quality(entry: Mapping[str, Any]) -> Quality:
    return _take(Quality, entry, bins=tuple(_take(Bin, one) for one in entry["bins"]))


def _conformal(entry: Mapping[str, Any]) -> Conformal:
    groups = {
        column: {str(value): _take(Sets, one) for value, one in values.items()}
        for column, values in (entry.get("by_group") or {}).items()
        if len(values) <= MOST_GROUPS
    }
    return _take(Conformal, entry, level=entry["level"], by_group=groups)


def _risk(entry: Mapping[str, Any]) -> RiskCoverage:
    ends = {"coverage": tuple(entry["coverage"]), "risk": tuple(entry["risk"])}
    if len(ends["coverage"]) != len(ends["risk"]):
        raise ValueError("a risk-coverage curve has as many risks as coverages")
    return _take(RiskCoverage, entry, **ends)


def _few_shot(entry: Mapping[str, Any]) -> FewShot:
    curves = tuple(
        _take(
            FewShotCurve,
            one,
            protocol=one.get("protocol") or "linear",
            points=tuple(_take(FewShotPoint, point) for point in one["points"]),
        )
        for one in entry["models"]
    )
    return FewShot(curves, entry.get("reference"), entry.get("reference_protocol"))


def _listed(entry: Any) -> list[Mapping[str, Any]]:
    """One check or several."""
    if not entry:
        return []
    return list(entry) if isinstance(entry, list) else [entry]


def _optional(kind: type[Taken], entry: Mapping[str, Any] | None) -> Taken | None:
    return _take(kind, entry) if entry else None


def _take(kind: type[Taken], entry: Mapping[str, Any], /, **read: Any) -> Taken:
    """The fields of ``kind`` out of ``entry`` by name; ``read`` holds those that were read."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**({name: entry.get(name) for name in names} | read))
