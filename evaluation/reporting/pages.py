"""The pages of the report from its layout: one HTML file without requests, and Markdown.

Both are filled from the same layout by templates/, so they hold the same tables. A page depends on
nothing but the content: no clock, no folder, no machine.
"""

from collections.abc import Sequence
from pathlib import Path

from evaluation.reporting import words as report_words
from evaluation.reporting.figures.curves import loss_svg
from evaluation.reporting.figures.pictures import contact_sheet, triptychs
from evaluation.reporting.glossary import glossary
from evaluation.reporting.layout import StorePage
from evaluation.reporting.tables.coverage import coverage_table
from evaluation.reporting.tables.table import WARNING, Cell, Table
from evaluation.reporting.titles import PROVENANCE_TITLES
from evaluation.statistics.kinds import TRAINED

TEMPLATES = Path(__file__).parent / "templates"


def html_page(pages: Sequence[StorePage]) -> str:
    """The whole report as one HTML document; styles, curves and pictures stand inside it."""
    return _filled("report.html.j2", pages, escape=True)


def markdown_page(pages: Sequence[StorePage]) -> str:
    """The same text and tables as Markdown, without pictures."""
    return _filled("report.md.j2", pages, escape=False)


def marks(cell: Cell, table: Table) -> str:
    """The letters of a cell's footnotes; a warning sign before them where a check warns."""
    letters = table.letters
    shown = "\N{THIN SPACE}".join(letters[note] for note in (*cell.warnings, *cell.notes))
    return f"{WARNING}{shown}" if cell.warnings else shown


def markdown_row(texts: Sequence[str]) -> str:
    """One row of a Markdown table; a text stays inside its cell."""
    return f"| {' | '.join(markdown_cell(text) for text in texts)} |"


def markdown_cell(text: object) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def markdown_table(table: Table) -> str:
    """The head, and every group after its title; drawn columns are left out."""
    keep = [at for at, column in enumerate(table.columns) if not column.is_drawing]
    heads = [
        " ".join((table.columns[at].title, *(f"({text})" for text in table.columns[at].under)))
        for at in keep
    ]
    lines = [markdown_row(heads), "|" + "---|" * len(keep)]
    for group in table.groups:
        if group.title:
            lines.append(markdown_row([f"*{group.title}*", *[""] * (len(keep) - 1)]))
        for row in group.rows:
            cells = [row.head, *row.cells]
            shown = cells if len(cells) != len(table.columns) else [cells[at] for at in keep]
            texts = [_markdown_text(cell, table) for cell in shown]
            lines.append(markdown_row([*texts, *[""] * (len(keep) - len(texts))]))
    return "\n".join(lines)


def _markdown_text(cell: Cell, table: Table) -> str:
    text = f"`{cell.text}`" if cell.is_code else cell.text
    text = f"**{text}**" if cell.is_best or cell.status in ("failed", "overridden") else text
    under = ", ".join(cell.under)
    noted = marks(cell, table)
    return " ".join(part for part in (text, under, f"({noted})" if noted else "") if part)


def _has_trained(pages: Sequence[StorePage]) -> bool:
    return any(model.kind == TRAINED for page in pages for model in page.content.models)


def _filled(template: str, pages: Sequence[StorePage], *, escape: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    words = {name: value for name, value in vars(report_words).items() if not name.startswith("_")}
    environment.globals |= words | {
        "PROVENANCE_TITLES": PROVENANCE_TITLES,
        "WARNING": WARNING,
        "has_trained": _has_trained,
        "marks": marks,
        "glossary": glossary,
        "coverage_table": coverage_table,
        "markdown_table": markdown_table,
        "loss_figure": loss_svg,
        "contact_sheet": contact_sheet,
        "triptychs": triptychs,
    }
    dates = [page.content.date for page in pages if page.content.date]
    page = environment.get_template(template)
    return page.render(pages=pages, date=max(dates, default="unknown date"))
