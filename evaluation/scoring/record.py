"""What ``run.json`` says of a run, and what an opening of the test split leaves in the ledger."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.backbones.entry import Entry
from evaluation.scoring.config import EvaluationConfig
from evaluation.storing.openings import announce_opening, find_opening, record_opening
from foundation.tasks.describe import count_groups, describe_label, describe_split
from foundation.tasks.labels import is_number
from foundation.tasks.task import Task

MODEL_FIELDS = ("kind", "title", "description", "digest", "provenance", "architecture")


def run_content(
    config: EvaluationConfig,
    *,
    tasks: Sequence[Task],
    entries: Mapping[str, Entry],
    digests: Mapping[str, str],
    selections: Iterable[Mapping[str, Any]],
    skipped: Iterable[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything but the scores themselves; ``digests`` are of the recipe and of all inputs."""
    return {
        "name": config.name,
        "title": config.title,
        "date": _date(config, entries),
        **digests,
        "split": "test" if config.test == "open" else "val",
        "tier": config.tier,
        "seed": config.seed,
        "num_bootstraps": config.amounts.num_bootstraps,
        "tasks": {task.card.name: task_content(task) for task in tasks},
        "models": {name: _model(entry) for name, entry in entries.items()},
        "selections": list(selections),
        "skipped": list(skipped),
        "notes": [*notes, *(note for task in tasks for note in task_notes(task))],
    }


def task_content(task: Task) -> dict[str, Any]:
    """What the report, and the statistics, must know of a task."""
    card, cohort = task.card, task.cohort.config
    parts = [part for part in ("train", "val", "test", "cv") if len(task.rows(part))]
    return {
        "title": card.title,
        "disease": card.disease,
        "kind": card.kind,
        "metric": card.metric,
        "outputs": list(task.outputs),
        "data": cohort.name,
        "data_digest": task.cohort.digest,
        "licence": cohort.licence,
        "source": cohort.source,
        "unit": card.unit,
        "split_provenance": card.split_provenance,
        "protocol_note": describe_split(task),
        "n": {part: len(task.rows(part)) for part in parts},
        "positives": {part: positives(task, part) for part in parts}
        if card.kind in ("binary", "survival")
        else None,
        "label": describe_label(task),
        "groups": count_groups(task),
        "known_floors": card.known_floors,
        "known_leaks": card.known_leaks,
    }


def positives(task: Task, *splits: str) -> int | None:
    """Subjects of class 1, or with an event; None where there is no such thing."""
    label = task.label[task.rows(*splits)]
    if task.card.kind == "binary":
        return int(label.sum())
    return int(label[:, 1].sum()) if task.card.kind == "survival" else None


def announce(config: EvaluationConfig, *, recipe_digest: str) -> str:
    """Note in the ledger that the test split is opened; returns the note for the report."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    is_first = find_opening(config.ledger, recipe_digest) is None
    line = announce_opening(
        config.ledger, date=today, name=config.name, recipe_digest=recipe_digest
    )
    if is_first:
        print(f"the test split is open; commit {config.ledger}", flush=True)
    else:
        print(f"the test split was opened on {line['date']} by this recipe", flush=True)
    return f"The test split was opened on {line['date']}."


def record(
    config: EvaluationConfig, *, recipe_digest: str, statistics: Mapping[str, Mapping[str, Any]]
) -> None:
    """Note in the ledger what was found there."""
    scores = {
        task: [_opened(row, each["metric"]) for row in each["models"]]
        for task, each in statistics.items()
        if each["split"] == "test"
    }
    record_opening(config.ledger, recipe_digest=recipe_digest, scores=scores)


def _opened(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    score = row["scores"][metric]
    return {
        "model": row["model"],
        "protocol": row["protocol"],
        "metric": metric,
        "score": score["value"],
        "interval": [score["low"], score["high"]],
        "n": row["n"],
    }


def _model(entry: Entry) -> dict[str, Any]:
    seen = "unknown" if entry.seen is None else "known"
    return {**{name: getattr(entry, name) for name in MODEL_FIELDS}, "seen": seen}


def _date(config: EvaluationConfig, entries: Mapping[str, Entry]) -> str | None:
    """Of the newest backbone, so that a report made again from the same inputs says the same."""
    finished = [entry.provenance.get("finished") for entry in entries.values()]
    dates = [str(each)[:10] for each in finished if each]
    return max(dates, default=config.date.isoformat() if config.date else None)


def task_notes(task: Task) -> list[str]:
    """What a reader must know of how a task's table was read."""
    title = task.card.title
    notes = [_half_numbers(title, column, task) for column in task.card.floors.clinical]
    if task.num_unlabelled:
        notes.append(f"{title}: {task.num_unlabelled} scans have no label and are left out.")
    return [note for note in notes if note]


def _half_numbers(title: str, column: str, task: Task) -> str:
    """Of a column of numbers that one cell of text has made a column of text."""
    cells = [rows[0].values[column] for rows in task.scans]
    text = [cell for cell in cells if isinstance(cell, str)]
    words = [cell for cell in text if not is_number(cell)]
    if not words or 2 * len(words) >= len(text):
        return ""
    return (
        f"{title}: the clinical column {column} is read as text, a category for each value, as "
        f"{len(words)} of its {len(cells)} cells are no numbers, such as {words[0]!r}."
    )
