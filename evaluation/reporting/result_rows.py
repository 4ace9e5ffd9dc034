"""The rows of a task's results: scores, spread, comparisons, few-shot curves, uncertainty."""

from collections.abc import Iterator
from typing import Any

from evaluation.reporting.content import Task
from evaluation.reporting.numbers import share_interval
from evaluation.reporting.results import (
    Calibration,
    Comparison,
    Conformal,
    FewShotCurve,
    FractionLine,
    ModelResult,
    Score,
    Sets,
    Shuffled,
)
from evaluation.statistics.kinds import FINE_TUNED, TRAINED

INTERVAL, DRAWS = "95%", "5-95% over draws"

Cells = dict[str, Any]


def result_rows(row: ModelResult, metric: str) -> Iterator[Cells]:
    for score in row.scores:
        yield {"section": "scores", **_score(score)}
        if score.specificity is not None:
            reached = {"metric": "specificity_reached", "value": score.specificity}
            yield {"section": "scores", **reached}
    for one in row.by_output:
        n = {"n": one.n, "positives": one.positives} if one.n is not None else {}
        yield {
            "section": "outputs",
            "metric": f"{metric}.by_output",
            "setting": f"output = {one.output}",
            "method": one.method,
            "reason": one.reason,
            **n,
            **_ends(one.value, one.low, one.high, INTERVAL),
        }
    for name, limits in (("DeLong", row.delong), ("percentile bootstrap", row.bootstrap)):
        if limits is not None:
            ends = _ends(row.scores[0].value, limits.low, limits.high, INTERVAL)
            yield {"section": "spread", "metric": metric, "method": name, **ends}
    spreads = {"training_spread": (row.training_spread, "2.5-97.5% over training sets", "")}
    spreads["folds"] = (row.folds, INTERVAL, "Nadeau-Bengio")
    for name, (spread, interval, method) in spreads.items():
        if spread is not None:
            at = {"section": "spread", "setting": f"num = {spread.num}", "method": method}
            ends = _ends(spread.mean, spread.low, spread.high, interval)
            yield {**at, "metric": f"{metric}.{name}.mean", **ends}
            yield {**at, "metric": f"{metric}.{name}.sd", "method": "", "value": spread.sd}
    if row.calibration is not None:
        yield from _calibration_rows(row.calibration)
    if row.conformal is not None:
        yield from _conformal_rows(row.conformal)
    if row.risk_coverage is not None:
        area = row.risk_coverage.area
        yield {"section": "conformal", "metric": "risk_coverage.area", "value": area}
        points = zip(row.risk_coverage.coverage, row.risk_coverage.risk, strict=True)
        for coverage, risk in points:
            at = {"section": "conformal", "setting": f"coverage = {coverage:.4g}"}
            yield {**at, "metric": "risk_coverage.risk", "value": risk}


def _score(score: Score) -> Cells:
    found = {"metric": score.metric, "method": score.method, "reason": score.reason}
    ends = _ends(score.value, score.low, score.high, INTERVAL)
    return {**found, "coverage": score.coverage, **ends}


def _ends(value: float | None, low: float | None, high: float | None, interval: str) -> Cells:
    whole = low is not None and high is not None
    return {"value": value, "low": low, "high": high, "interval": interval if whole else ""}


def _calibration_rows(found: Calibration) -> Iterator[Cells]:
    at = {"section": "calibration"}
    fitted = {"metric": "temperature", "value": found.temperature}
    yield {**at, **fitted, "setting": f"fitted on = {found.fitted_on}"}
    for when, quality in (("before", found.before), ("after", found.after)):
        for name in ("ece", "ece_by_chance", "nll", "brier"):
            yield {**at, "metric": f"{name}.{when}", "value": getattr(quality, name)}
        for number, one in enumerate(quality.bins, start=1):
            inside = {**at, "setting": f"bin = {number}", "n": one.n, "positives": None}
            yield {**inside, "metric": f"reliability.mean_score.{when}", "value": one.mean_score}
            yield {**inside, "metric": f"reliability.rate.{when}", "value": one.rate}


