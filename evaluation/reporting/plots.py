"""Which lines a task's figures show, with their legend and caption; drawing is in figures/."""

from dataclasses import dataclass

from evaluation.reporting import picks
from evaluation.reporting.content import Content, Task
from evaluation.reporting.figures.chart import colours
from evaluation.reporting.figures.curves import (
    Line,
    Risk,
    few_shot_svg,
    fraction_svg,
    risk_coverage_svg,
)
from evaluation.reporting.figures.reliability import MOST_PANELS, Panel, reliability_svg
from evaluation.reporting.numbers import plural
from evaluation.reporting.results import (
    FewShotCurve,
    FewShotPoint,
    FractionLine,
    ModelResult,
)
from evaluation.reporting.tables.few_shot import UNITS
from evaluation.reporting.titles import constant_score, metric_title, protocol_title, split_title
from evaluation.statistics.kinds import BACKBONE, FLOOR

MOST_LINES = 8


@dataclass(frozen=True)
class Key:
    """One line of a legend; a floor's line is dashed."""

    title: str
    colour: str
    is_dashed: bool


@dataclass(frozen=True)
class Plot:
    """A drawing with what the page writes around it."""

    label: str
    svg: str
    legend: tuple[Key, ...]
    caption: str
    is_wide: bool = False


def few_shot_plots(content: Content, task: Task) -> list[Plot]:
    """Curves over shots, and over fractions, of those that the task has."""
    curves = _shown_curves(content, task)
    plots = []
    for unit in UNITS:
        shown = [one for one in curves if any(_is_drawn(point, unit) for point in one.points)]
        if not shown:
            continue
        metric = task.results.metric
        svg = few_shot_svg(
            [_line(curve, unit) for curve in shown],
            unit=unit,
            metric=metric_title(metric),
            chance=constant_score(metric),
        )
        what = "shots per class" if unit == "shots" else "label fractions"
        plots.append(
            Plot(
                f"{what} of {task.card['title']}",
                svg,
                _legend(content, [(one.model, one.kind) for one in shown]),
                f"{metric_title(metric)} ({protocol_title(shown[0].protocol)}, "
                f"{split_title(task.results.split)}): mean over draws, band from the 5th to the "
                "95th percentile; dashed: floors. The tables hold every model.",
            )
        )
    return plots


def _is_drawn(point: FewShotPoint, unit: str) -> bool:
    return point.unit == unit and point.mean is not None


def _shown_curves(content: Content, task: Task) -> list[FewShotCurve]:
    """Of one protocol: backbones, then the floors with the largest area, as many as fit."""
    found = task.results.few_shot
    if found is None or not found.curves:
        return []
    protocols = [curve.protocol for curve in found.curves]
    has_preferred = picks.PREFERRED_PROTOCOL in protocols
    main = picks.PREFERRED_PROTOCOL if has_preferred else protocols[0]
    curves = [curve for curve in found.curves if curve.protocol == main]
    backbones = [curve for curve in curves if curve.kind == BACKBONE][:MOST_LINES]
    floors = [curve for curve in curves if curve.kind == FLOOR]
    by_area = sorted(floors, key=lambda one: (one.model != found.reference, -(one.area or 0.0)))
    order = [model.name for model in content.models]
    shown = by_area[: max(0, MOST_LINES - len(backbones))]
    return backbones + sorted(shown, key=lambda one: order.index(one.model))


def _line(curve: FewShotCurve, unit: str) -> Line:
    drawn = [point for point in curve.points if _is_drawn(point, unit)]
    known = sorted(drawn, key=lambda point: point.x)
    return Line(
        x=[point.x for point in known],
        middle=[point.mean or 0.0 for point in known],
        low=[point.low if point.low is not None else point.mean or 0.0 for point in known],
        high=[point.high if point.high is not None else point.mean or 0.0 for point in known],
        is_dashed=curve.kind == FLOOR,
    )


