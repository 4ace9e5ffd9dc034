"""What a table of labels means: which column is the subject, and of which kind the label is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from foundation.metrics.by_name import Kind
from foundation.tasks.labels import TaskError, class_order, is_number

Value = str | int | float | None
Columns = Mapping[str, Sequence[Value]]

_SUBJECT_NAMES = (
    "subject", "subjectid", "patient", "patientid", "pid", "eid", "participant", "participantid",
    "case", "caseid", "id", "name",
)  # fmt: skip
_POSITIVE_WORDS = {
    "yes", "y", "true", "t", "positive", "pos", "case", "disease", "diseased", "abnormal",
    "malignant", "dead", "died", "event",
}  # fmt: skip
_MAX_CLASSES = 20  # text with more values is a name or a note
_MAX_NUMBERED_CLASSES = 10  # whole numbers with more values are a quantity


class Guess(NamedTuple):
    """A kind, the label section of its card, and why."""

    kind: Kind
    label: dict[str, Any]
    why: str


def guess_subject(columns: Columns) -> str:
    """The column that names the subject: by its own name, else the first whose cells all differ.

    Raises:
        TaskError: There is none.
    """
    plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(list(columns))}
    for known in _SUBJECT_NAMES:
        if known in plain:
            return plain[known]
    for name, cells in columns.items():
        if None not in cells and len(set(cells)) == len(cells):
            return name
    raise TaskError(
        f"no column looks like the subject's name; say which with --subject: {', '.join(columns)}"
    )


def guess_label(columns: Columns, names: Sequence[str], kind: Kind | None) -> Guess:
    """The kind and label of one column, or of several 0/1 columns.

    Args:
        columns: Of the table.
        names: The columns of the label.
        kind: What the user says, or None.

    Raises:
        TaskError: The values are of no kind, or not of the one the user says.
    """
    if len(names) > 1 or kind == "multilabel":
        return Guess("multilabel", {"columns": list(names)}, f"{len(names)} columns")
    (name,) = names
    values = class_order(columns[name])
    if len(values) < 2:
        raise TaskError(f"column {name!r} holds {len(values)} different values; nothing to learn")
    kind, why = (kind, "as asked") if kind is not None else _kind_of(name, values)
    label: dict[str, Any] = {"column": name}
    if kind == "binary":
        label |= _positive(name, values)
    elif kind == "ordinal":
        label["levels"] = values
    return Guess(kind, label, why)


def guess_event(columns: Columns, time: str, event: str) -> Guess:
    """The label of a survival task; an event in words is told by its word."""
    values = class_order(columns[event])
    label = {"time_days": time, "event": event}
    if set(values) <= {0, 1}:
        return Guess("survival", label, "a time and an event")
    return Guess("survival", label | _positive(event, values), "a time and an event")


def _kind_of(name: str, values: list[Value]) -> tuple[Kind, str]:
    is_text = any(isinstance(value, str) for value in values)
    shown = ", ".join(str(value) for value in values[:_MAX_NUMBERED_CLASSES])
    if len(values) == 2:
        return "binary", f"{name} holds {shown}"
    if is_text and len(values) > _MAX_CLASSES:
        word = next((value for value in values if not is_number(value)), values[0])
        raise TaskError(
            f"column {name!r} holds {len(values)} different texts, such as {word!r}, too many for "
            "classes; mend the cell, choose another column or say --kind"
        )
    is_whole = all(isinstance(value, int) for value in values)
    if is_text or (is_whole and len(values) <= _MAX_NUMBERED_CLASSES):
        return "multiclass", f"{name} holds {shown}"
    return "regression", f"{name} holds {len(values)} different numbers"


def _positive(name: str, values: list[Value]) -> dict[str, Any]:
    """``positive`` of a label with two values, empty where they are 0 and 1."""
    if len(values) != 2:
        raise TaskError(f"column {name!r} holds {len(values)} different values, a 0/1 label two")
    if set(values) == {0, 1}:
        return {}
    known = [value for value in values if str(value).strip().lower() in _POSITIVE_WORDS]
    return {"positive": known[0] if len(known) == 1 else values[-1]}
