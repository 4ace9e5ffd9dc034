"""A cohort's table, CSV or Parquet, as typed columns; format strings filled from its rows."""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

Value = str | int | float | None


class CohortError(ValueError):
    """A cohort that cannot be used; the message is meant for its author."""


def read_columns(name: str, table: Path) -> dict[str, list[Value]]:
    """The table's columns as int, float or text; an empty cell is None.

    Raises:
        CohortError: The file is no such table.
    """
    if table.suffix.lower() in (".parquet", ".pq"):
        return _parquet_columns(name, table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
            if any("\0" in cell for line in [header, *lines] for cell in line):
                raise ValueError("it holds a zero byte")
    except (ValueError, csv.Error) as error:
        raise CohortError(f"cohort {name}: {table} is not a CSV table ({error})") from None
    lines = [line for line in lines if line]
    _check_names(name, table, header)
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise CohortError(
                f"cohort {name}: {table}, row {number}: {len(line)} cells, expected {len(header)}"
            )
    cells = [[line[index].strip() for line in lines] for index in range(len(header))]
    return {column: _typed(values) for column, values in zip(header, cells, strict=True)}


def columns_of(name: str, template: str) -> list[str]:
    """The columns a format string names."""
    try:
        return [found for _, found, _, _ in Formatter().parse(template) if found is not None]
    except ValueError as error:
        raise CohortError(f"cohort {name}: {template!r} is no template ({error})") from None


def fill(name: str, template: str, record: Mapping[str, Value]) -> str:
    """A format string with a row's cells in it.

    Raises:
        CohortError: A cell is empty, or does not fit the format.
    """
    for column in columns_of(name, template):
        if record[column] is None:
            raise CohortError(f"cohort {name}: {template!r} meets an empty {column!r} cell")
    try:
        return template.format_map(record)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise CohortError(
            f"cohort {name}: {template!r} does not fit its columns ({error})"
        ) from None


def fill_or_none(name: str, template: str, record: Mapping[str, Value]) -> str | None:
    """:func:`fill`, or None where a cell is empty."""
    if any(record[column] is None for column in columns_of(name, template)):
        return None
    return fill(name, template, record)


def _check_names(name: str, table: Path, header: Sequence[str]) -> None:
    if len(set(header)) != len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise CohortError(f"cohort {name}: {table} has the column {twice!r} twice")


def _typed(cells: Sequence[str]) -> list[Value]:
    """A column as int, float or text, whichever all its cells allow; an empty cell is None.

    A leading zero makes text: ``007`` is a name, not a number.
    """
    filled = [cell for cell in cells if cell]
    kind: type[str] | type[int] | type[float] = str
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", cell) for cell in filled):
        kind = int
    elif all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell) for cell in filled) and (
        not any(re.fullmatch(r"-?0\d+", cell) for cell in filled)
    ):
        kind = float
    return [kind(cell) if cell else None for cell in cells]


def _parquet_columns(name: str, table: Path) -> dict[str, list[Value]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise CohortError(
            f"cohort {name}: {table} is a Parquet table, which needs pyarrow: pip install pyarrow"
        ) from None
    try:
        # A lone file: folders around it named key=value are no columns of it.
        found = pyarrow.parquet.ParquetFile(table).read()
        columns = [found.column(place).to_pylist() for place in range(found.num_columns)]
    except Exception as error:
        raise CohortError(
            f"cohort {name}: {table} is not a Parquet table ({type(error).__name__})"
        ) from None
    _check_names(name, table, found.column_names)
    return {
        column: _plain(name, column, cells)
        for column, cells in zip(found.column_names, columns, strict=True)
    }


def _plain(name: str, column: str, cells: Iterable[Any]) -> list[Value]:
    """Cells as a CSV table would hold them; a float column of whole numbers and gaps is int."""
    cells = [
        None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells
    ]
    filled = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, float) and cell.is_integer() for cell in filled) and (
        len(filled) < len(cells)
    ):
        return [None if cell is None else int(cell) for cell in cells]
    return [_cell(name, column, cell) for cell in cells]


def _cell(name: str, column: str, cell: Any) -> Value:
    if isinstance(cell, bool):
        return str(cell)
    if cell is None or isinstance(cell, int | float):
        return cell
    if isinstance(cell, str):
        return cell.strip() or None
    if hasattr(cell, "isoformat"):  # dates and times
        return str(cell.isoformat()).removesuffix("T00:00:00")
    raise CohortError(
        f"cohort {name}: column {column!r} holds {type(cell).__name__}; expected numbers, text or"
        " dates"
    )
