"""The statistics of a task, computed again only when its predictions or the settings change."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.scoring.record import task_content
from evaluation.scoring.task import TaskScores
from evaluation.statistics.summary import Settings, summarise_task
from evaluation.storing import store
from foundation.tasks.describe import groups_of
from foundation.tasks.task import Task
from recipes.load import digest

if TYPE_CHECKING:
    import pandas


def store_task(
    task: Task,
    scores: TaskScores,
    *,
    kinds: Mapping[str, str],
    settings: Settings,
    shuffled: Mapping[str, Any] | None,
    code: str,
    folder: Path,
    draft: Path,
) -> dict[str, Any]:
    """Write a task's predictions and statistics into the draft of a store; returns the latter.

    Args:
        task: Its subjects and groups.
        scores: Of all models.
        kinds: ``backbone``, ``trained`` or ``floor`` of each model, in the order of the table.
        settings: Of intervals and tests.
        shuffled: The check with shuffled labels, or None.
        code: Digest of what computes statistics.
        folder: The store as it is, whose statistics are kept where nothing has changed.
        draft: The store to be.
    """
    name = task.card.name
    store.write_predictions(draft, name, scores.predictions)
    store.write_groups(draft, name, _groups(task))
    if scores.few_shot is not None:
        store.write_few_shot(draft, name, scores.few_shot, scores.draws)
    if scores.fractions is not None:
        store.write_fractions(draft, name, scores.fractions)
    made_from = digest(
        {
            "predictions": store.predictions_digest(draft, name),
            "task": {**task_content(task), "known_floors": "", "known_leaks": ""},
            "kinds": dict(kinds),
            "settings": settings._asdict(),
            "spread": _listed(scores.spread),
            "folds": _listed(scores.folds),
            "trainings": list(scores.trainings),
            "shuffled": dict(shuffled) if shuffled else None,
            "code": code,
        }
    )
    content = _kept(folder, name, made_from)
    if content is None:
        content = _computed(task, scores, kinds, settings, shuffled)
    store.write_statistics(draft, name, content, inputs_digest=made_from)
    return content


def _computed(
    task: Task,
    scores: TaskScores,
    kinds: Mapping[str, str],
    settings: Settings,
    shuffled: Mapping[str, Any] | None,
) -> dict[str, Any]:
    about = task_content(task)
    splits = set(scores.predictions["split"])
    shown = next(split for split in ("test", "cv", "val") if split in splits)
    return summarise_task(
        scores.predictions,
        task={"name": task.card.name, **about, "prevalence": _prevalence(task)},
        kinds=kinds,
        split=shown,
        groups=_group_values(task),
        few_shot=scores.few_shot,
        few_shot_missing=scores.missing,
        training_spread=scores.spread,
        folds=scores.folds,
        fractions=scores.fractions,
        trainings=scores.trainings,
        shuffled=shuffled,
        settings=settings,
    )


def _kept(folder: Path, name: str, made_from: str) -> dict[str, Any] | None:
    try:
        content = store.read_statistics(folder, name)
    except store.StoreError:
        return None
    if content["inputs_digest"] != made_from:
        return None
    return {key: content[key] for key in content if not key.endswith("digest")}


def _prevalence(task: Task) -> float | list[float] | None:
    """The share of positives in training, or of each class; of all where folds are drawn."""
    label = task.label[task.rows("train", "cv")]
    if task.card.kind == "binary":
        return float(label.mean())
    if task.card.kind in ("multiclass", "ordinal"):
        return [float((label == each).mean()) for each in range(len(task.outputs))]
    return None


def _group_values(task: Task) -> dict[str, dict[str, str]]:
    return {
        column: dict(zip(task.subjects, values, strict=True))
        for column, values in groups_of(task).items()
    }


def _groups(task: Task) -> "pandas.DataFrame":
    import pandas

    rows = [
        (subject, column, value)
        for column, values in _group_values(task).items()
        for subject, value in values.items()
    ]
    return pandas.DataFrame(rows, columns=list(store.GROUP_COLUMNS), dtype=str)


def _listed(values: Mapping[tuple[str, str], list[float]]) -> list[Any]:
    return [[*key, [repr(value) for value in each]] for key, each in sorted(values.items())]
