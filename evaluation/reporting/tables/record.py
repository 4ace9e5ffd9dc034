"""The tables of what was done: settings chosen, probes left out, leakage checks, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.reporting.content import STATUSES, Content, Task
from evaluation.reporting.numbers import DASH, number, plural, settings
from evaluation.reporting.rows import SHORT_DIGEST
from evaluation.reporting.tables.table import Cell, Column, Group, Row, Table
from evaluation.reporting.titles import protocol_title, split_title

Entry = tuple[str, str, str | None]
"""of what, where, digest"""


def selections_table(content: Content, task: Task) -> Table | None:
    """Which setting of each probe was chosen, out of how many, by what score."""
    rows = [
        Row(
            Cell(content.titles.get(one["model"], one["model"])),
            (
                Cell(protocol_title(one["protocol"])),
                Cell(settings(one["chosen"])),
                Cell(plural(len(one["grid"]), "setting")),
                Cell(score_of_choice(one)),
            ),
        )
        for one in task.selections
        if one["chosen"]
    ]
    heads = ("Model", "Protocol", "Chosen", "Of", "Score of the choice")
    return _plain(
        "selections",
        f"{task.card['title']}. Chosen settings",
        heads,
        rows,
        lines=("Chosen without the test split; the whole grid stands in the CSV file.",),
        task=task.name,
    )


def score_of_choice(selection: Mapping[str, Any]) -> str:
    """The score by which a setting was chosen: of its entry in the grid."""
    chosen = selection["chosen"]
    scores = [
        entry["score"]
        for entry in selection["grid"]
        if all(entry.get(name, value) == value for name, value in chosen.items())
    ]
    return number(scores[0]) if scores and scores[0] is not None else DASH


def skipped_table(content: Content, task: Task) -> Table | None:
    """What was not computed, and why."""
    rows = [
        Row(
            Cell(content.titles.get(one["model"], one["model"] or "all")),
            (Cell(protocol_title(one["protocol"])), Cell(str(one["reason"]))),
        )
        for one in task.skipped
    ]
    title = f"{task.card['title']}. Left out"
    return _plain("skipped", title, ("Model", "Protocol", "Reason"), rows, task=task.name)


def checks_table(content: Content, statuses: Sequence[str], *, title: str) -> Table | None:
    """The leakage checks with one of these answers, what needs a reader's eye first."""
    tasks = {task.name: task.card["title"] for task in content.tasks}
    shown = [one for one in content.checks if one.status in statuses]
    checks = sorted(shown, key=lambda one: STATUSES.index(one.status))
    rows = [
        Row(
            Cell(one.status, status=one.status),
            (
                Cell(str(tasks.get(one.task or "", one.task or "all"))),
                Cell(one.check),
                Cell(content.titles.get(one.model or "", one.model or DASH)),
                Cell(DASH if one.count is None else f"{one.count:,}"),
                Cell("; ".join(text for text in (one.detail, one.reason) if text)),
            ),
        )
        for one in checks
    ]
    heads = ("Result", "Task", "Check", "Model", "Found", "Detail")
    return _plain("checks", title, heads, rows)


def sources_table(content: Content, tables: Sequence[Table]) -> Table:
    """Of every table with scores: store, split, n, interval method, draws, seed, statistics."""
    tasks = {task.name: task for task in content.tasks}
    rows = []
    for table in tables:
        whose = [tasks[table.task]] if table.task else list(content.tasks)
        rows.append(
            Row(
                Cell(f"Table {table.number}", link=f"table-{table.number}"),
                (
                    Cell(table.title),
                    Cell(_common(split_title(task.results.split) for task in whose)),
                    Cell(_common(f"{task.results.n:,}" for task in whose)),
                    Cell(table.method),
                    Cell(_common(str(task.results.seed) for task in whose)),
                    Cell(f"statistics/{table.task}.json" if table.task else "of each task"),
                    Cell(_filter(content, table), is_code=True),
                ),
            )
        )
    heads = (
        "Table",
        "Title",
        "Split",
        "n",
        "Intervals",
        "Seed",
        "Read from",
        "Rows in the CSV file",
    )
    found = _plain("sources", "Every table and its source", heads, rows)
    assert found is not None
    return found


def _filter(content: Content, table: Table) -> str:
    task = f" task={table.task}" if table.task else ""
    return f"store={content.name}{task} section={table.section}"


def _common(values: Any) -> str:
    """Each value once."""
    return ", ".join(dict.fromkeys(values))


def digests_table(content: Content) -> Table:
    """Every digest in full: of the run, of each backbone, and of the files of each task."""
    whole: list[Entry] = [
        ("Run", "run.json", content.store_digest),
        ("Recipe", "", content.recipe_digest),
    ]
    models: list[Entry] = [
        (model.title, "weights, architecture, preprocessing", model.digest)
        for model in content.models
        if model.digest
    ]
    groups: list[tuple[str, list[Entry]]] = [("The run", whole), ("Models", models)]
    for task in content.tasks:
        entries: list[Entry] = [
            ("Data", str(task.card["data"]), task.digests.data),
            ("Predictions", f"predictions/{task.name}.parquet", task.digests.predictions),
            ("Statistics", f"statistics/{task.name}.json", task.digests.statistics),
        ]
        groups.append((str(task.card["title"]), entries))
    return Table(
        section="digests",
        title="Digests",
        columns=(Column("Of"), Column("Where"), Column("SHA-256")),
        groups=tuple(
            Group(title, "backbone", tuple(_digest_row(*entry) for entry in entries))
            for title, entries in groups
            if entries
        ),
        lines=(
            "Predictions: over the tables of predictions, groups and few-shot scores. Statistics "
            "name the predictions they were computed from, and are refused beside others. The CSV "
            f"file repeats the first {SHORT_DIGEST} digits beside every number.",
        ),
    )


def _digest_row(what: str, where: str, value: str | None) -> Row:
    cell = Cell(value, is_code=True) if value else Cell("not in this store")
    return Row(Cell(what), (Cell(where), cell))


def _plain(
    section: str,
    title: str,
    heads: Sequence[str],
    rows: Sequence[Row],
    *,
    lines: tuple[str, ...] = (),
    task: str | None = None,
) -> Table | None:
    if not rows:
        return None
    columns = tuple(Column(head) for head in heads)
    return Table(section, title, columns, (Group("", "", tuple(rows)),), lines, task)
