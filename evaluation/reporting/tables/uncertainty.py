"""The tables of uncertainty: calibration, conformal sets with their coverage by group."""

from collections.abc import Sequence
from dataclasses import replace

from evaluation.reporting import picks
from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import number, percent, share_interval_text
from evaluation.reporting.results import Conformal, ModelResult, Quality
from evaluation.reporting.tables.scores import grouped, model_cell
from evaluation.reporting.tables.table import (
    Cell,
    Column,
    Group,
    Row,
    Table,
    in_parts,
    reason_cell,
)
from evaluation.reporting.titles import protocol_title

ENDLESS = "too few subjects to calibrate on: only a set without end is sure enough"
ARROW = "\N{RIGHTWARDS ARROW}"


def calibration_table(content: Content, task: Task) -> Table | None:
    """ECE, NLL and Brier score before and after temperature scaling."""
    rows = [row for row in _ordered(content, task) if row.calibration is not None]
    if not rows:
        return None
    made = []
    for row in rows:
        assert row.calibration is not None
        warnings = tuple(content.warnings(task.name, row.model))
        before, after = row.calibration.before, row.calibration.after
        scaled = row.calibration.temperature
        cells = [
            Cell(protocol_title(row.protocol)),
            Cell(f"{row.n:,}"),
            replace(_change(before, after, "ece", warnings), under=_by_chance(before, after)),
            *(_change(before, after, name, warnings) for name in ("nll", "brier")),
            Cell(number(scaled), warnings=warnings) if scaled is not None else reason_cell(None),
            Cell(row.calibration.fitted_on or ""),
        ]
        made.append((row.kind, Row(model_cell(content, row.model), tuple(cells))))
    change = f"before {ARROW} after"
    return Table(
        section="calibration",
        title=f"{task.card['title']}. Calibration before and after temperature scaling",
        columns=(
            Column("Model"),
            Column("Protocol"),
            Column("n"),
            Column("ECE", (change,)),
            Column("NLL", (change,)),
            Column("Brier", (change,)),
            Column("Temperature"),
            Column("Fitted on"),
        ),
        groups=grouped(made),
        lines=(
            "ECE: expected calibration error over 15 bins of equal numbers of subjects (adaptive). "
            "By chance: the mean ECE of scores like these with as many subjects, were each to come "
            "true just as often as it says. "
            "Temperature scaling leaves every ranking, and so the AUROC, as it is.",
        ),
        task=task.name,
        method="no interval",
    )


def _change(before: Quality, after: Quality, name: str, warnings: tuple[str, ...]) -> Cell:
    first, second = getattr(before, name), getattr(after, name)
    if first is None or second is None:
        return reason_cell("probabilities of 0 or 1 or one class only: not defined")
    return Cell(f"{number(first, second)} {ARROW} {number(second, first)}", warnings=warnings)


def _by_chance(before: Quality, after: Quality) -> tuple[str, ...]:
    first, second = before.ece_by_chance, after.ece_by_chance
    if first is None or second is None:
        return ()
    return (f"by chance {number(first, second)} {ARROW} {number(second, first)}",)


def conformal_table(content: Content, task: Task) -> Table | None:
    """Coverage and size of conformal sets, and the area under the risk-coverage curve."""
    rows = [row for row in _ordered(content, task) if row.conformal or row.risk_coverage]
    if not rows:
        return None
    made = []
    for row in rows:
        warnings = tuple(content.warnings(task.name, row.model))
        area = row.risk_coverage.area if row.risk_coverage else None
        cells = [
            Cell(protocol_title(row.protocol)),
            *_conformal_cells(row.conformal, warnings),
            reason_cell("no risk-coverage curve for this model")
            if area is None
            else Cell(number(area), warnings=warnings),
        ]
        made.append((row.kind, Row(model_cell(content, row.model), tuple(cells))))
    return Table(
        section="conformal",
        title=f"{task.card['title']}. Conformal sets, and risk against coverage",
        columns=(
            Column("Model"),
            Column("Protocol"),
            Column("n"),
            Column("Coverage", ("of the sets", "[95% interval]")),
            Column("Nominal"),
            Column("Mean size", (_size_unit(task),)),
            Column("Calibrated on"),
            Column("Risk-coverage", ("area under the curve",)),
        ),
        groups=grouped(made),
        lines=(
            "Coverage: share of subjects whose set holds their label. A set of the nominal level "
            "promises it on average over subjects, not within a group. The interval (Wilson) is "
            "over the scored subjects.",
            "Risk-coverage: mean error rate among the most certain share of subjects, averaged "
            "over all shares; lower is better.",
        ),
        task=task.name,
        method="Wilson (95%) of the coverage",
    )


