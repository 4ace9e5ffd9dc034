"""Score frozen backbones and floors on tasks, and store every prediction.

    python -m evaluation.run recipes/evaluation/demo.yaml
    python -m evaluation.run recipes/evaluation/real.yaml test=open

Choices are made on validation. The test split is read only with ``test=open``, and each opening of
a recipe is one line in the ledger. Features are cached: a second run redoes what is stale.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from evaluation.backbones.models import (
    Entry,
    candidates,
    floor_entries,
    load_entries,
    task_extractors,
)
from evaluation.extraction.features import extract_all, fingerprint, pool_by_subject
from evaluation.extraction.pictures import cohort_slices, reconstructions
from evaluation.leakage import gate as leakage
from evaluation.probing.few_shot import FewShotConfig
from evaluation.scoring.score import TaskScores, score_task, summarise
from evaluation.storing import store
from evaluation.storing.draft import drafted, publish
from evaluation.storing.openings import find_opening, record_opening
from evaluation.tasks.task import Task, count_groups, describe_label, describe_split, load_task
from foundation.log import read_log
from recipes.command import run_recipe
from recipes.load import Section, digest
from shards.pseudonym import load_key

# Whose change leaves every prediction as it was.
_NEVER_SCORED_BY = {"claim.py", "report.py", "reporting"}


class RandomInit(Section):
    """Untrained twins of every backbone's architecture, one per seed."""

    seeds: tuple[NonNegativeInt, ...] = (0, 1)


class EvaluationConfig(Section):
    """Of ``recipes/evaluation/NAME.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    date: datetime.date | None = Field(
        default=None, description="of the report where no backbone tells when it was finished"
    )
    data_root: Path
    out: Path = Path("stores")
    pseudonym_key: Path
    backbones: dict[str, Path] = Field(default_factory=dict)
    random_init: RandomInit = RandomInit()
    tasks: tuple[Path, ...] = Field(min_length=1)
    few_shot: FewShotConfig | None = FewShotConfig()
    num_bootstraps: PositiveInt = 2000
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    test: Literal["closed", "open"] = "closed"
    ledger: Path = Path("evaluation/test_openings.jsonl")


class Inputs(NamedTuple):
    """Everything a run reads, loaded."""

    tasks: list[Task]
    entries: dict[str, Entry]
    recipe_digest: str
    inputs_digest: str


def main(config: EvaluationConfig) -> None:
    """Extract, check for leakage, score, store."""
    folder = config.out / config.name
    print(f"reads   {len(config.tasks)} tasks under {config.data_root}", flush=True)
    for name, where in config.backbones.items():
        print(f"reads   backbone {name}: {where}", flush=True)
    print(f"writes  {folder}", flush=True)
    inputs = _load(config)
    publish(folder)
    if _is_up_to_date(folder, inputs.inputs_digest):
        print(f"up to date: {folder}", flush=True)
        return
    arrays = _extract(folder, inputs)
    checks = _check_leakage(folder, inputs, arrays)
    scores = [_score(config, task, inputs, arrays[task.card.name]) for task in inputs.tasks]
    with drafted(folder) as draft:
        store.write_leakage(draft, leakage.as_stored(checks))
        for each in scores:
            store.write_predictions(draft, each.task, each.predictions)
            if each.few_shot is not None:
                store.write_few_shot(draft, each.task, each.few_shot, each.draws)
        _store_pictures(config, draft, inputs)
        notes = [_record_opening(config, inputs, scores)] if config.test == "open" else []
        store.write_run(draft, _run_json(config, inputs, scores, notes))
    print(f"\n{summarise(scores)}\nstored in {folder}", flush=True)


def _load(config: EvaluationConfig) -> Inputs:
    if config.backbones and not config.pseudonym_key.is_file():
        raise ValueError(
            f"{config.pseudonym_key}: no such key; overlap with pretraining is proved by the key "
            "the shards were made with, name that one as pseudonym_key"
        )
    key = load_key(config.pseudonym_key)
    tasks = [load_task(path, data_root=config.data_root, key=key) for path in config.tasks]
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    entries = load_entries(config.backbones, seeds=config.random_init.seeds, device=device)
    entries |= floor_entries(tasks)
    recipe = digest(
        {
            "tasks": [task.digest for task in tasks],
            "models": {name: entry.digest for name, entry in entries.items()},
            "few_shot": config.few_shot.model_dump() if config.few_shot else None,
            "seed": config.seed,
        }
    )
    scans = [[row.scan, row.mask] for task in tasks for row in task.candidates]
    inputs = digest(
        {
            "recipe": recipe,
            "config": config.model_dump(mode="json", exclude={"out", "device"}),
            "scans": digest([[fingerprint(where) for where in row] for row in scans]),
            "code": _code_digest(),
        }
    )
    return Inputs(tasks, entries, recipe, inputs)


def _is_up_to_date(folder: Path, inputs_digest: str) -> bool:
    if not store.is_complete(folder):
        return False
    return bool(store.read_run(folder)["inputs_digest"] == inputs_digest)


def _code_digest() -> str:
    """Of the files that make predictions: a change of theirs makes a store stale."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    made_by = [file for file in files if file.relative_to(root).parts[0] not in _NEVER_SCORED_BY]
    return hashlib.sha256(b"".join(file.read_bytes() for file in made_by)).hexdigest()