def _conformal_rows(found: Conformal) -> Iterator[Cells]:
    whole = {"": found} | {
        f"{column} = {value}": sets
        for column, values in found.by_group.items()
        for value, sets in values.items()
    }
    for setting, sets in whole.items():
        at = {"section": "groups" if setting else "conformal", "setting": setting, "n": sets.n}
        at |= {"positives": None}
        yield {**at, "metric": f"conformal_{found.level:g}.coverage", **_coverage(sets)}
        yield {**at, "metric": f"conformal_{found.level:g}.mean_size", "value": sets.mean_size}


def _coverage(sets: Sets | Conformal) -> Cells:
    if sets.coverage is None or not sets.n:
        return {"value": sets.coverage}
    low, high = share_interval(sets.coverage, sets.n)
    return {**_ends(sets.coverage, low, high, INTERVAL), "method": "Wilson"}


def shuffled_row(check: Shuffled) -> Cells:
    se = "" if check.se is None else f", standard error = {check.se:.4g}"
    verdict = {True: "passed", False: "failed", None: "not made"}[check.passed]
    return {
        "section": "scores",
        "model": check.model,
        "protocol": check.protocol,
        "metric": f"{check.metric}.shuffled_labels: {verdict}",
        "setting": f"shuffles = {check.num}{se}",
        "value": check.mean,
        "reason": check.reason,
    }


def comparison_rows(task: Task) -> Iterator[Cells]:
    for one in task.results.comparisons:
        setting = f"against by = {one.b_protocol or one.protocol}"
        yield from _difference_rows(one, section="comparisons", setting=setting)
    for one in task.results.fractions.comparisons if task.results.fractions else ():
        setting = f"fraction = {one.fraction:g}"
        yield from _difference_rows(one, section="fractions", setting=setting)


def _difference_rows(one: Comparison, *, section: str, setting: str) -> Iterator[Cells]:
    at = {
        "section": section,
        "model": one.a,
        "against": one.b,
        "protocol": one.protocol,
        "setting": setting,
        "n": one.n,
        "reason": one.reason,
    }
    ends = _ends(one.difference, one.low, one.high, INTERVAL)
    yield {**at, "metric": f"{one.metric}.difference", "method": "paired bootstrap", **ends}
    for name in ("p", "p_holm", "p_delong", "detectable"):
        value = getattr(one, name)
        if value is not None:
            yield {**at, "metric": f"{one.metric}.difference.{name}", "value": value}


def fraction_rows(line: FractionLine, metric: str) -> Iterator[Cells]:
    for point in line.points:
        yield {
            "section": "fractions",
            "model": line.model,
            "kind": TRAINED,
            "protocol": FINE_TUNED,
            "metric": metric,
            "setting": f"fraction = {point.fraction:g}, training subjects = {point.num_train}",
            "n": point.n,
            "positives": point.positives,
            "method": point.method,
            "coverage": point.coverage,
            "reason": point.reason,
            **_ends(point.value, point.low, point.high, INTERVAL),
        }


def curve_rows(curve: FewShotCurve, task: Task) -> Iterator[Cells]:
    metric = task.results.metric
    named: Cells = {"model": curve.model, "kind": curve.kind, "protocol": curve.protocol}
    named |= {"n": task.results.n}
    for point in curve.points:
        at = {
            **named,
            "section": f"few_shot.{point.unit}",
            "setting": f"{point.unit} = {point.x:g}, draws = {point.draws or 0}",
        }
        ends = _ends(point.mean, point.low, point.high, DRAWS)
        yield {**at, "metric": f"{metric}.few_shot", "reason": point.reason, **ends}
        if point.sd is not None:
            yield {**at, "metric": f"{metric}.few_shot.sd", "value": point.sd}
        if point.difference is not None:
            ends = _ends(point.difference, point.difference_low, point.difference_high, DRAWS)
            against = task.results.few_shot.reference if task.results.few_shot else None
            yield {**at, "metric": f"{metric}.few_shot.difference", "against": against, **ends}
    units = {point.unit for point in curve.points}
    unit = "shots" if "shots" in units else "fraction"
    ends = _ends(curve.area, curve.area_low, curve.area_high, DRAWS)
    yield {**named, "section": f"few_shot.{unit}", "metric": f"{metric}.few_shot.area", **ends}
