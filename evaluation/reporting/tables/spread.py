"""What else could have come out: other test subjects, other training sets, other folds."""

from evaluation.reporting import picks
from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import interval, number
from evaluation.reporting.results import Limits, ModelResult, Spread
from evaluation.reporting.tables.scores import grouped, model_cell, score_cell
from evaluation.reporting.tables.table import Cell, Column, Row, Table, reason_cell
from evaluation.reporting.titles import metric_title, protocol_title

NOT_MADE = "not computed for this row"


def spread_table(content: Content, task: Task) -> Table | None:
    """The interval over subjects beside DeLong's, the training-set spread, and that over folds.

    A column that no model has is left out, and the table too when none is left.
    """
    results = task.results
    rows = picks.in_order(results.rows, [model.name for model in content.models])
    rows = [row for row in rows if any(getattr(row, name) for name in _METHODS)]
    if not rows:
        return None
    parts = _parts(rows)
    made = []
    for row in rows:
        warnings = tuple(content.warnings(task.name, row.model))
        shown = row.scores[0]
        cells = [
            Cell(protocol_title(row.protocol)),
            score_cell(shown, best=None, warnings=warnings),
            Cell(shown.method or ""),
        ]
        cells += [_cell(getattr(row, name), warnings) for name in parts]
        made.append((row.kind, Row(model_cell(content, row.model), tuple(cells))))
    heads = {
        "delong": Column("DeLong", ("95% interval",)),
        "bootstrap": Column("Bootstrap", ("95% interval",)),
        "training_spread": Column("Training sets", ("mean \N{PLUS-MINUS SIGN} SD", "2.5-97.5%")),
        "folds": Column("Folds", ("mean \N{PLUS-MINUS SIGN} SD", "95% Nadeau-Bengio")),
    }
    return Table(
        section="spread",
        title=f"{task.card['title']}. {metric_title(results.metric)}: other subjects, training "
        "sets, folds",
        columns=(
            Column("Model"),
            Column("Protocol"),
            Column("Subjects", ("95% interval",)),
            Column("Method"),
            *(heads[name] for name in parts),
        ),
        groups=grouped(made),
        lines=_lines(rows, parts),
        task=task.name,
        method="; ".join(_METHODS[name] for name in parts),
    )


_METHODS = {
    "delong": "DeLong (95%)",
    "bootstrap": "percentile bootstrap (95%)",
    "training_spread": "2.5-97.5% over resampled training sets",
    "folds": "Nadeau-Bengio (95%) over folds",
}


def _parts(rows: list[ModelResult]) -> list[str]:
    """The columns that are filled; DeLong's only where the shown interval is another one."""
    parts = [name for name in _METHODS if any(getattr(row, name) for row in rows)]
    if all("DeLong" in (row.scores[0].method or "DeLong") for row in rows):
        parts = [name for name in parts if name != "delong"]
    return parts


def _cell(spread: Limits | Spread | None, warnings: tuple[str, ...]) -> Cell:
    if spread is None or (isinstance(spread, Spread) and spread.mean is None):
        return reason_cell(NOT_MADE)
    if isinstance(spread, Limits) or spread.mean is None:
        ends = interval(spread.low, spread.high)
        return Cell(ends, warnings=warnings) if ends else reason_cell(NOT_MADE)
    text = number(spread.mean, spread.low, spread.high)
    if spread.sd is not None:
        text += f" \N{PLUS-MINUS SIGN} {number(spread.sd, spread.mean)}"
    return Cell(text, under=(interval(spread.low, spread.high, spread.mean),), warnings=warnings)


def _lines(rows: list[ModelResult], parts: list[str]) -> tuple[str, ...]:
    lines = [
        "Subjects: had other subjects been scored. An interval of one kind says nothing of the "
        "others."
    ]
    if "training_spread" in parts:
        counts = _counts(rows, "training_spread")
        lines.append(
            f"Training sets: the same setting trained again on {counts} resampled training sets, "
            "scored on the same subjects."
        )
    if "folds" in parts:
        lines.append(
            f"Folds: the mean score of {_counts(rows, 'folds')} folds of repeated "
            "cross-validation, with an interval that allows for their overlap (Nadeau and Bengio)."
        )
    return tuple(lines)


def _counts(rows: list[ModelResult], name: str) -> str:
    """The number that all rows share, or the range of it."""
    counts = sorted({part.num for row in rows if (part := getattr(row, name)) and part.num})
    if not counts:
        return "an unknown number of"
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