def _size_unit(task: Task) -> str:
    return "in the label's unit" if task.card["kind"] == "regression" else "labels in a set"


def _conformal_cells(found: Conformal | None, warnings: tuple[str, ...]) -> list[Cell]:
    if found is None or found.coverage is None:
        return [reason_cell("no conformal sets for this model")] * 5
    size = reason_cell(ENDLESS)
    if found.mean_size is not None:
        size = Cell(number(found.mean_size), warnings=warnings)
    under = share_interval_text(found.coverage, found.n)
    return [
        Cell("" if found.n is None else f"{found.n:,}"),
        Cell(percent(found.coverage), under=(under,) if under else (), warnings=warnings),
        Cell(percent(found.level)),
        size,
        Cell(found.calibrated_on or ""),
    ]


def group_tables(content: Content, task: Task) -> list[Table]:
    """Coverage of conformal sets by group, for every backbone and the strongest floor."""
    rows = [row for row in picks.featured(task.results.rows) if _groups(row)]
    return [_group_table(content, task, part) for part in in_parts(rows)] if rows else []


def _groups(row: ModelResult) -> list[tuple[str, str]]:
    if row.conformal is None:
        return []
    return [(name, value) for name, found in row.conformal.by_group.items() for value in found]


def _group_table(content: Content, task: Task, rows: Sequence[ModelResult]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in _groups(row)))
    columns = list(dict.fromkeys(column for column, _ in keys))
    groups = tuple(
        Group(
            column,
            "backbone",
            tuple(
                _group_row(content, task, rows, column, value)
                for name, value in keys
                if name == column
            ),
        )
        for column in columns
    )
    level = next(row.conformal.level for row in rows if row.conformal)
    return Table(
        section="groups",
        title=f"{task.card['title']}. Coverage of conformal sets by group, nominal "
        f"{percent(level)}",
        columns=(Column("Group"), *(Column(content.titles[row.model]) for row in rows)),
        groups=groups,
        lines=(
            "Every backbone and the strongest floor, main protocol; 95% intervals (Wilson) over "
            "the scored subjects. A small group moves by chance: one subject of 20 is 5%.",
        ),
        task=task.name,
        method="Wilson (95%) of the coverage",
    )


def _group_row(
    content: Content, task: Task, rows: Sequence[ModelResult], column: str, value: str
) -> Row:
    return Row(Cell(value), tuple(_group_cell(content, task, row, column, value) for row in rows))


def _group_cell(content: Content, task: Task, row: ModelResult, column: str, value: str) -> Cell:
    assert row.conformal is not None
    found = row.conformal.by_group.get(column, {}).get(value)
    if found is None or found.coverage is None:
        return reason_cell("no subject of this group was scored")
    under = [share_interval_text(found.coverage, found.n)]
    under.append("" if found.mean_size is None else f"size {number(found.mean_size)}")
    under.append("" if found.n is None else f"n = {found.n:,}")
    warnings = tuple(content.warnings(task.name, row.model))
    lines = tuple(line for line in under if line)
    return Cell(percent(found.coverage), under=lines, warnings=warnings)


def _ordered(content: Content, task: Task) -> list[ModelResult]:
    return picks.in_order(task.results.rows, [model.name for model in content.models])
