"""Every number of the report as a row that can be traced: what, of whom, on which subjects, how."""

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.reporting.content import Content, Task
from evaluation.reporting.family import Ranks
from evaluation.reporting.numbers import settings
from evaluation.reporting.result_rows import (
    Cells,
    comparison_rows,
    curve_rows,
    fraction_rows,
    result_rows,
    shuffled_row,
)

# `interval` says what low and high are, `method` how they were made; `setting` is an output, a
# number of shots, a group, a bin, or a point of a grid; `against` is the second of a comparison.
COLUMNS = (
    "table",
    "store",
    "task",
    "section",
    "model",
    "against",
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
    "method",
    "coverage",
    "num_bootstraps",
    "seed",
    "warning",
    "reason",
    "store_digest",
    "statistics_digest",
    "predictions_digest",
    "data_digest",
    "model_digest",
)
SHORT_DIGEST = 12


def rows_of(content: Content, ranks: Ranks) -> Iterator[Cells]:
    """All rows of a store; a column that does not apply is left out."""
    digest = content.store_digest[:SHORT_DIGEST]
    for row in _rows(content, ranks):
        model = content.digests.get(row.get("model") or "")
        yield {
            "store": content.name,
            "store_digest": digest,
            "model_digest": (model or "")[:SHORT_DIGEST],
            **row,
        }


def _rows(content: Content, ranks: Ranks) -> Iterator[Cells]:
    for task in content.tasks:
        shared = _task_cells(task)
        for row in _task_rows(task):
            models = [row[name] for name in ("model", "against") if row.get(name)]
            yield shared | row | {"warning": "; ".join(content.warnings(task.name, *models))}
    yield from _rank_rows(content, ranks)
    yield from _model_rows(content)
    for check in content.checks:
        yield {
            "section": "checks",
            "task": check.task,
            "model": check.model,
            "metric": f"{check.check}: {check.status}",
            "value": check.count,
            "reason": "; ".join(text for text in (check.detail, check.reason) if text),
        }


def _task_cells(task: Task) -> Cells:
    results, digests = task.results, task.digests
    found = {
        "statistics_digest": digests.statistics,
        "predictions_digest": digests.predictions,
        "data_digest": digests.data,
    }
    return {
        "task": task.name,
        "split": results.split,
        "num_bootstraps": results.num_bootstraps,
        "seed": results.seed,
        **{name: (value or "")[:SHORT_DIGEST] for name, value in found.items()},
    }


def _task_rows(task: Task) -> Iterator[Cells]:
    for split, n in task.card["n"].items():
        positives = (task.card.get("positives") or {}).get(split)
        counted = {"section": "card", "metric": "subjects", "value": n}
        yield counted | {"split": split, "positives": positives}
    for row in task.results.rows:
        shared: Cells = {"model": row.model, "kind": row.kind, "protocol": row.protocol}
        shared |= {"n": row.n, "positives": row.positives}
        for cells in result_rows(row, task.results.metric):
            yield shared | cells
    for check in task.results.shuffled:
        yield shuffled_row(check)
    yield from comparison_rows(task)
    for curve in task.results.few_shot.curves if task.results.few_shot else ():
        yield from curve_rows(curve, task)
    for line in task.results.fractions.lines if task.results.fractions else ():
        yield from fraction_rows(line, task.results.metric)
    yield from _choice_rows(task)


def _choice_rows(task: Task) -> Iterator[Cells]:
    for one in task.selections:
        for entry in one["grid"]:
            setting = {name: value for name, value in entry.items() if name != "score"}
            yield {
                "section": "selections",
                "model": one["model"],
                "protocol": one["protocol"],
                "split": "",
                "metric": f"{task.card['metric']}.selection",
                "setting": settings(setting),
                "value": entry["score"],
            }
    for one in task.skipped:
        yield {"section": "skipped", **_named(one, ("model", "protocol", "reason"))}


def _named(entry: Mapping[str, Any], names: tuple[str, ...]) -> Cells:
    return {name: entry.get(name) for name in names}


def _rank_rows(content: Content, ranks: Ranks) -> Iterator[Cells]:
    setting = f"tasks = {len(ranks.tasks)}"
    for model, rank in ranks.ranks.items():
        warning = "; ".join(content.rank_warnings(ranks.tasks, model))
        named = {"section": "ranks", "model": model, "setting": setting, "warning": warning}
        yield {**named, "metric": "average_rank", "value": rank}


def _model_rows(content: Content) -> Iterator[Cells]:
    for model in content.models:
        for name, value in model.provenance.items():
            if not isinstance(value, str):
                named = {"section": "models", "model": model.name, "kind": model.kind}
                yield named | {"metric": f"provenance.{name}", "value": value}
    for name, curve in content.curves.items():
        for step, loss in zip(curve["steps"], curve["loss"], strict=True):
            at = {"section": "losses", "model": name, "kind": "backbone"}
            yield at | {"setting": f"step = {step}", "metric": "training_loss", "value": loss}
