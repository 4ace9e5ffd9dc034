"""Reading a report in tests: its rows, its tables, a cell."""

import csv
from pathlib import Path
from typing import Any

from evaluation.reporting.family import with_holm
from evaluation.reporting.files import csv_text
from evaluation.reporting.layout import StorePage, lay_out
from evaluation.reporting.reading import read_content
from evaluation.reporting.tables.table import Table

Rows = list[dict[str, str]]


def pages_of(*folders: Path) -> list[StorePage]:
    return lay_out(with_holm([read_content(folder) for folder in folders]))


def csv_rows(pages: list[StorePage]) -> Rows:
    return list(csv.DictReader(csv_text(pages).splitlines()))


def those(rows: Rows, **wanted: str) -> Rows:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def tables_of(pages: list[StorePage], section: str, task: str | None = None) -> list[Table]:
    blocks = [block for page in pages for part in page.tasks for block in part.blocks]
    blocks += [block for page in pages for block in (page.overview, *page.checks, page.provenance)]
    found = [table for block in blocks for table in block.tables if table.section == section]
    return [table for table in found if table.task == task]


def cell_of(table: Table, row: str, column: str, *, protocol: str = "linear probe") -> Any:
    """The cell of a row by its head and, where there is one, its protocol."""
    titles = [each.title for each in table.columns[1:]]
    for group in table.groups:
        for each in group.rows:
            texts = dict(zip(titles, each.cells, strict=False))
            fits = "Protocol" not in texts or texts["Protocol"].text == protocol
            if each.head.text == row and fits:
                return texts[column]
    raise KeyError(row)
