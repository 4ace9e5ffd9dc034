"""Whether a task has the labels to learn from: a training split with one class has none.

A validation or test split with one class is no error: what it does not define is null in the
statistics, with the reason.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foundation.tasks.labels import TaskError
from shards.sources.cohort import SPLITS

if TYPE_CHECKING:
    from foundation.tasks.task import Task


_LEAST = 4  # subjects that leave two in training, and cut these again


def check_enough(task: "Task", *, needs_test: bool) -> None:
    """Every split has subjects, and every class has some to train on.

    Args:
        task: As it was read.
        needs_test: False for whoever trains and never scores: the test split may be empty.

    Raises:
        TaskError: It is not so; the message names the split and the class.
    """
    cv = task.card.protocol.repeated_cv
    for part in ("cv",) if cv else SPLITS:
        if not len(task.rows(part)) and (needs_test or part != "test"):
            raise TaskError(f"task {task.card.name}: the {part} split has no subject")
    if cv is not None:
        _check_subjects(task, cv.folds)
    check = _CHECKS.get(task.card.kind)
    if check is not None:
        check(task, task.label[task.rows("train", "cv")], 1 if cv is None else cv.folds)


def _check_classes(task: "Task", label: NDArray[np.float64], least: int) -> None:
    counts = np.bincount(label.astype(np.int64), minlength=len(task.classes))
    if (counts > 0).sum() == 1:
        only = task.classes[int(counts.argmax())]
        raise _one_class(task, f"has one class (all {len(label)} are {only})")
    for name, count in zip(task.classes, counts, strict=True):
        if count == 0:
            raise _one_class(task, f"has no subject of class {name!r}")
        _check_fills_folds(task, f"class {name!r}", int(count), least)


def _check_multilabel(task: "Task", label: NDArray[np.float64], least: int) -> None:
    for name, column in zip(task.classes, label.T, strict=True):
        counts = [int((column == value).sum()) for value in (0, 1)]
        if 0 in counts:
            value = counts.index(0)
            raise _one_class(task, f"has no subject whose {name!r} is {value}")
        _check_fills_folds(task, f"the rarer value of {name!r}", min(counts), least)


def _check_regression(task: "Task", label: NDArray[np.float64], least: int) -> None:
    del least
    if len(np.unique(label)) == 1:
        raise _one_class(task, f"has one value (all {len(label)} are {label[0]:g})")


def _check_survival(task: "Task", label: NDArray[np.float64], least: int) -> None:
    events = int(label[:, 1].sum())
    if not events:
        raise _one_class(task, "has no event")
    _check_fills_folds(task, "those with an event", events, least)


def _check_retrieval(task: "Task", label: NDArray[np.float64], least: int) -> None:
    """Nothing is trained, but a query needs others of its class and of another one."""
    del least
    counts = np.bincount(label.astype(np.int64), minlength=len(task.classes))
    if (counts > 0).sum() < 2 or counts.max() < 2:
        raise _one_class(task, "has no two subjects of one class beside another class")


_CHECKS = {
    "binary": _check_classes,
    "multiclass": _check_classes,
    "ordinal": _check_classes,
    "multilabel": _check_multilabel,
    "regression": _check_regression,
    "survival": _check_survival,
    "retrieval": _check_retrieval,
}


def _check_subjects(task: "Task", folds: int) -> None:
    count = len(task.subjects)
    if count < max(folds, _LEAST):
        raise TaskError(
            f"task {task.card.name}: {count} subjects are too few for {folds} folds; there must be "
            f"as many as folds, and {_LEAST} at the least"
        )


def _check_fills_folds(task: "Task", what: str, count: int, least: int) -> None:
    if count < least:
        raise TaskError(
            f"task {task.card.name}: {count} subjects of {what} do not fill {least} folds; lower "
            "protocol.repeated_cv.folds, or leave the class out"
        )


def _one_class(task: "Task", what: str) -> TaskError:
    where = "cohort" if task.card.protocol.repeated_cv else "train split"
    return TaskError(
        f"task {task.card.name}: the {where} {what}, so nothing can be learned; change the split "
        "or the label"
    )
