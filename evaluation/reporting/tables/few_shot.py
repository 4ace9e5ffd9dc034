"""The tables of few-shot scores: shots per class and label fractions, each with its draws."""

from collections.abc import Sequence

from evaluation.reporting import picks
from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import interval, number, plural, signed
from evaluation.reporting.results import FewShotCurve, FewShotPoint
from evaluation.reporting.tables.scores import grouped, model_cell
from evaluation.reporting.tables.table import Cell, Column, Row, Table, reason_cell
from evaluation.reporting.titles import metric_title, protocol_title, split_title

UNITS = ("shots", "fraction")


def few_shot_tables(content: Content, task: Task) -> list[Table]:
    """One table for shots and one for fractions, of those that the task has."""
    found = task.results.few_shot
    if found is None:
        return []
    return [_table(content, task, unit, sizes) for unit in UNITS if (sizes := sizes_of(task, unit))]


def sizes_of(task: Task, unit: str) -> list[float]:
    """Every number of shots, or every fraction, ascending."""
    curves = task.results.few_shot.curves if task.results.few_shot else ()
    return sorted({point.x for curve in curves for point in curve.points if point.unit == unit})


def size_title(unit: str, size: float) -> str:
    """``4 per class`` or ``5% of labels``."""
    return f"{size:g} per class" if unit == "shots" else f"{100 * size:g}% of labels"


def _table(content: Content, task: Task, unit: str, sizes: Sequence[float]) -> Table:
    found = task.results.few_shot
    assert found is not None
    curves = [one for one in found.curves if any(point.unit == unit for point in one.points)]
    protocols = list(dict.fromkeys(curve.protocol for curve in curves))
    with_area = unit == _unit_of_area(task) and any(curve.area is not None for curve in curves)
    order = [model.name for model in content.models]
    curves.sort(key=lambda one: (order.index(one.model), protocols.index(one.protocol)))
    rows = [
        (curve.kind, _row(content, task, curve, unit, sizes, len(protocols) > 1, with_area))
        for curve in curves
    ]
    heads = [_head(curves, unit, size) for size in sizes]
    if with_area:
        heads.insert(0, Column("Area", ("under the curve", "5-95%")))
    if len(protocols) > 1:
        heads.insert(0, Column("Protocol"))
    what = "shots per class" if unit == "shots" else "fractions of the labels"
    return Table(
        section=f"few_shot.{unit}",
        title=f"{task.card['title']}. {metric_title(task.results.metric)} from {what}",
        columns=(Column("Model"), *heads),
        groups=grouped(rows),
        lines=_lines(content, task, sizes if unit == "fraction" else ()),
        task=task.name,
        method="5-95% over draws of training subjects",
    )


def _unit_of_area(task: Task) -> str:
    """The area is under the curve over shots; over fractions where there are none."""
    return "shots" if sizes_of(task, "shots") else "fraction"


def _head(curves: Sequence[FewShotCurve], unit: str, size: float) -> Column:
    points = [point for curve in curves for point in curve.points]
    draws = max(one.draws or 0 for one in points if (one.unit, one.x) == (unit, size))
    return Column(size_title(unit, size), (plural(draws, "draw"),))


def _row(
    content: Content,
    task: Task,
    curve: FewShotCurve,
    unit: str,
    sizes: Sequence[float],
    with_protocol: bool,
    with_area: bool,
) -> Row:
    warnings = tuple(content.warnings(task.name, curve.model))
    points = {point.x: point for point in curve.points if point.unit == unit}
    cells = [Cell(protocol_title(curve.protocol))] if with_protocol else []
    if with_area:
        cells.append(_area(curve, warnings))
    cells += [_point(points.get(size), warnings) for size in sizes]
    return Row(model_cell(content, curve.model), tuple(cells))


def _area(curve: FewShotCurve, warnings: tuple[str, ...]) -> Cell:
    if curve.area is None:
        return reason_cell("too few points for an area")
    under = interval(curve.area_low, curve.area_high, curve.area)
    return Cell(number(curve.area), under=(under,) if under else (), warnings=warnings)


def _point(point: FewShotPoint | None, warnings: tuple[str, ...]) -> Cell:
    if point is None or point.mean is None:
        return reason_cell(point.reason if point else "not drawn for this model")
    text = number(point.mean, point.low, point.high)
    under = [interval(point.low, point.high, point.mean)]
    if point.sd is not None:
        under.insert(0, f"SD {number(point.sd, point.mean)}")
    if point.difference is not None:
        under.append(f"\N{GREEK CAPITAL LETTER DELTA} {signed(point.difference)}")
        under.append(interval(point.difference_low, point.difference_high, point.difference))
    notes = (point.reason,) if point.reason else ()
    return Cell(text, under=tuple(line for line in under if line), warnings=warnings, notes=notes)


def _lines(content: Content, task: Task, fractions: Sequence[float]) -> tuple[str, ...]:
    found, results = task.results.few_shot, task.results
    assert found is not None
    lines = [
        "Mean over draws, its SD, and the 5th to 95th percentile; every model is trained on the "
        f"same draws and scored on the same {results.n:,} subjects "
        f"({split_title(results.split)}). The interval is over draws, not over subjects."
    ]
    if found.reference is not None:
        whose = content.titles.get(found.reference, found.reference)
        by = protocol_title(found.reference_protocol or picks.PREFERRED_PROTOCOL)
        lines.append(
            f"\N{GREEK CAPITAL LETTER DELTA}: paired difference to the floor that is strongest by "
            f"the {by} ({whose}) on the same draws, with its 5th to 95th percentile."
        )
    if 1.0 in fractions:
        lines.append("All labels are one training set: there is no spread over draws.")
    return tuple(lines)
