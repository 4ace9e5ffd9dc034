"""Labels of every kind of task, from the cells of a cohort's table.

A missing label is an empty cell. The label of a subject must be the same on all its scans.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.tasks.card import CLASSIFIED, TaskCard
from shards.sources.cohort import CohortRow

Floats = NDArray[np.float64]
Value = str | int | float | None

RETRIEVAL_OUTPUTS = ("average_precision", "hit_at_1", "hit_at_5")


class TaskError(ValueError):
    """A task that cannot be scored; the message says which and why."""


class Labels(NamedTuple):
    """Labels of n subjects.

    Attributes:
        values: (n,); of a multi-label task (n, L) with NaN where one is missing; of a survival
            task (n, 2), days and event.
        outputs: Names of the columns of a score.
        classes: Names of the classes, levels or labels; empty for kinds without classes.
    """

    values: Floats
    outputs: tuple[str, ...]
    classes: tuple[str, ...] = ()


def is_labelled(row: CohortRow, card: TaskCard) -> bool:
    """Whether a scan has a label: of a multi-label task at least one."""
    if card.kind == "segmentation":
        return row.mask is not None
    cells = [row.values[column] is not None for column in card.label.read_columns]
    return any(cells) if card.kind == "multilabel" else all(cells)


def read_labels(members: Sequence[Sequence[CohortRow]], card: TaskCard) -> Labels:
    """Labels of subjects, each given by its labelled scans.

    Raises:
        TaskError: Labels that disagree within a subject, or are not what the kind asks for.
    """
    if card.kind == "segmentation":
        return Labels(np.zeros(len(members)), tuple(card.label.mask_values))
    cells = {
        column: [_agreed(rows, column, card) for rows in members]
        for column in card.label.read_columns
    }
    if card.kind == "multilabel":
        flags = [_flags(cells[column], column, card) for column in card.label.columns]
        return Labels(np.stack(flags, axis=1), card.label.columns, card.label.columns)
    if card.kind == "survival":
        return Labels(_survival(cells, card), ("risk",))
    (column,) = cells
    if card.kind == "regression":
        return Labels(_numbers(cells[column], column, card), (column,))
    if card.kind == "binary":
        is_number = card.label.at_most_quantile is not None
        values = (_numbers if is_number else _flags)(cells[column], column, card)
        return Labels(values, ("1",), ("0", "1"))
    values, names = _classes(cells[column], column, card)
    return Labels(values, RETRIEVAL_OUTPUTS if card.kind == "retrieval" else names, names)


def class_order(cells: Sequence[Value]) -> list[Value]:
    """The different values of a column, numbers before text, each in order."""

    def key(value: Value) -> tuple[bool, float, str]:
        is_text = isinstance(value, str)
        return is_text, 0.0 if is_text else float(value or 0), str(value)

    return sorted(set(cells) - {None}, key=key)


def _agreed(rows: Sequence[CohortRow], column: str, card: TaskCard) -> Value:
    """The one value of a subject; None where all its cells are empty."""
    values = {row.values[column] for row in rows} - {None}
    if len(values) > 1:
        raise TaskError(
            f"task {card.name}: a subject has {len(values)} different values of {column!r}; a "
            "label is one per subject"
        )
    return values.pop() if values else None


def _numbers(cells: Sequence[Value], column: str, card: TaskCard) -> Floats:
    if any(isinstance(cell, str) or cell is None for cell in cells):
        # One cell of text makes a column of text: what is told is that one, not the first.
        wrong = next((cell for cell in cells if not is_number(cell)), cells[0])
        raise TaskError(
            f"task {card.name}: {column!r} holds {wrong!r}, not a number; the cell of a missing "
            "label is empty"
        )
    return np.array(cells, dtype=np.float64)


def is_number(cell: Value) -> bool:
    """Whether a cell, perhaps of a column of text, is a finite number."""
    try:
        return cell is not None and math.isfinite(float(cell))
    except ValueError:
        return False


def _flags(cells: Sequence[Value], column: str, card: TaskCard) -> Floats:
    """1 where a cell is the positive value, NaN where it is empty."""
    positive = card.label.positive
    filled = [cell for cell in cells if cell is not None]
    if positive is None:
        wrong = [cell for cell in filled if isinstance(cell, str) or cell not in (0, 1)]
        if wrong:
            told = next((cell for cell in wrong if _plain(cell) not in ("0", "1")), wrong[0])
            raise TaskError(
                f"task {card.name}: a label of a {card.kind} task is 0 or 1, {column!r} holds "
                f"{told!r}; say which value counts as 1 with label.positive"
            )
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    if filled and not any(_is_same(cell, positive) for cell in filled):
        raise TaskError(
            f"task {card.name}: label.positive is {positive!r}, {column!r} holds only "
            f"{_listed(filled)}"
        )
    return np.array([np.nan if cell is None else float(_is_same(cell, positive)) for cell in cells])


def _survival(cells: Mapping[str, Sequence[Value]], card: TaskCard) -> Floats:
    assert card.label.time_days is not None
    assert card.label.event is not None
    days = _numbers(cells[card.label.time_days], card.label.time_days, card)
    if (days <= 0).any():
        raise TaskError(
            f"task {card.name}: {card.label.time_days!r} holds {days.min():g}; a time to an event "
            "or to censoring is above 0 days"
        )
    events = _flags(cells[card.label.event], card.label.event, card)
    return np.stack([days, events], axis=1)


def _classes(cells: Sequence[Value], column: str, card: TaskCard) -> tuple[Floats, tuple[str, ...]]:
    assert card.kind in CLASSIFIED
    fractions = [cell for cell in cells if isinstance(cell, float) and not cell.is_integer()]
    if fractions:
        raise TaskError(
            f"task {card.name}: a class is text or a whole number, {column!r} holds "
            f"{fractions[0]:g}; a number is predicted by kind: regression"
        )
    classes: Mapping[str, Value] = card.label.class_values
    classes = classes or {str(value): value for value in class_order(cells)}
    place = {_plain(value): index for index, value in enumerate(classes.values())}
    wrong = [cell for cell in cells if _plain(cell) not in place]
    if wrong:
        key = "levels" if card.kind == "ordinal" else "classes"
        raise TaskError(
            f"task {card.name}: {column!r} holds {wrong[0]!r}, which label.{key} does not name; "
            "add it, or leave it out with where"
        )
    return np.array([place[_plain(cell)] for cell in cells], dtype=np.float64), tuple(classes)


def _is_same(cell: Value, value: Value) -> bool:
    return _plain(cell) == _plain(value)


def _plain(value: Value) -> str:
    """A value as text, so that the class 1 is found in a column that holds 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _listed(values: Sequence[Value], *, limit: int = 5) -> str:
    found = sorted({str(value) for value in values})
    return ", ".join(found[:limit]) + (" ..." if len(found) > limit else "")
