"""The table of paired comparisons: differences, Holm-adjusted p, smallest detectable difference."""

import math

from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import interval, number, p_value, signed
from evaluation.reporting.results import Comparison
from evaluation.reporting.tables.forest import forest
from evaluation.reporting.tables.table import Cell, Column, Group, Row, Table, reason_cell
from evaluation.reporting.titles import (
    constant_score,
    is_lower_better,
    metric_title,
    protocol_title,
)
from evaluation.statistics.kinds import FLOOR
from evaluation.statistics.summary import FUSED

CLEAR = 0.05


def comparison_table(content: Content, task: Task, *, family: int) -> Table | None:
    """Backbones against the best floor, the ceiling and each other; None without comparisons.

    Args:
        content: Of the store.
        task: One of its tasks.
        family: How many comparisons the whole report shows: the family of Holm's correction.
    """
    found = task.results.comparisons
    if not found:
        return None
    metric = found[0].metric
    bounded = constant_score(metric) is not None
    limits = (-1.0, 1.0) if bounded else (-math.inf, math.inf)
    plot = forest([(one.low, one.difference, one.high) for one in found], line=0.0, limits=limits)
    floors = {model.name for model in content.models if model.kind == FLOOR}
    rows = [
        (one, _row(content, task, one, Cell(places=places)))
        for one, places in zip(found, plot.places, strict=True)
    ]
    together = [row for one, row in rows if one.protocol == FUSED]
    rows = [(one, row) for one, row in rows if one.protocol != FUSED]
    parts = {
        "Backbones against floors": [row for one, row in rows if one.b in floors],
        "Backbones against the supervised ceiling": [
            row for one, row in rows if one.b in task.results.ceilings
        ],
        "Backbones against each other": [
            row for one, row in rows if one.b not in floors | task.results.ceilings
        ],
        "Backbones with clinical columns against these alone": together,
    }
    has_delong = any(one.p_delong is not None for one in found)
    columns = [
        Column("First less second"),
        Column("Protocol"),
        Column("n"),
        Column("Difference", ("[95% interval]",)),
        Column("", ("line: no difference",), is_drawing=True, ends=plot.ends),
        Column("p, Holm", ("sign-flip permutation",)),
        Column("p", ("unadjusted",)),
        Column("p, DeLong", ("unadjusted",)),
        Column("Detectable", ("80% power",)),
    ]
    if not has_delong:
        columns = [column for column in columns if column.title != "p, DeLong"]
    return Table(
        section="comparisons",
        title=f"{task.card['title']}. {metric_title(metric)}: paired differences on the same "
        "subjects",
        columns=tuple(columns),
        groups=tuple(
            Group(title, "backbone", tuple(part)) for title, part in parts.items() if part
        ),
        lines=_lines(metric, family, task.results.num_permutations),
        task=task.name,
        method=f"paired bootstrap, {task.results.num_bootstraps:,} draws; p by sign-flip "
        "permutation",
    )


def _row(content: Content, task: Task, one: Comparison, drawing: Cell) -> Row:
    titles = content.titles
    warnings = tuple(content.warnings(task.name, one.a, one.b))
    head = Cell(f"{titles[one.a]} less {titles[one.b]}")
    n = Cell("" if one.n is None else f"{one.n:,}")
    cells = [Cell(_protocols(one)), n, _difference(one, warnings), drawing]
    cells += [_p(one.p_holm, one, warnings, bold=True), _p(one.p, one, warnings)]
    if any(each.p_delong is not None for each in task.results.comparisons):
        cells.append(_p(one.p_delong, one, warnings))
    if one.detectable is None:
        cells.append(reason_cell(one.reason))
    else:
        cells.append(Cell(number(one.detectable, one.difference), warnings=warnings))
    return Row(head, tuple(cells))


def _protocols(one: Comparison) -> str:
    """Both, where the two are scored by different ones."""
    first, second = protocol_title(one.protocol), protocol_title(one.b_protocol or one.protocol)
    return first if first == second else f"{first} / {second}"


def _difference(one: Comparison, warnings: tuple[str, ...]) -> Cell:
    if one.difference is None:
        return reason_cell(one.reason)
    under = interval(one.low, one.high, one.difference)
    text = signed(one.difference, one.low, one.high)
    notes = (one.reason,) if one.reason else ()
    return Cell(text, under=(under,) if under else (), notes=notes, warnings=warnings)


def _p(
    value: float | None, one: Comparison, warnings: tuple[str, ...], *, bold: bool = False
) -> Cell:
    if value is None:
        return reason_cell(one.reason)
    return Cell(p_value(value), warnings=warnings, is_best=bold and value < CLEAR)


def _lines(metric: str, family: int, num_permutations: int | None) -> tuple[str, ...]:
    direction = "Negative" if is_lower_better(metric) else "Positive"
    adjusted = (
        f"{direction}: the first is better. p, Holm: adjusted for all {family:,} comparisons of "
        f"this report; bold below {CLEAR}."
    )
    least = family / (1 + num_permutations) if num_permutations else 0.0
    if least >= CLEAR:
        adjusted += (
            f" With {num_permutations:,} permutations none can be below "
            f"{p_value(min(1.0, least))}: raise num_permutations to find anything."
        )
    return (
        adjusted,
        "Detectable: the smallest true difference that a study of this n finds with 80% power at "
        "the 5% level; a smaller one may well be there, unseen.",
        "A difference between two backbones is one between two files. That one method beats "
        "another takes at least three pretraining seeds (python -m evaluation.claim).",
    )
