"""From an evaluation store to the content of the report.

Everything is taken over by name: a field of a run that is not listed here never reaches a page, so
no list of subjects can slip into a report.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting.content import (
    RECONSTRUCTION,
    STATUSES,
    Check,
    Content,
    Digests,
    Model,
    Task,
)
from evaluation.reporting.results import Results
from evaluation.reporting.stored import MOST_GROUPS, read_results
from evaluation.storing import store

Loaded = TypeVar("Loaded")
AGAIN = "run python -m evaluation.run again"
CARD_FIELDS = (
    "title",
    "disease",
    "label",
    "kind",
    "metric",
    "unit",
    "groups",
    "n",
    "positives",
    "protocol_note",
    "split_provenance",
    "data",
    "source",
    "licence",
    "known_floors",
    "known_leaks",
)
PROVENANCE_FIELDS = (
    "method",
    "network",
    "weights",
    "initialised_from.name",
    "initialised_from.licence",
    "tune",
    "shards.name",
    "shards.digest",
    "shards.num_samples",
    "shards.num_subjects",
    "shards.sources",
    "shards.modalities",
    "steps",
    "scans_seen",
    "hours",
    "world_size",
    "device",
    "finished",
    "licence",
    "recipe_digest",
    "versions.scanfm",
    "versions.torch",
    "versions.deepspeed",
)
SKIPPED_FIELDS = ("model", "protocol", "reason")
SELECTION_FIELDS = ("model", "protocol", "chosen", "grid")


def read_content(folder: Path) -> Content:
    """Read one store.

    Raises:
        StoreError: A file of the store is missing or damaged; the message names it.
    """
    run = store.read_run(folder)
    try:
        return _content(folder, run)
    except KeyError as error:
        raise store.StoreError(f"{folder}/run.json: {error} is missing; {AGAIN}") from None


def _content(folder: Path, run: Mapping[str, Any]) -> Content:
    models = tuple(_model(name, entry) for name, entry in run["models"].items())
    backbones = [model.name for model in models if model.kind == "backbone"]
    pictures = {name: _reconstructions(folder, name) for name in backbones}
    return Content(
        name=run["name"],
        title=run["title"],
        date=run["date"],
        split=run["split"],
        recipe_digest=run["recipe_digest"],
        store_digest=run["digest"],
        tier=run.get("tier"),
        notes=tuple(run["notes"]),
        models=models,
        tasks=tuple(_task(folder, name, run) for name in run["tasks"]),
        checks=_checks(folder),
        curves=_curves(folder),
        cohort_pictures=_pictures(folder, "cohort"),
        reconstructions={name: arrays for name, arrays in pictures.items() if arrays},
    )


def _task(folder: Path, name: str, run: Mapping[str, Any]) -> Task:
    entry = run["tasks"][name]
    path, stored = folder / "statistics" / f"{name}.json", store.read_statistics(folder, name)
    return Task(
        name=name,
        card=_picked(entry, CARD_FIELDS) | {"groups": _groups(entry.get("groups"))},
        results=_results(path, stored, run["models"]),
        digests=Digests(
            data=entry.get("data_digest"),
            predictions=stored["predictions_digest"],
            statistics=stored["digest"],
        ),
        skipped=_of_task(run["skipped"], name, SKIPPED_FIELDS),
        selections=_of_task(run["selections"], name, SELECTION_FIELDS),
    )


def _groups(groups: Mapping[str, Mapping[str, int]] | None) -> dict[str, dict[str, int] | None]:
    """Subjects at each value of a column; a column of as many values as subjects is not listed."""
    return {
        column: dict(values) if len(values) <= MOST_GROUPS else None
        for column, values in (groups or {}).items()
    }


def _results(path: Path, stored: Mapping[str, Any], models: Mapping[str, Any]) -> Results:
    try:
        results = read_results(stored)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise store.StoreError(f"{path}: damaged ({error}); {AGAIN}") from None
    named = [row.model for row in results.rows]
    named += [name for pair in results.all_comparisons for name in (pair.a, pair.b)]
    named += [line.model for line in (results.fractions.lines if results.fractions else ())]
    named += [curve.model for curve in (results.few_shot.curves if results.few_shot else ())]
    if unknown := [name for name in named if name not in models]:
        raise store.StoreError(f"{path}: {unknown[0]!r} is not a model of run.json; {AGAIN}")
    return results


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    return Model(
        name=name,
        kind=entry["kind"],
        title=entry["title"],
        description=entry["description"],
        digest=entry.get("digest"),
        seen=entry.get("seen"),
        provenance=_provenance(entry.get("provenance") or {}),
    )


def _provenance(tree: Mapping[str, Any]) -> dict[str, str | float]:
    """The listed fields that are there; the cohorts in the shards and their licences in words."""
    found: dict[str, str | float] = {}
    for field in PROVENANCE_FIELDS:
        value: Any = tree
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if field == "shards.sources":
            value = "; ".join(
                f"{one['name']} ({one['num_samples']} scans, {one['licence']})"
                for one in value or ()
            )
        elif field == "shards.modalities":
            value = ", ".join(f"{count} {name}" for name, count in (value or {}).items())
        elif field == "weights" and value:
            value = Path(str(value)).name  # a path is of a machine
        if isinstance(value, str | float | int) and value != "":
            found[field] = value
    return found


def _checks(folder: Path) -> tuple[Check, ...]:
    try:
        return tuple(_check(entry) for entry in store.read_leakage(folder)["checks"])
    except (KeyError, TypeError, ValueError) as error:
        raise store.StoreError(f"{folder}/leakage.json: damaged ({error}); {AGAIN}") from None


def _check(entry: Mapping[str, Any]) -> Check:
    if entry["status"] not in STATUSES:
        raise ValueError(f"no status {entry['status']!r}")
    return Check(
        task=entry["task"],
        check=entry["check"],
        model=entry.get("model"),
        status=entry["status"],
        count=entry.get("count"),
        detail=entry.get("detail") or "",
        reason=entry.get("reason") or "",
    )


def _curves(folder: Path) -> dict[str, dict[str, Any]]:
    """The loss curves that hold a point."""
    curves = store.read_curves(folder)
    for name, curve in curves.items():
        steps, loss = curve.get("steps"), curve.get("loss")
        if not isinstance(steps, list) or not isinstance(loss, list) or len(steps) != len(loss):
            raise store.StoreError(
                f"{folder}/curves/{name}.json: damaged, a curve has as many steps as losses; "
                f"{AGAIN}"
            )
    return {
        name: _picked(curve, ("steps", "loss", "method", "wall_s"))
        for name, curve in curves.items()
        if curve["steps"]
    }


def _pictures(folder: Path, name: str) -> dict[str, NDArray[np.float32]]:
    path = folder / "pictures" / f"{name}.npz"
    return _named(path, lambda: store.read_pictures(folder, name))


def _reconstructions(folder: Path, model: str) -> dict[str, NDArray[np.float32]]:
    arrays = _pictures(folder, f"{model}_reconstructions")
    shapes = [arrays[name].shape if name in arrays else None for name in RECONSTRUCTION]
    if arrays and (None in shapes or len(set(shapes)) > 1):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise store.StoreError(
            f"{folder}/pictures/{model}_reconstructions.npz: expected {', '.join(RECONSTRUCTION)} "
            f"of one shape, found {found}; {AGAIN}"
        )
    return arrays


def _named(path: Path, read: Callable[[], Loaded]) -> Loaded:
    """What ``read`` returns; a file damaged in any way becomes one line that names it."""
    try:
        return read()
    except store.StoreError:
        raise
    # The libraries raise a dozen types for bytes that are no archive.
    except Exception as error:
        raise store.StoreError(f"{path}: damaged ({error}); remove it and {AGAIN}") from None


def _of_task(
    entries: Sequence[Mapping[str, Any]], task: str, fields: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    return tuple(_picked(entry, fields) for entry in entries if entry["task"] == task)


def _picked(entry: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: entry.get(field) for field in fields}
