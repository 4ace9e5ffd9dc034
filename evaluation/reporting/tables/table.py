"""A table as data: cells with their interval, footnotes and warnings, the same for every format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

Part = TypeVar("Part")
MOST_COLUMNS = 7  # of numbers with intervals: what a page of 1280 pixels and a sheet of paper hold
WARNING = "\N{WARNING SIGN}"


@dataclass(frozen=True)
class Places:
    """An interval on a scale from 0 to 100; an end that lies beyond the scale is cut."""

    low: float
    value: float
    high: float
    line: float | None


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: The value.
        under: Smaller lines below it, such as the interval.
        notes: Reasons that stand in full below the table.
        warnings: Of the leakage checks; a warning mark stands beside the value.
        is_best: Whether it is the best of its column.
        status: Name of a colour: "passed", "failed", "unknown" or "overridden".
        places: Of an interval that is drawn, not written.
        link: Id on the page.
    """

    text: str = ""
    under: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_best: bool = False
    status: str = ""
    places: Places | None = None
    link: str = ""
    is_code: bool = False


@dataclass(frozen=True)
class Column:
    """The head of a column; ``ends`` are the ends of the scale that its intervals are drawn on."""

    title: str
    under: tuple[str, ...] = ()
    link: str = ""
    is_drawing: bool = False
    ends: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Row:
    """A row; a single cell under several columns spans them all."""

    head: Cell
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Rows under one title; ``kind`` names their colour."""

    title: str
    kind: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table with what a reader must know to trust it.

    Attributes:
        section: What kind of numbers it holds; with the task the key of its rows in the CSV file.
        title: Its caption.
        columns: The first one heads the rows.
        groups: Of rows.
        lines: Sentences below it.
        task: Name of the task, or None for a table over several.
        method: How its intervals were made, in words.
        number: Of the table in the report, from 1.
    """

    section: str
    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    lines: tuple[str, ...] = ()
    task: str | None = None
    method: str = ""
    number: int = 0

    @property
    def cells(self) -> Iterator[Cell]:
        """Row by row."""
        for group in self.groups:
            for row in group.rows:
                yield row.head
                yield from row.cells

    @cached_property
    def letters(self) -> dict[str, str]:
        """The letter of each footnote, in order of appearance."""
        reasons = dict.fromkeys(
            note for cell in self.cells for note in (*cell.warnings, *cell.notes)
        )
        return {reason: _letter(at) for at, reason in enumerate(reasons)}


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else _letter(at // 26 - 1) + _letter(at % 26)


def in_parts(values: Sequence[Part], most: int = MOST_COLUMNS) -> list[Sequence[Part]]:
    """As few parts of at most ``most`` values as there must be, of nearly one length."""
    count = -(-len(values) // most)
    return [
        values[len(values) * at // count : len(values) * (at + 1) // count] for at in range(count)
    ]


def reason_cell(reason: str | None) -> Cell:
    """A dash with the reason below the table."""
    return Cell("\N{EM DASH}", notes=(reason or "the store gives no reason",))