def fraction_plot(content: Content, task: Task) -> Plot | None:
    """The label-fraction curve of each fine-tuning, where one has more than a point."""
    found = task.results.fractions
    known = [(line, _fraction_line(line)) for line in (found.lines if found else ())]
    drawn = [(line, curve) for line, curve in known if curve.x][:MOST_LINES]
    if not any(len(curve.x) > 1 for _, curve in drawn):
        return None
    metric, shades = task.results.metric, colours(len(drawn))
    return Plot(
        f"label fractions of {task.card['title']}",
        fraction_svg(
            [curve for _, curve in drawn],
            metric=metric_title(metric),
            chance=constant_score(metric),
        ),
        tuple(
            Key(content.titles[line.model], colour, line.is_scratch)
            for (line, _), colour in zip(drawn, shades, strict=True)
        ),
        f"{metric_title(metric)} ({split_title(task.results.split)}) of networks that were trained "
        "on so many subjects, with 95% intervals over the scored subjects; dashed: from scratch.",
    )


def _fraction_line(line: FractionLine) -> Line:
    known = [(point, point.value) for point in line.points if point.value is not None]
    return Line(
        x=[point.num_train for point, _ in known],
        middle=[value for _, value in known],
        low=[value if point.low is None else point.low for point, value in known],
        high=[value if point.high is None else point.high for point, value in known],
        is_dashed=line.is_scratch,
    )


def reliability_plot(content: Content, task: Task) -> Plot | None:
    """A panel for the strongest floor, and for as many of the others as fit."""
    rows = [row for row in picks.featured(task.results.rows) if row.calibration]
    others = [row for row in rows if row.kind != FLOOR]
    floors = [row for row in rows if row.kind == FLOOR]
    rows = others[: MOST_PANELS - len(floors)] + floors
    panels = [
        Panel(content.titles[row.model], row.calibration.before.bins, row.calibration.after.bins)
        for row in rows
        if row.calibration and (row.calibration.before.bins or row.calibration.after.bins)
    ]
    if not panels:
        return None
    first, second = colours(2)
    return Plot(
        f"Reliability of {task.card['title']}",
        reliability_svg(panels),
        (Key("before temperature scaling", first, True), Key("after", second, False)),
        f"Reliability in bins of equal numbers of subjects, {_bin_sizes(rows)} each; on the "
        "diagonal a probability comes true as often as it says. The fewer in a bin, the further "
        "it strays by chance. Main protocol; from the left: "
        f"{'; '.join(content.titles[row.model] for row in rows)}.",
        is_wide=True,
    )


def _bin_sizes(rows: list[ModelResult]) -> str:
    """``2 or 3 subjects``, ``11 to 14 subjects``: what most bins hold."""
    found = [row.calibration.before.bins for row in rows if row.calibration]
    counts = sorted(one.n for bins in found for one in bins)
    if not counts:
        return "an unknown number of subjects"
    few, many = counts[len(counts) // 10], counts[-1 - len(counts) // 10]
    if few == many:
        return plural(few, "subject")
    return f"{few:,} {'or' if many == few + 1 else 'to'} {plural(many, 'subject')}"


def risk_plot(content: Content, task: Task) -> Plot | None:
    """Risk-coverage curves of the strongest floor and of all that is no floor."""
    rows = [row for row in picks.featured(task.results.rows) if row.risk_coverage]
    rows = rows[: MOST_LINES - 1] + rows[MOST_LINES - 1 :][-1:]
    if not rows:
        return None
    lines = [
        Risk(row.risk_coverage.coverage, row.risk_coverage.risk, row.kind == FLOOR)
        for row in rows
        if row.risk_coverage
    ]
    return Plot(
        f"Risk and coverage of {task.card['title']}",
        risk_coverage_svg(lines),
        _legend(content, [(row.model, row.kind) for row in rows]),
        "Risk, the error rate of the most probable class, among the most certain share of "
        "subjects: that of a model that knows what it does not know falls towards the left, whose "
        "end is of very few subjects. Dashed: the strongest floor.",
    )


def _legend(content: Content, models: list[tuple[str, str]]) -> tuple[Key, ...]:
    return tuple(
        Key(content.titles[model], colour, kind == FLOOR)
        for (model, kind), colour in zip(models, colours(len(models)), strict=True)
    )
