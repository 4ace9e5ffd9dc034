"""Who trains, who decides when to end, and who is scored: the runs that a task makes.

A task with a split is one run: its training subjects train, its validation subjects decide. Under
cross-validation by subject each fold is a run of its own, whose held-out subjects have no part in
it, and a last run on everybody makes the model. A fifth of a fold's training subjects decides.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.finetuning.recipe import FinetuneConfig, part_name
from foundation.tasks.folds import nested_folds, strata, stratified_folds
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task

Rows = NDArray[np.int64]

NUM_INNER = 5
"""One of so many stratified folds of the training subjects decides, where there is no split."""
_LEAST = 2


class Part(NamedTuple):
    """One run.

    Attributes:
        name: Of the task at its fraction: ``stroke_20``.
        folder: Of the run.
        task: What is learnt.
        fraction: Of the training subjects.
        train, val: Subjects that are learnt from, and that decide; rows of the task.
        held_out: Subjects of a fold, which the run has never seen; else empty.
        fold: Its number; None for the run that makes the model.
    """

    name: str
    folder: Path
    task: Task
    fraction: float
    train: Rows
    val: Rows
    held_out: Rows
    fold: int | None

    @property
    def title(self) -> str:
        """For people."""
        return self.name if self.fold is None else f"{self.name}, fold {self.fold}"


def parts_of(config: FinetuneConfig, task: Task, *, fraction: float) -> list[Part]:
    """The runs of a task at a fraction of its training subjects, the model's last.

    Raises:
        TaskError: Too few subjects are left.
    """
    name = part_name(task.card.name, fraction)
    folder = config.folder / name
    nobody = np.zeros(0, dtype=np.int64)
    cv = task.card.protocol.repeated_cv
    if cv is None:
        train = subset(task, task.rows("train"), fraction=fraction, seed=config.seed)
        val = task.rows("val")
        return [Part(name, folder, task, fraction, train, val, nobody, None)]
    folds = nested_folds(task.label, kind=task.card.kind, cv=cv)[: cv.folds]
    found = []
    if config.cross_validation.folds:
        for number, fold in enumerate(folds):
            train, val = _cut(task, fold.train, fraction=fraction, seed=config.seed)
            below = folder / f"fold-{number}"
            found.append(Part(name, below, task, fraction, train, val, fold.held_out, number))
    train, val = _cut(task, task.rows("cv"), fraction=fraction, seed=config.seed)
    return [*found, Part(name, folder, task, fraction, train, val, nobody, None)]


def subset(task: Task, rows: Rows, *, fraction: float, seed: int) -> Rows:
    """A fraction of these subjects, of each class alike; a smaller one is part of a larger one.

    Raises:
        TaskError: It is not one subject of each class, or fewer than two in all.
    """
    if fraction == 1:
        return rows
    kept = np.sort(np.concatenate(list(_shares(task, rows, fraction=fraction, seed=seed))))
    if len(kept) < _LEAST:
        raise TaskError(
            f"task {task.card.name}: {fraction:g} of {len(rows)} training subjects are "
            f"{len(kept)}, and {_LEAST} are asked for; take a larger fraction"
        )
    return kept


def _shares(task: Task, rows: Rows, *, fraction: float, seed: int) -> Iterator[Rows]:
    """Of each class; drawn in an order that does not depend on the fraction."""
    stratum = strata(task.label, kind=task.card.kind)[rows]
    rng = np.random.default_rng(seed)
    for each in np.unique(stratum):
        members = rng.permutation(rows[stratum == each])
        yield members[: max(1, round(fraction * len(members)))]


def _cut(task: Task, rows: Rows, *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Training and deciding subjects of those that a run may see."""
    rng = np.random.default_rng(seed)
    stratum = strata(task.label, kind=task.card.kind)
    val = stratified_folds(stratum, rows, num_folds=NUM_INNER, rng=rng)[0]
    train = np.setdiff1d(rows, val)
    return subset(task, train, fraction=fraction, seed=seed), val