def _extract(folder: Path, inputs: Inputs) -> dict[str, dict[str, dict[str, Any]]]:
    """By task, extractor and array name: one row per subject."""
    pooled = {}
    for task in inputs.tasks:
        found = extract_all(
            task.candidates,
            [*task_extractors(task, inputs.entries), leakage.digest_extractor()],
            folder=folder / "features",
            title=f"features of {task.card.name}",
        )
        pooled[task.card.name] = {
            name: {
                key: values
                if name == leakage.DIGEST
                else pool_by_subject(task, task.candidates, values)
                for key, values in arrays.items()
            }
            for name, arrays in found.items()
        }
    return pooled


def _check_leakage(
    folder: Path, inputs: Inputs, arrays: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[leakage.Check]:
    """The checks, all of them passed; else they are stored apart, as the store stays as it is."""
    seen = {name: entry.seen for name, entry in inputs.entries.items() if entry.seen}
    checks = []
    for task in inputs.tasks:
        stored = arrays[task.card.name][leakage.DIGEST][leakage.DIGEST]
        checks += leakage.check_task(task, leakage.digests_by_subject(task, stored), seen)
    failed = folder / leakage.FAILED
    failed.unlink(missing_ok=True)
    if not all(check.passed for check in checks):
        store.write_json(failed, leakage.as_stored(checks))
    leakage.require_clean(checks)
    print(f"leakage {len(checks)} checks passed", flush=True)
    return checks


def _score(
    config: EvaluationConfig,
    task: Task,
    inputs: Inputs,
    arrays: Mapping[str, Mapping[str, Any]],
) -> TaskScores:
    return score_task(
        task,
        candidates(task, inputs.entries, arrays),
        few_shot=config.few_shot,
        open_test=config.test == "open",
    )


def _store_pictures(config: EvaluationConfig, folder: Path, inputs: Inputs) -> None:
    slices: dict[str, NDArray[np.float32]] = {}
    for task in inputs.tasks:
        slices |= cohort_slices(task)
    store.write_pictures(folder, "cohort", slices)
    for name, where in config.backbones.items():
        run = where.parent
        if (run / "log.jsonl").is_file():
            store.write_curve(folder, name, _curve(run, inputs.entries[name]))
        if pictures := reconstructions(run):
            store.write_pictures(folder, f"{name}_reconstructions", pictures)


def _curve(run: Path, entry: Entry) -> dict[str, Any]:
    lines = [line for line in read_log(run / "log.jsonl") if isinstance(line.get("loss"), float)]
    return {
        "steps": [line["step"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "method": entry.provenance.get("method"),
        "wall_s": lines[-1].get("wall_s") if lines else None,
    }


def _record_opening(config: EvaluationConfig, inputs: Inputs, scores: Sequence[TaskScores]) -> str:
    opened = {each.task: each.intervals(config.num_bootstraps, config.seed) for each in scores}
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    earlier = find_opening(config.ledger, inputs.recipe_digest)
    line = record_opening(
        config.ledger,
        date=today,
        name=config.name,
        recipe_digest=inputs.recipe_digest,
        scores={task: rows for task, rows in opened.items() if rows},
    )
    if earlier is not None:
        print(f"the test split was opened on {line['date']} by this recipe", flush=True)
    else:
        print(f"the test split is open; commit {config.ledger}", flush=True)
    return f"The test split was opened on {line['date']}."


def _run_json(
    config: EvaluationConfig, inputs: Inputs, scores: Sequence[TaskScores], notes: list[str]
) -> dict[str, Any]:
    return {
        "name": config.name,
        "title": config.title,
        "date": _date(config, inputs),
        "recipe_digest": inputs.recipe_digest,
        "inputs_digest": inputs.inputs_digest,
        "split": "test" if config.test == "open" else "val",
        "seed": config.seed,
        "num_bootstraps": config.num_bootstraps,
        "tasks": {task.card.name: _task_json(task) for task in inputs.tasks},
        "models": {
            name: {
                key: getattr(entry, key)
                for key in ("kind", "title", "description", "digest", "provenance", "architecture")
            }
            for name, entry in inputs.entries.items()
        },
        "selections": [selection for each in scores for selection in each.selections],
        "skipped": [skipped for each in scores for skipped in each.skipped],
        "notes": notes + [note for task in inputs.tasks for note in _task_notes(task)],
    }


def _date(config: EvaluationConfig, inputs: Inputs) -> str | None:
    """Of the newest backbone, so that a report made again from the same inputs says the same."""
    finished = [entry.provenance.get("finished") for entry in inputs.entries.values()]
    dates = [str(each)[:10] for each in finished if each]
    return max(dates, default=config.date.isoformat() if config.date else None)


def _task_json(task: Task) -> dict[str, Any]:
    card, cohort = task.card, task.cohort.config
    parts = [part for part in ("train", "val", "test", "cv") if len(task.rows(part))]
    binary = card.kind == "binary"
    return {
        "title": card.title,
        "disease": card.disease,
        "kind": card.kind,
        "metric": card.metric,
        "data": cohort.name,
        "data_digest": task.cohort.digest,
        "licence": cohort.licence,
        "source": cohort.source,
        "protocol_note": describe_split(task),
        "n": {part: len(task.rows(part)) for part in parts},
        "positives": {part: int(task.label[task.rows(part)].sum()) for part in parts}
        if binary
        else None,
        "label": describe_label(task),
        "groups": count_groups(task),
        "known_floors": card.known_floors,
        "known_leaks": card.known_leaks,
    }


def _task_notes(task: Task) -> list[str]:
    if not task.num_unlabelled:
        return []
    return [f"{task.card.title}: {task.num_unlabelled} scans have no label and are left out."]


if __name__ == "__main__":
    run_recipe(main, EvaluationConfig, doc=__doc__)
