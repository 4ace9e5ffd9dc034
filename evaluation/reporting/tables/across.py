"""The tables over several tasks: the overview, grouped by metric, and average ranks."""

from collections.abc import Sequence
from dataclasses import replace

from evaluation.reporting import picks
from evaluation.reporting.content import Content, Task
from evaluation.reporting.family import Ranks
from evaluation.reporting.numbers import interval, number, p_sentence, plural, signed
from evaluation.reporting.results import Comparison, ModelResult
from evaluation.reporting.tables.scores import COVERS, grouped, methods_of, model_cell, score_cell
from evaluation.reporting.tables.table import (
    MOST_COLUMNS,
    Cell,
    Column,
    Group,
    Row,
    Table,
    in_parts,
    reason_cell,
)
from evaluation.reporting.titles import (
    is_lower_better,
    metric_title,
    protocol_title,
    split_title,
)
from evaluation.reporting.words import counted
from evaluation.statistics.kinds import TRAINED

NO_FLOOR = "no backbone was compared with a floor here"
NO_CEILING = "no network was trained from scratch on all training subjects of this task"


def overview(content: Content) -> list[Table]:
    """Backbones and floors by task, in tables that fit a page; tasks of one metric stand together
    and each column names its metric."""
    return [_overview(content, tasks) for tasks in _packed(content.tasks)]


