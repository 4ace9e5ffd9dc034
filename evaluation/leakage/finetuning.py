"""Whether a fine-tuned network was trained on whom it is scored on.

With a split nobody who is scored may be among the training subjects. Under cross-validation
everybody trains and is scored, so the question is asked fold by fold, where the folds are told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluation.leakage.checks import Check, Question, hits
from foundation.tasks.task import Task

if TYPE_CHECKING:
    from evaluation.finetuned.parts import Part

_QUESTION: Question = "scored subject in fine-tuning"


def check_finetuning(task: Task, parts: Mapping[str, Sequence["Part"]]) -> list[Check]:
    """One check of each line that has parts of this task.

    Args:
        task: Its subjects and splits.
        parts: Of the task, by line.
    """
    ask = _of_split if task.card.protocol.repeated_cv is None else _of_folds
    return [ask(task, name, own) for name, own in parts.items()]


def _of_split(task: Task, name: str, parts: Sequence["Part"]) -> Check:
    scored = {task.subjects[row] for row in task.rows("val", "test")}
    found = set().union(*(scored & part.trained for part in parts))
    shares = ", ".join(f"{100 * part.fraction:g}%" for part in parts)
    detail = f"of {len(scored)} scored subjects are among those trained on ({shares} of training)"
    return hits(task.card.name, _QUESTION, name, count=len(found), detail=detail)


def _of_folds(task: Task, name: str, parts: Sequence["Part"]) -> Check:
    from evaluation.finetuned.scores import read_out_of_fold

    found: set[str] = set()
    untold = []
    for part in parts:
        if part.folds is None:
            untold.append(part.folder.name)
            continue
        held_out = read_out_of_fold(task, part).fold
        for subject, fold in zip(task.subjects, held_out, strict=True):
            inside = 0 <= fold < len(part.folds)
            if not inside or subject in part.folds[fold]:
                found.add(subject)
    detail = f"of {len(task.subjects)} subjects are predicted by a fold that was trained on them"
    check = hits(task.card.name, _QUESTION, name, count=len(found), detail=detail)
    if untold and not found:
        reason = f"{', '.join(untold)}: it is not told whom each fold was trained on"
        return replace(check, status="unknown", reason=reason)
    return check
