"""The tables of scores: every protocol and metric of a task, and each of its outputs."""

import math
from collections.abc import Sequence

from evaluation.reporting import picks
from evaluation.reporting.content import CROSS_VALIDATION, Content, Task
from evaluation.reporting.numbers import interval, number, percent, plural
from evaluation.reporting.results import ModelResult, OutputScore, Score, Shuffled
from evaluation.reporting.tables.forest import Forest, forest
from evaluation.reporting.tables.table import (
    Cell,
    Column,
    Group,
    Row,
    Table,
    in_parts,
    reason_cell,
)
from evaluation.reporting.titles import (
    BY_OUTPUT_TITLES,
    KIND_OF_MODEL,
    constant_score,
    metric_title,
    protocol_title,
    split_title,
)
from evaluation.reporting.words import UNKNOWN_OVERLAP
from evaluation.statistics.kinds import FLOOR, TRAINED

COVERS = (
    "covers: how often intervals of this method held the truth in a simulation of clustered "
    "subjects at the n and the score nearest to these; nominal is 95%."
)
TRAINED_ON = (
    "Trained on the labels: the network itself learns, from training subjects alone, and is "
    "stopped where it is best on others. Where a test split is shown, probes are fitted on "
    "validation too, and such a network is not. From scratch it is the supervised ceiling: what "
    "these labels give without pretraining."
)
POOLED = (
    "Its scores are of one network a fold, each on the subjects it was not trained on. Pooled, "
    "they also hold what sets those networks apart, which tends to lower a metric of ranking."
)
THRESHOLDS = {
    "validation": "chosen on validation",
    "cross-fitted": "chosen for each part of the subjects on the others (cross-fitted)",
}


def score_cell(score: Score, *, best: float | None, warnings: Sequence[str] = ()) -> Cell:
    """The value, its interval, and what such intervals cover where that was measured."""
    if score.value is None:
        return reason_cell(score.reason)
    under = [interval(score.low, score.high, score.value)]
    if score.coverage is not None:
        under.append(f"covers {percent(score.coverage)}")
    if score.specificity is not None:
        under.append(f"at specificity {number(score.specificity)}")
    return Cell(
        number(score.value, score.low, score.high),
        under=tuple(line for line in under if line),
        notes=(score.reason,) if score.reason else (),
        warnings=tuple(warnings),
        is_best=picks.is_best(score.value, best),
    )


def model_cell(content: Content, model: str, *, note: str = "") -> Cell:
    """The head of a model's row; what was pretrained on unknown data says so."""
    (about,) = [one for one in content.models if one.name == model]
    notes = [UNKNOWN_OVERLAP] if about.kind != FLOOR and about.seen == "unknown" else []
    return Cell(about.title, notes=tuple(note for note in (*notes, note) if note))


def grouped(rows: Sequence[tuple[str, Row]]) -> tuple[Group, ...]:
    """Rows with the kind of their model, each kind apart; an empty group is left out."""
    parts = {kind: tuple(row for one, row in rows if one == kind) for kind in KIND_OF_MODEL}
    return tuple(Group(KIND_OF_MODEL[kind], kind, part) for kind, part in parts.items() if part)


def methods_of(rows: Sequence[ModelResult], metrics: Sequence[str], *, draws: int) -> str:
    """``logit DeLong (AUROC); BCa bootstrap, 2,000 draws (AUPRC, Brier)``, by metric."""
    found: dict[str, list[str]] = {}
    for at, metric in enumerate(metrics):
        for method in dict.fromkeys(row.scores[at].method for row in rows):
            if method:
                found.setdefault(method, []).append(metric_title(metric))
    return "; ".join(
        f"{method}{f', {draws:,} draws' if 'bootstrap' in method else ''} ({', '.join(metrics)})"
        for method, metrics in found.items()
    )


def task_scores(content: Content, task: Task) -> Table:
    """Every model and protocol, with a forest plot of the primary metric."""
    results = task.results
    rows = picks.in_order(results.rows, [model.name for model in content.models])
    best = [
        picks.best_of(metric, (row.scores[at].value for row in rows))
        for at, metric in enumerate(results.metrics)
    ]
    plot = _forest(rows, results.metric)
    made = []
    for row, places in zip(rows, plot.places, strict=True):
        warnings = content.warnings(task.name, row.model)
        cells = [
            score_cell(score, best=top, warnings=warnings)
            for score, top in zip(row.scores, best, strict=True)
        ]
        cells.insert(1, Cell(places=places))
        lead = [Cell(protocol_title(row.protocol)), Cell(f"{row.n:,}")]
        made.append((row.kind, Row(model_cell(content, row.model), (*lead, *cells))))
    heads = [Column(metric_title(metric), ("[95% interval]",)) for metric in results.metrics]
    line = "line: a constant score" if constant_score(results.metric) is not None else ""
    heads.insert(1, Column("", (line,) if line else (), is_drawing=True, ends=plot.ends))
    return Table(
        section="scores",
        title=f"{task.card['title']}: every protocol and metric",
        columns=(Column("Model"), Column("Protocol"), Column("n"), *heads),
        groups=(*grouped(made), *_shuffled(content, results.shuffled)),
        lines=_lines(task),
        task=task.name,
        method=methods_of(rows, results.metrics, draws=results.num_bootstraps),
    )