def _packed(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tables of at most ``MOST_COLUMNS`` tasks; a metric is split only where it must be."""
    by_metric: dict[str, list[Task]] = {}
    for task in tasks:
        by_metric.setdefault(task.results.metric, []).append(task)
    parts = [part for group in by_metric.values() for part in in_parts(group)]
    packed: list[list[Task]] = []
    for part in parts:
        if packed and len(packed[-1]) + len(part) <= MOST_COLUMNS:
            packed[-1] += part
        else:
            packed.append(list(part))
    return packed


def _overview(content: Content, tasks: Sequence[Task]) -> Table:
    chosen = [_chosen(task) for task in tasks]
    found = list(dict.fromkeys(key for column in chosen for key in column))
    rows = [
        (model.kind, _overview_row(content, key, tasks, chosen))
        for model in content.models
        for key in sorted(key for key in found if key[0] == model.name)
    ]
    metrics = list(dict.fromkeys(metric_title(task.results.metric) for task in tasks))
    methods = [
        methods_of(list(column.values()), [task.results.metric], draws=task.results.num_bootstraps)
        for task, column in zip(tasks, chosen, strict=True)
    ]
    return Table(
        section="scores",
        title=f"Backbones and floors: {', '.join(metrics)}",
        columns=(Column("Model"), *(_column(content, task) for task in tasks)),
        groups=(*grouped(rows), *_verdicts(content, tasks)),
        lines=(
            "One row per model, by its main protocol, and one per protocol that only a floor has, "
            "with 95% intervals over subjects. Bold: the best point estimate of a task, which says "
            "nothing of a difference. Columns of different metrics are not to be compared.",
            *((COVERS,) if _has_coverage(chosen) else ()),
        ),
        method="; ".join(dict.fromkeys(method for method in methods if method)),
    )


Key = tuple[str, str]
"""Model, and the protocol where it is not its main one."""


def _chosen(task: Task) -> dict[Key, ModelResult]:
    rows = task.results.rows
    mains = {id(row) for row in picks.one_per_model(rows)}
    return {
        (row.model, "" if id(row) in mains else row.protocol): row for row in picks.contenders(rows)
    }


def _has_coverage(chosen: Sequence[dict[Key, ModelResult]]) -> bool:
    shown = [row.scores[0] for column in chosen for row in column.values()]
    return any(score.coverage is not None for score in shown)


def _column(content: Content, task: Task) -> Column:
    results = task.results
    counts = {(row.n, row.positives) for row in picks.one_per_model(results.rows)}
    lower = ", lower is better" if is_lower_better(results.metric) else ""
    under = [f"{metric_title(results.metric)}{lower}", split_title(results.split)]
    if len(counts) == 1:
        ((n, positives),) = counts
        under.append(f"n = {n:,}")
        if positives is not None:
            under.append(counted(positives, task.card["kind"]))
    return Column(task.card["title"], tuple(under), link=f"{content.name}-{task.name}")


def _overview_row(
    content: Content,
    key: Key,
    tasks: Sequence[Task],
    chosen: Sequence[dict[Key, ModelResult]],
) -> Row:
    model, protocol = key
    cells = []
    for task, column in zip(tasks, chosen, strict=True):
        if key not in column:
            cells.append(reason_cell(_reason_without_score(task, key)))
            continue
        best = picks.best_of(task.results.metric, (row.scores[0].value for row in column.values()))
        cell = score_cell(
            column[key].scores[0], best=best, warnings=content.warnings(task.name, model)
        )
        counts = {row.n for row in column.values()}
        cells.append(_remarked(cell, column[key], task, len(counts), is_main=not protocol))
    head = model_cell(content, model)
    if protocol:
        head = replace(head, text=f"{head.text}, {protocol_title(protocol)}")
    return Row(head, tuple(cells))


def _remarked(cell: Cell, row: ModelResult, task: Task, num_counts: int, *, is_main: bool) -> Cell:
    """``cell`` with n where models differ in it, and with the protocol where it is another one."""
    main = picks.main_protocol(task.results.rows)
    under = (*cell.under, f"n = {row.n:,}") if num_counts > 1 else cell.under
    notes = cell.notes
    if is_main and row.protocol != main and row.kind != TRAINED:
        notes = (*notes, f"{protocol_title(row.protocol)}, not {protocol_title(main)}")
    return Cell(cell.text, under=under, notes=notes, warnings=cell.warnings, is_best=cell.is_best)


def _reason_without_score(task: Task, key: Key) -> str:
    model, protocol = key
    reasons = [
        one["reason"]
        for one in task.skipped
        if one["model"] in (model, None)
        and one["protocol"] != "few_shot"
        and (not protocol or one["protocol"] in (protocol, None))
    ]
    return str(reasons[0]) if reasons else "not part of this task"


def _verdicts(content: Content, tasks: Sequence[Task]) -> tuple[Group, ...]:
    """The strongest backbone less the strongest floor, and less the supervised ceiling."""
    picked = "both picked by their point estimates; p adjusted by Holm in this report"
    floors = [
        _verdict(content, task, picks.verdict(task.results), otherwise=NO_FLOOR) for task in tasks
    ]
    tops = [
        _verdict(content, task, picks.distance_to_ceiling(task.results), otherwise=NO_CEILING)
        for task in tasks
    ]
    heads = {"Best backbone less best floor": floors, "Best backbone less supervised ceiling": tops}
    rows = tuple(
        Row(Cell(head, notes=(picked,)), tuple(cells))
        for head, cells in heads.items()
        if any(cell.text != reason_cell("").text for cell in cells)
    )
    title = "Against the floors and the ceiling" if len(rows) > 1 else "Against the floors"
    return (Group(title, "verdict", rows),) if rows else ()


def _verdict(content: Content, task: Task, found: Comparison | None, *, otherwise: str) -> Cell:
    if found is None or found.difference is None:
        return reason_cell(found.reason if found else otherwise)
    under = [interval(found.low, found.high, found.difference)]
    if found.p_holm is not None:
        under.append(p_sentence(found.p_holm))
    note = f"{content.titles[found.a]} less {content.titles[found.b]}"
    warnings = content.warnings(task.name, found.a, found.b)
    text = signed(found.difference, found.low, found.high)
    lines = tuple(line for line in under if line)
    return Cell(text, under=lines, notes=(note,), warnings=tuple(warnings))


def ranks_table(content: Content, ranks: Ranks) -> Table:
    """Average ranks, the best first; or the reason why there are none."""
    kinds = {model.name: model.kind for model in content.models}
    if not ranks.ranks:
        rows = (Row(Cell("No ranks"), (reason_cell(ranks.reason), Cell())),)
        groups: tuple[Group, ...] = (Group("", "floor", rows),)
    else:
        groups = grouped(
            [
                (
                    kinds[model],
                    Row(
                        model_cell(content, model),
                        (
                            Cell(
                                f"{rank:.2f}",
                                warnings=tuple(content.rank_warnings(ranks.tasks, model)),
                            ),
                            Cell(str(len(ranks.tasks))),
                        ),
                    ),
                )
                for model, rank in ranks.ranks.items()
            ]
        )
    return Table(
        section="ranks",
        title=f"Average rank over {plural(len(ranks.tasks), 'task')}",
        columns=(Column("Model"), Column("Average rank", ("1 is the best",)), Column("Tasks")),
        groups=groups,
        lines=_rank_lines(content, ranks),
        method="ranks of point estimates by the main protocol",
    )


def _rank_lines(content: Content, ranks: Ranks) -> tuple[str, ...]:
    lines = []
    if ranks.critical_difference is not None:
        lines.append(
            f"Nemenyi: average ranks that are closer than {number(ranks.critical_difference)} "
            "cannot be told apart at the 5% level."
        )
    if ranks.p is not None:
        lines.append(f"Friedman's test that all models are alike: {p_sentence(ranks.p)}.")
    if ranks.left_out:
        names = ", ".join(content.titles[model] for model in ranks.left_out)
        lines.append(f"Not ranked, without a score in every one of these tasks: {names}.")
    if ranks.tasks_left_out:
        titles = {task.name: task.card["title"] for task in content.tasks}
        names = ", ".join(titles[name] for name in ranks.tasks_left_out)
        lines.append(f"Not ranked over: {names}. Fewer models have a score there.")
    cohorts = {task.card["data"] for task in content.tasks if task.name in ranks.tasks}
    if ranks.ranks and len(cohorts) < len(ranks.tasks):
        lines.append(
            f"{plural(len(ranks.tasks), 'task')} of {plural(len(cohorts), 'cohort')}: tasks that "
            "share subjects are not independent, so both of these tests are surer than they should "
            "be."
        )
    if any(model.kind == TRAINED for model in content.models):
        lines.append("Not ranked: what was trained on the labels, another network for each task.")
    return tuple(lines)
