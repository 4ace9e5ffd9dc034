"""Every number of the report as data: a row per number (CSV), the content as a tree (JSON)."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evaluation.reporting.content import Content, Task
from evaluation.reporting.few_shot import FewShotPoint
from evaluation.reporting.tables import Score
from evaluation.reporting.words import settings

# `interval` says what low and high are; `setting` is the number of shots or a point of a grid.
COLUMNS = (
    "store",
    "task",
    "model",
    "kind",
    "protocol",
    "split",
    "metric",
    "setting",
    "n",
    "positives",
    "value",
    "low",
    "high",
    "interval",
    "reason",
)
DIGITS = 6
BOOTSTRAP, DRAWS = "95% bootstrap over subjects", "5-95% over draws"


def csv_text(contents: Sequence[Content]) -> str:
    """Long form: one row per number, an empty cell where a column does not apply."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for content in contents:
        for row in _rows(content):
            writer.writerow(_rounded(row))
    return buffer.getvalue()


def json_text(contents: Sequence[Content]) -> str:
    """The content of the report without its pictures."""
    trees = []
    for content in contents:
        tree = asdict(content)
        del tree["cohort_pictures"], tree["reconstructions"]
        trees.append(tree)
    whole = {"schema_version": 1, "stores": trees}
    return json.dumps(_rounded(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(content: Content) -> Iterator[dict[str, Any]]:
    for task in content.tasks:
        for row in _task_rows(task):
            yield {"store": content.name, "task": task.name} | row
    for model in content.models:
        for name, value in model.provenance.items():
            if not isinstance(value, str):
                named = {"store": content.name, "model": model.name, "kind": model.kind}
                yield named | {"metric": f"provenance.{name}", "value": value}
    for name, curve in content.curves.items():
        for step, loss in zip(curve["steps"], curve["loss"], strict=True):
            at = {"setting": f"step = {step}", "metric": "training_loss", "value": loss}
            yield {"store": content.name, "model": name, "kind": "backbone"} | at
    for check in content.checks:
        found = {"metric": f"leakage.{check['check']}", "value": check["count"]}
        named = {"task": check["task"], "model": check["model"], "reason": check["detail"]}
        yield {"store": content.name} | named | found


def _task_rows(task: Task) -> Iterator[dict[str, Any]]:
    for split, n in task.card["n"].items():
        positives = (task.card.get("positives") or {}).get(split)
        yield {"split": split, "metric": "subjects", "value": n, "positives": positives}
    for line in task.table:
        named = {"model": line.model, "kind": line.kind, "protocol": line.protocol}
        named |= {"split": line.split}
        for score in line.scores:
            yield named | _score(score)
    for curve in task.few_shot:
        named = {"model": curve.model, "kind": curve.kind, "protocol": "few_shot"}
        yield from (named | cells for point in curve.points for cells in _point(point, task))
    for one in task.selections:
        for entry in one["grid"]:
            setting = {name: value for name, value in entry.items() if name != "score"}
            yield {
                "model": one["model"],
                "protocol": one["protocol"],
                "metric": f"selection.{task.card['metric']}",
                "setting": settings(setting),
                "value": entry["score"],
            }
    for one in task.skipped:
        yield {name: one.get(name) for name in ("model", "protocol", "reason")}


def _score(score: Score) -> dict[str, Any]:
    row = asdict(score)
    del row["is_best"]
    return row | {"interval": BOOTSTRAP if score.low is not None else ""}


def _point(point: FewShotPoint, task: Task) -> Iterator[dict[str, Any]]:
    """The mean over draws, and where there is a reference the paired difference to it."""
    n = max((row.scores[0].n for row in task.table), default=None)
    shared: dict[str, Any] = {
        "split": task.split,
        "setting": f"shots = {point.shots}, draws = {point.draws}",
        "n": n,
        "interval": DRAWS if point.mean is not None else "",
    }
    mean = {"value": point.mean, "low": point.low, "high": point.high, "reason": point.reason}
    yield shared | {"metric": "auroc"} | mean
    if point.difference is not None:
        limits = {"low": point.difference_low, "high": point.difference_high}
        metric = {"metric": "auroc_difference_to_reference", "value": point.difference}
        yield shared | metric | limits


def _rounded(value: Any) -> Any:
    """Six decimals: past them a number is of this machine's arithmetic, not of the data."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
