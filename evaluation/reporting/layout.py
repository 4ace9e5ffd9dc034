"""What stands on the page and in what order: blocks of figures and numbered tables, as data.

Both formats are filled from one layout, so they hold the same tables under the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evaluation.reporting.content import STATUSES, Content, Task
from evaluation.reporting.family import Ranks, family_size, ranks_of
from evaluation.reporting.plots import (
    Plot,
    few_shot_plots,
    fraction_plot,
    reliability_plot,
    risk_plot,
)
from evaluation.reporting.tables.across import overview, ranks_table
from evaluation.reporting.tables.comparisons import comparison_table
from evaluation.reporting.tables.few_shot import few_shot_tables
from evaluation.reporting.tables.fractions import fraction_table
from evaluation.reporting.tables.record import (
    checks_table,
    digests_table,
    selections_table,
    skipped_table,
    sources_table,
)
from evaluation.reporting.tables.scores import by_output, task_scores
from evaluation.reporting.tables.spread import spread_table
from evaluation.reporting.tables.table import Table
from evaluation.reporting.tables.uncertainty import (
    calibration_table,
    conformal_table,
    group_tables,
)


@dataclass(frozen=True)
class Block:
    """Figures and tables under one heading; a folded block opens at a click."""

    heading: str
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class TaskPage:
    """The section of one task."""

    task: Task
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class StorePage:
    """The part of one store."""

    content: Content
    ranks: Ranks
    overview: Block
    tasks: tuple[TaskPage, ...]
    checks: tuple[Block, ...]
    provenance: Block


def lay_out(contents: Sequence[Content]) -> list[StorePage]:
    """Lay out contents whose comparisons are adjusted already (``family.with_holm``)."""
    family, number = family_size(contents), 0
    pages = []
    for content in contents:
        page = _store_page(content, family)
        page = _numbered(page, first=number + 1)
        scored = list(_scored_tables(page))
        number += len(scored)
        sources = (sources_table(content, scored), digests_table(content))
        pages.append(replace(page, provenance=Block("Provenance of every number", tables=sources)))
    return pages


def table_numbers(pages: Sequence[StorePage]) -> dict[tuple[str, str | None, str], int]:
    """The number of the table that shows a section of a task, by store, task and section."""
    found: dict[tuple[str, str | None, str], int] = {}
    for page in pages:
        for table in _scored_tables(page):
            found.setdefault((page.content.name, table.task, table.section), table.number)
    return found


def _store_page(content: Content, family: int) -> StorePage:
    across, ranks = overview(content), ranks_of(content)
    if len(content.tasks) > 1:
        across.append(ranks_table(content, ranks))
    return StorePage(
        content=content,
        ranks=ranks,
        overview=Block("Overview", tables=tuple(across)),
        tasks=tuple(TaskPage(task, _blocks(content, task, family)) for task in content.tasks),
        checks=_checks(content),
        provenance=Block(""),
    )


def _checks(content: Content) -> tuple[Block, ...]:
    """What did not pass in full sight; what did, behind a click."""
    *wanting, passed = STATUSES
    found = (
        Block("", tables=_present(checks_table(content, wanting, title="Did not pass"))),
        Block(
            "Passed checks",
            tables=_present(checks_table(content, (passed,), title="Passed")),
            is_folded=True,
        ),
    )
    return tuple(block for block in found if block.tables)


def _blocks(content: Content, task: Task, family: int) -> tuple[Block, ...]:
    calibration = (calibration_table(content, task), conformal_table(content, task))
    plots = (reliability_plot(content, task), risk_plot(content, task))
    by_fraction = fraction_plot(content, task)
    blocks = [
        Block("Scores", tables=(task_scores(content, task), *by_output(content, task))),
        Block("Spread", tables=_present(spread_table(content, task))),
        Block("Comparisons", tables=_present(comparison_table(content, task, family=family))),
        Block(
            "Trained on a share of the labels",
            (by_fraction,) if by_fraction else (),
            _present(fraction_table(content, task)),
        ),
        Block(
            "Few labels",
            tuple(few_shot_plots(content, task)),
            tuple(few_shot_tables(content, task)),
        ),
        Block(
            "Uncertainty",
            tuple(plot for plot in plots if plot),
            (*_present(*calibration), *group_tables(content, task)),
        ),
        Block("Left out", tables=_present(skipped_table(content, task))),
        Block("Chosen settings", tables=_present(selections_table(content, task)), is_folded=True),
    ]
    return tuple(block for block in blocks if block.tables or block.plots)


def _present(*tables: Table | None) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)


def _scored_tables(page: StorePage) -> Iterator[Table]:
    """The tables that are numbered: those of numbers, not those of settings and checks."""
    yield from page.overview.tables
    for task in page.tasks:
        for block in task.blocks:
            yield from (table for table in block.tables if table.section not in UNNUMBERED)


UNNUMBERED = ("skipped", "selections")


def _numbered(page: StorePage, *, first: int) -> StorePage:
    numbers = iter(range(first, first + len(list(_scored_tables(page)))))

    def numbered(block: Block) -> Block:
        tables = tuple(
            table if table.section in UNNUMBERED else replace(table, number=next(numbers))
            for table in block.tables
        )
        return replace(block, tables=tables)

    whole = numbered(page.overview)
    tasks = tuple(
        replace(task, blocks=tuple(numbered(block) for block in task.blocks)) for task in page.tasks
    )
    return replace(page, overview=whole, tasks=tasks)
