"""What stores say of pretrained backbones: their scores by task, method and pretraining seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.bootstrap import draw_counts
from evaluation.storing import store
from evaluation.storing.rows import matrices
from foundation.metrics.by_name import METRICS

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]


class ClaimError(ValueError):
    """Stores that say nothing of pretraining against none."""


class TaskScores(NamedTuple):
    """Of one task: m of the store's subjects, by model."""

    metric: str
    protocol: str
    rows: NDArray[np.int64]
    """(m,), which of the store's subjects they are"""
    label: Floats
    score: dict[str, Floats]
    """by model: (m, K)"""


class Scored(NamedTuple):
    """One store."""

    where: str
    date: str | None
    split: str
    subjects: tuple[str, ...]
    tasks: dict[str, TaskScores]
    runs: dict[str, list[str]]
    """by method: its backbones"""
    twins: dict[str, list[str]]
    """by backbone: the untrained networks of its architecture"""
    digests: dict[str, str]
    """by backbone: the same weights have the same, under any name and in any store"""

    @property
    def num_subjects(self) -> int:
        """Of all tasks together."""
        return len(self.subjects)


def read_scored(where: Path) -> Scored:
    """The probe's predictions of every pretrained backbone and untrained network in a store.

    Raises:
        ClaimError: It holds no pretrained backbone, or one without untrained twins.
    """
    run = store.read_run(where)
    models: dict[str, dict[str, Any]] = run["models"]
    if not all("architecture" in model for model in models.values()):
        raise ClaimError(
            f"{where}: written by an earlier version; run python -m evaluation.run again"
        )
    runs, twins = _families(where, models)
    wanted = {*twins, *(name for names in twins.values() for name in names)}
    tables = {
        task: _chosen(store.read_predictions(where, task), about, run["split"], wanted)
        for task, about in run["tasks"].items()
    }
    everyone = sorted({subject for table in tables.values() for subject in table.subject})
    place = {subject: index for index, subject in enumerate(everyone)}
    tasks = {
        task: _task_scores(where, table, place=place, about=run["tasks"][task])
        for task, table in tables.items()
    }
    digests = {name: models[name]["digest"] for name in twins}
    return Scored(
        str(where), run["date"], run["split"], tuple(everyone), tasks, runs, twins, digests
    )


def main_protocol(kind: str) -> str:
    """What backbones are compared by in a kind of task."""
    return "retrieval" if kind == "retrieval" else "linear"


def by_metric(stores: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The stores with the tasks of one metric each: an AUROC and an R2 have no common mean."""
    metrics = {task.metric: None for each in stores for task in each.tasks.values()}
    return {metric: [_with_metric(each, metric) for each in stores] for metric in metrics}


def common_methods(stores: Sequence[Scored]) -> list[str]:
    """Methods that every store holds.

    Raises:
        ClaimError: The stores differ in their tasks or split, or share no method.
    """
    first = stores[0]
    for each in stores[1:]:
        if set(each.tasks) != set(first.tasks) or each.split != first.split:
            raise ClaimError(f"{each.where}: other tasks or another split than {first.where}")
    methods = [name for name in first.runs if all(name in each.runs for each in stores)]
    if not methods:
        raise ClaimError("no method has a backbone in every store")
    return methods


def share_subjects(stores: Sequence[Scored]) -> bool:
    """Whether several stores hold the same subjects; otherwise none may be in two of them.

    Raises:
        ClaimError: They share some of their subjects only.
    """
    if all(each.subjects == stores[0].subjects for each in stores[1:]):
        return len(stores) > 1
    seen: set[str] = set()
    for each in stores:
        if seen & set(each.subjects):
            raise ClaimError(
                f"{each.where}: holds some of the other stores' subjects; take stores of the same "
                "subjects, or of different ones"
            )
        seen |= set(each.subjects)
    return False


def subject_counts(rng: np.random.Generator, scored: Scored, num_bootstraps: int) -> Floats:
    """(draws, subjects): how often each is drawn."""
    everyone = [np.arange(scored.num_subjects)]
    counts: Floats = draw_counts(rng, everyone, num_bootstraps, scored.num_subjects)
    return counts


def drawn_subjects(
    stores: Sequence[Scored], *, num_bootstraps: int, rng: np.random.Generator
) -> tuple[list[Floats], bool]:
    """How often each subject of each store is drawn, (1 + draws, subjects): first everyone once.

    Returns:
        The counts, and whether the stores are of one cohort: whoever is drawn is then drawn in
        every store.

    Raises:
        ClaimError: The stores share some of their subjects only.
    """
    is_pooled = len(stores) == 1 or share_subjects(stores)
    counts = [subject_counts(rng, each, num_bootstraps) for each in stores]
    if is_pooled:
        counts = [counts[0]] * len(stores)
    return [np.concatenate([np.ones((1, each.shape[1])), each]) for each in counts], is_pooled


def measure_tasks(scored: Scored, model: str, weight: Floats) -> Floats:
    """A model's metric on each task, (tasks, draws); NaN for a draw that does not define it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [
                METRICS[task.metric](task.label, task.score[model], weight[:, task.rows])
                for task in scored.tasks.values()
            ]
        )


def _families(
    where: Path, models: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Backbones by method, and untrained twins by backbone."""
    runs: dict[str, list[str]] = {}
    twins: dict[str, list[str]] = {}
    for name, model in models.items():
        method = model["provenance"].get("method")
        if model["kind"] != "backbone" or method is None:
            continue  # a floor, or a backbone of another origin that has no method of ours
        runs.setdefault(method, []).append(name)
        twins[name] = [
            other
            for other, each in models.items()
            if each["kind"] == "floor" and each["architecture"] == model["architecture"]
        ]
        if not twins[name]:
            raise ClaimError(f"{where}: no random initialisation of {name}; set random_init.seeds")
    if not runs:
        raise ClaimError(f"{where}: holds no pretrained backbone; name some under backbones")
    return runs, twins


def _chosen(
    table: "pandas.DataFrame", about: Mapping[str, Any], split: str, models: set[str]
) -> "pandas.DataFrame":
    """Rows of these models by the task's main protocol; a cross-validated task has no split."""
    protocol = main_protocol(about["kind"])
    return table[
        (table.protocol == protocol) & table.split.isin((split, "cv")) & table.model.isin(models)
    ]


def _task_scores(
    where: Path, table: "pandas.DataFrame", *, place: Mapping[str, int], about: Mapping[str, Any]
) -> TaskScores:
    """One task's predictions, every model's in the order of subjects."""
    found = {name: matrices(rows, kind=about["kind"]) for name, rows in table.groupby("model")}
    if not found:
        raise ClaimError(f"{where}: a task without predictions of a backbone; run it again")
    one = next(iter(found.values()))
    assert all(each.subjects == one.subjects for each in found.values())
    return TaskScores(
        about["metric"],
        main_protocol(about["kind"]),
        np.array([place[subject] for subject in one.subjects]),
        one.label,
        {str(name): each.score for name, each in found.items()},
    )


def _with_metric(scored: Scored, metric: str) -> Scored:
    """Only the tasks of this metric, and the subjects of those."""
    chosen = {name: task for name, task in scored.tasks.items() if task.metric == metric}
    if not chosen:
        raise ClaimError(f"{scored.where}: no task is scored by {metric}, as in the other stores")
    used = np.unique(np.concatenate([task.rows for task in chosen.values()]))
    tasks = {
        name: task._replace(rows=np.searchsorted(used, task.rows)) for name, task in chosen.items()
    }
    return scored._replace(subjects=tuple(scored.subjects[row] for row in used), tasks=tasks)
