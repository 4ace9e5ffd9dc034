"""A task in words and counts, for the store and the report."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from foundation.tasks.card import OF_ONE_SUBJECT

if TYPE_CHECKING:
    from foundation.tasks.task import Task


def describe_split(task: "Task") -> str:
    """How the task's scores come about, in one sentence for the report."""
    cv = task.card.protocol.repeated_cv
    if cv is not None:
        shown = "the mean over repeats" if task.card.kind in OF_ONE_SUBJECT else "a middle repeat"
        return (
            f"{cv.repeats} x {cv.folds}-fold cross-validation by subject, stratified, nested; "
            f"scores are of {shown}"
        )
    whose = "official split" if task.card.protocol.split == "official" else "split of the cohort"
    return f"{whose}, by subject; settings chosen on validation"


def describe_label(task: "Task") -> str:
    """What is predicted, in words."""
    definition = task.card.label.definition
    source = _label_source(task)
    return f"{definition} ({source})" if definition else source


def count_groups(task: "Task") -> Mapping[str, Mapping[str, int]]:
    """Number of subjects at each value of the card's group columns."""
    return {
        column: dict(sorted(Counter(values).items())) for column, values in groups_of(task).items()
    }


def groups_of(task: "Task") -> Mapping[str, tuple[str, ...]]:
    """The value of each group column, one per subject; an empty cell is ``missing``."""
    firsts = [rows[0].values for rows in task.scans]
    return {
        column: tuple(
            "missing" if values[column] is None else str(values[column]) for values in firsts
        )
        for column in task.card.groups
    }


def _label_source(task: "Task") -> str:
    label = task.card.label
    if label.at_most_quantile is not None:
        return (
            f"{label.column} at most {task.threshold:g}, the {label.at_most_quantile:g} quantile "
            "of the training split"
        )
    if task.card.kind == "segmentation":
        return f"mask {label.mask or 'of the cohort'}: {', '.join(task.outputs)}"
    if task.card.kind == "survival":
        return f"days in {label.time_days}, event in {label.event}"
    positive = "" if label.positive is None else f" is {label.positive}"
    columns = "columns" if label.columns else "column"
    return f"{columns} {', '.join(label.read_columns)}{positive}"
