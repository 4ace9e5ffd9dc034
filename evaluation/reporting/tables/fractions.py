"""The table of the label-fraction curve: networks trained on shares of the training subjects."""

from collections.abc import Sequence

from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import interval, number, p_sentence, signed
from evaluation.reporting.results import Comparison, FractionLine, FractionPoint, Fractions
from evaluation.reporting.tables.scores import model_cell
from evaluation.reporting.tables.table import Cell, Column, Group, Row, Table, reason_cell
from evaluation.reporting.titles import KIND_OF_MODEL, is_lower_better, metric_title, split_title
from evaluation.statistics.kinds import TRAINED

NOT_TRAINED = "no network was trained on this share"


def fraction_table(content: Content, task: Task) -> Table | None:
    """Lines by share of the training subjects, and the paired differences at each share.

    None where there is but one share, or no network at all.
    """
    found = task.results.fractions
    if found is None or not found.lines:
        return None
    metric = metric_title(task.results.metric)
    shares = sorted({point.fraction for line in found.lines for point in line.points})
    if len(shares) == 1:
        return None  # its one score stands in the table of all models
    lines = tuple(_line_row(content, task, line, shares) for line in found.lines)
    pairs = tuple(_pair_row(content, task, own, shares) for own in _pairs(found))
    groups = [Group(KIND_OF_MODEL[TRAINED], TRAINED, lines)]
    if pairs:
        groups.append(Group("Fine-tuned less from scratch, same share", "verdict", pairs))
    return Table(
        section="fractions",
        title=f"{task.card['title']}. {metric} by share of the training subjects",
        columns=(Column("Model"), *(_head(found, share) for share in shares)),
        groups=tuple(groups),
        lines=_lines(task, has_pairs=bool(pairs)),
        task=task.name,
        method=_methods(found),
    )


def share_title(fraction: float) -> str:
    """``20% of training``."""
    return f"{100 * fraction:g}% of training"


def _head(found: Fractions, share: float) -> Column:
    points = [point for line in found.lines for point in line.points if point.fraction == share]
    counts = sorted({point.num_train for point in points})
    ends = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return Column(share_title(share), (f"{ends} subjects", "[95% interval]"))


def _line_row(content: Content, task: Task, line: FractionLine, shares: Sequence[float]) -> Row:
    points = {point.fraction: point for point in line.points}
    warnings = tuple(content.warnings(task.name, line.model))
    cells = tuple(_point(points.get(share), task, warnings) for share in shares)
    return Row(model_cell(content, line.model), cells)


def _point(point: FractionPoint | None, task: Task, warnings: tuple[str, ...]) -> Cell:
    if point is None or point.value is None:
        return reason_cell(point.reason if point else NOT_TRAINED)
    under = [interval(point.low, point.high, point.value)]
    if point.n != task.results.n:
        under.append(f"n = {point.n:,}")
    return Cell(
        number(point.value, point.low, point.high),
        under=tuple(line for line in under if line),
        notes=(point.reason,) if point.reason else (),
        warnings=warnings,
    )


def _pairs(found: Fractions) -> list[list[Comparison]]:
    """Comparisons of the same two lines together."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for one in found.comparisons:
        pairs.setdefault((one.a, one.b), []).append(one)
    return list(pairs.values())


def _pair_row(
    content: Content, task: Task, own: Sequence[Comparison], shares: Sequence[float]
) -> Row:
    a, b = own[0].a, own[0].b
    warnings = tuple(content.warnings(task.name, a, b))
    at = {one.fraction: one for one in own}
    head = Cell(f"{content.titles[a]} less {content.titles[b]}")
    return Row(head, tuple(_difference(at.get(share), warnings) for share in shares))


def _difference(one: Comparison | None, warnings: tuple[str, ...]) -> Cell:
    if one is None or one.difference is None:
        return reason_cell(one.reason if one else "not both were trained on this share")
    under = [interval(one.low, one.high, one.difference)]
    if one.p_holm is not None:
        under.append(p_sentence(one.p_holm))
    return Cell(
        signed(one.difference, one.low, one.high),
        under=tuple(line for line in under if line),
        notes=(one.reason,) if one.reason else (),
        warnings=warnings,
    )


def _lines(task: Task, *, has_pairs: bool) -> tuple[str, ...]:
    results = task.results
    lines = [
        f"Each is one network, trained on so many subjects and scored on the same {results.n:,} "
        f"({split_title(results.split)}). Intervals are over the scored subjects: they say nothing "
        "of other training subjects, or of another seed."
    ]
    if has_pairs:
        direction = "Negative" if is_lower_better(results.metric) else "Positive"
        lines.append(
            f"{direction} differences: pretraining helped. They are paired by subject; p by "
            "sign-flip permutation, adjusted by Holm together with every other comparison of this "
            "report."
        )
    return tuple(lines)


def _methods(found: Fractions) -> str:
    methods = dict.fromkeys(
        point.method for line in found.lines for point in line.points if point.method
    )
    return "; ".join(methods)