def _forest(rows: Sequence[ModelResult], metric: str) -> Forest:
    firsts = [row.scores[0] for row in rows]
    chance = constant_score(metric)
    limits = (-math.inf if chance is None else chance - 0.5, math.inf)
    return forest([(one.low, one.value, one.high) for one in firsts], line=chance, limits=limits)


def _shuffled(content: Content, checks: Sequence[Shuffled]) -> tuple[Group, ...]:
    """Shuffled labels: what the same probe finds where there is nothing to find."""
    rows = []
    for one in checks:
        whose = content.titles.get(one.model or "", "")
        head = Cell(f"Shuffled labels{f', {whose}' if whose else ''}")
        if one.mean is None or one.se is None:
            rows.append(Row(head, (reason_cell(one.reason),)))
            continue
        verdict = "passed" if one.passed else "failed"
        text = (
            f"{metric_title(one.metric or '')} {number(one.mean)} \N{PLUS-MINUS SIGN} "
            f"{number(one.se)} (mean and standard error over {plural(one.num or 0, 'shuffle')})"
        )
        if one.chance is not None:
            text += f"; within three standard errors of chance, {number(one.chance)}: {verdict}"
        cell = Cell(text, status=verdict, notes=(one.reason,) if one.reason else ())
        rows.append(Row(head, (cell,)))
    return (Group("Nothing to find", "floor", tuple(rows)),) if rows else ()


def _lines(task: Task) -> tuple[str, ...]:
    results = task.results
    lines = [
        f"n is the number of subjects scored ({split_title(results.split)}). Bold: the best point "
        "estimate of a column; overlapping intervals are no proof that one model is better."
    ]
    if any(score.coverage is not None for row in results.rows for score in row.scores):
        lines.append(COVERS)
    if any(row.kind == TRAINED for row in results.rows):
        lines.append(TRAINED_ON)
        if results.split == CROSS_VALIDATION:
            lines.append(POOLED)
    if "balanced_accuracy" in results.metrics:
        whose = "all" if results.split == "cv" else "training"
        lines.append(
            f"Balanced accuracy cuts at the share of each class among {whose} subjects; that of "
            "prototypes, whose probabilities do not know it, at equal shares."
        )
    if "nll" in results.metrics:
        lines.append(
            "A probability of 0 given to what happened counts as 36 in the negative "
            "log-likelihood: a few such subjects make most of it."
        )
    if "dice" in results.metrics:
        lines.append(
            "Dice of a class is over the subjects who have it in the true or the predicted mask: "
            "found where it is not, it counts 0; in neither mask, it is left out, so n differs by "
            "model."
        )
    scores = [score for row in results.rows for score in row.scores]
    for source in dict.fromkeys(score.threshold_on for score in scores if score.threshold_on):
        lines.append(
            f"The threshold of sensitivity is {THRESHOLDS.get(source, source)}; its interval takes "
            "the threshold as given, and the specificity it reached stands below."
        )
    return tuple(lines)


def by_output(content: Content, task: Task) -> list[Table]:
    """Each class or label on its own, main protocol of each model; as many tables as it takes."""
    rows = [row for row in picks.one_per_model(task.results.rows) if row.by_output]
    if not rows:
        return []
    rows = picks.in_order(rows, [model.name for model in content.models])
    outputs = list(dict.fromkeys(one.output for row in rows for one in row.by_output))
    parts = in_parts(outputs)
    return [
        _outputs_table(content, task, rows, part, is_first=not at) for at, part in enumerate(parts)
    ]


def _outputs_table(
    content: Content,
    task: Task,
    rows: Sequence[ModelResult],
    outputs: Sequence[str],
    *,
    is_first: bool,
) -> Table:
    found = {(row.model, one.output): one for row in rows for one in row.by_output}
    values = {
        output: [one.value for key, one in found.items() if key[1] == output] for output in outputs
    }
    best = {output: picks.best_of(task.results.metric, values[output]) for output in outputs}
    made = []
    for row in rows:
        warnings = tuple(content.warnings(task.name, row.model))
        cells = [
            _output_cell(found.get((row.model, output)), best[output], warnings)
            for output in outputs
        ]
        made.append((row.kind, Row(model_cell(content, row.model), tuple(cells))))
    title = BY_OUTPUT_TITLES.get(task.card["kind"], "Each output")
    main = protocol_title(picks.main_protocol(task.results.rows))
    methods = dict.fromkeys(one.method for one in found.values() if one.method)
    return Table(
        section="outputs",
        title=f"{task.card['title']}. {title}{'' if is_first else ' (continued)'}",
        columns=(Column("Model"), *(Column(output, ("[95% interval]",)) for output in outputs)),
        groups=grouped(made),
        lines=(f"Main protocol of each model ({main}); the others stand in the CSV file.",),
        task=task.name,
        method="; ".join(methods),
    )


def _output_cell(one: OutputScore | None, best: float | None, warnings: tuple[str, ...]) -> Cell:
    if one is None or one.value is None:
        return reason_cell(one.reason if one else "not scored")
    count = f"n = {one.n:,}" if one.n else ""
    if one.n and one.positives is not None:
        count = f"{one.positives:,} of {one.n:,} positive"
    under = (interval(one.low, one.high, one.value), count)
    return Cell(
        number(one.value, one.low, one.high),
        under=tuple(line for line in under if line),
        notes=(one.reason,) if one.reason else (),
        warnings=warnings,
        is_best=picks.is_best(one.value, best),
    )
