"""From an evaluation store to what the report says of it; no layout and no wording of tables here.

Everything is taken over by name: a field of a run that is not listed here never reaches a page, so
no list of subjects can slip into a report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting.few_shot import FewShotCurve, few_shot_curves
from evaluation.reporting.tables import Bootstrap, ModelScores, overview_column, task_table
from evaluation.storing import store

if TYPE_CHECKING:
    import pandas

Loaded = TypeVar("Loaded")
CROSS_VALIDATION = "cv"
CARD_FIELDS = (
    "title",
    "disease",
    "label",
    "kind",
    "metric",
    "n",
    "positives",
    "protocol_note",
    "data",
    "source",
    "licence",
    "known_floors",
    "known_leaks",
)
PROVENANCE_FIELDS = (
    "method",
    "initialised_from.name",
    "initialised_from.licence",
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
    "recipe_digest",
    "versions.scanfm",
    "versions.torch",
    "versions.deepspeed",
)
RECONSTRUCTION = ("original", "masked", "reconstruction")
CHECK_FIELDS = ("task", "check", "model", "passed", "count", "detail")
SKIPPED_FIELDS = ("model", "protocol", "reason")
SELECTION_FIELDS = ("model", "protocol", "chosen", "grid")


@dataclass(frozen=True)
class Model:
    """A backbone or a floor, in the words of the run."""

    name: str
    kind: str
    title: str
    description: str
    digest: str | None
    provenance: dict[str, str | float]


@dataclass(frozen=True)
class Task:
    """One task: its card, its table, its few-shot curves, and what was left out."""

    name: str
    card: dict[str, Any]
    split: str
    table: tuple[ModelScores, ...]
    overview: dict[str, ModelScores]
    few_shot: tuple[FewShotCurve, ...]
    skipped: tuple[dict[str, Any], ...]
    selections: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Content:
    """All that the report says of one store."""

    name: str
    title: str
    date: str | None
    split: str
    recipe_digest: str
    seed: int
    num_bootstraps: int
    notes: tuple[str, ...]
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    checks: tuple[dict[str, Any], ...]
    checks_passed: bool
    curves: dict[str, dict[str, Any]]
    cohort_pictures: dict[str, NDArray[np.float32]]
    reconstructions: dict[str, dict[str, NDArray[np.float32]]]

    @property
    def titles(self) -> dict[str, str]:
        """The title of each model."""
        return {model.name: model.title for model in self.models}

    @property
    def is_phantom(self) -> bool:
        """Whether any of its tasks is of a procedural cohort."""
        cards = [f"{task.card['data']} {task.card['source']}" for task in self.tasks]
        return any("phantom" in card.lower() for card in cards)


def read_content(folder: Path) -> Content:
    """Read one store and compute its scores.

    Raises:
        StoreError: A file of the store is missing or damaged; the message names it.
    """
    run = store.read_run(folder)
    try:
        return _content(folder, run)
    except KeyError as error:
        raise store.StoreError(
            f"{folder}/run.json: {error} is missing; run python -m evaluation.run again"
        ) from None


def _content(folder: Path, run: Mapping[str, Any]) -> Content:
    models = tuple(_model(name, entry) for name, entry in run["models"].items())
    backbones = [model.name for model in models if model.kind == "backbone"]
    pictures = {name: _reconstructions(folder, name) for name in backbones}
    checks = _checks(folder)
    return Content(
        name=run["name"],
        title=run["title"],
        date=run["date"],
        split=run["split"],
        recipe_digest=run["recipe_digest"],
        seed=run["seed"],
        num_bootstraps=run["num_bootstraps"],
        notes=tuple(run["notes"]),
        models=models,
        tasks=tuple(_task(folder, name, run, models) for name in run["tasks"]),
        checks=checks,
        checks_passed=all(check["passed"] for check in checks),
        curves=_curves(folder),
        cohort_pictures=_pictures(folder, "cohort"),
        reconstructions={name: arrays for name, arrays in pictures.items() if arrays},
    )


def _task(folder: Path, name: str, run: Mapping[str, Any], models: tuple[Model, ...]) -> Task:
    entry = run["tasks"][name]
    kinds = {model.name: model.kind for model in models}
    rows = _table(folder, f"predictions/{name}.parquet", store.PREDICTION_COLUMNS, kinds)
    split = CROSS_VALIDATION if (rows["split"] == CROSS_VALIDATION).any() else run["split"]
    bootstrap = Bootstrap(run["num_bootstraps"], run["seed"])
    table = task_table(rows, task=entry, kinds=kinds, split=split, bootstrap=bootstrap)
    few_shot: tuple[FewShotCurve, ...] = ()
    if (folder / "few_shot" / f"{name}.parquet").is_file():
        draws = _table(folder, f"few_shot/{name}.parquet", store.FEW_SHOT_COLUMNS, kinds)
        few_shot = few_shot_curves(draws, kinds=kinds, missing=_missing_shots(folder, name))
    return Task(
        name=name,
        card=_picked(entry, CARD_FIELDS),
        split=split,
        table=table,
        overview=overview_column(table),
        few_shot=few_shot,
        skipped=_of_task(run["skipped"], name, SKIPPED_FIELDS),
        selections=_of_task(run["selections"], name, SELECTION_FIELDS),
    )


def _missing_shots(folder: Path, task: str) -> dict[int, str]:
    """Shots that a class has too few subjects for; of the stored draws nothing else is read."""
    stored = store.read_few_shot_draws(folder, task) or {}
    return {int(shots): str(reason) for shots, reason in stored.get("missing", {}).items()}


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    return Model(
        name=name,
        kind=entry["kind"],
        title=entry["title"],
        description=entry["description"],
        digest=entry.get("digest"),
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
        if value not in (None, ""):
            found[field] = value
    return found


def _table(
    folder: Path, file: str, columns: tuple[str, ...], kinds: Mapping[str, str]
) -> "pandas.DataFrame":
    """Read and check one table: its columns, one row per key, only models the run names."""
    task = Path(file).stem
    reader = store.read_predictions if file.startswith("predictions") else store.read_few_shot
    rows = _named(folder / file, lambda: reader(folder, task))
    assert rows is not None, file
    missing = [column for column in columns if column not in rows]
    if missing:
        raise store.StoreError(f"{folder / file}: no column {', '.join(missing)}")
    keys = [column for column in columns if column not in ("label", "score")]
    if rows.duplicated(subset=keys).any():
        raise store.StoreError(f"{folder / file}: two rows for the same {', '.join(keys)}")
    unknown = sorted(set(rows["model"]) - set(kinds))
    if unknown:
        raise store.StoreError(f"{folder / file}: {unknown[0]!r} is not a model of run.json")
    return rows


def _checks(folder: Path) -> tuple[dict[str, Any], ...]:
    """What was checked; ``model`` is None where the check is of no backbone."""
    try:
        return tuple(
            {name: check[name] for name in CHECK_FIELDS if name != "model"}
            | {"model": check.get("model")}
            for check in store.read_leakage(folder)["checks"]
        )
    except (KeyError, TypeError) as error:
        raise store.StoreError(
            f"{folder}/leakage.json: damaged ({error}); run python -m evaluation.run again"
        ) from None


def _curves(folder: Path) -> dict[str, dict[str, Any]]:
    """The loss curves that hold a point."""
    curves = store.read_curves(folder)
    for name, curve in curves.items():
        steps, loss = curve.get("steps"), curve.get("loss")
        if not isinstance(steps, list) or not isinstance(loss, list) or len(steps) != len(loss):
            raise store.StoreError(
                f"{folder}/curves/{name}.json: damaged, a curve has as many steps as losses; run "
                "python -m evaluation.run again"
            )
    return {name: curve for name, curve in curves.items() if curve["steps"]}


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
            f"of one shape, found {found}; run python -m evaluation.run again"
        )
    return arrays


def _named(path: Path, read: Callable[[], Loaded]) -> Loaded:
    """What ``read`` returns; a file damaged in any way becomes one line that names it."""
    try:
        return read()
    except store.StoreError:
        raise
    # The libraries raise a dozen types for bytes that are no table and no archive.
    except Exception as error:
        raise store.StoreError(
            f"{path}: damaged ({error}); remove it and run python -m evaluation.run again"
        ) from None


def _of_task(
    entries: Sequence[Mapping[str, Any]], task: str, fields: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    return tuple(_picked(entry, fields) for entry in entries if entry["task"] == task)


def _picked(entry: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: entry.get(field) for field in fields}
