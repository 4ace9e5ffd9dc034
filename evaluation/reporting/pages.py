"""The pages of the report from its content: one HTML file without requests, and Markdown.

Both are filled from the same content by templates/, so they hold the same tables. A page depends on
nothing but the content: no clock, no folder, no machine.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting import figures as report_figures
from evaluation.reporting import words as report_words
from evaluation.reporting.content import RECONSTRUCTION, Content, Task
from evaluation.reporting.tables import ModelScores, Score

TEMPLATES = Path(__file__).parent / "templates"
# What a constant score gets: where a task's interval plot has its line.
CHANCE = {"auroc": 0.5, "r2": 0.0}


def html_page(contents: Sequence[Content]) -> str:
    """The whole report as one HTML document; styles, curves and pictures stand inside it."""
    return _filled("report.html.j2", contents, escape=True)


def markdown_page(contents: Sequence[Content]) -> str:
    """The same text and tables as Markdown, without pictures."""
    return _filled("report.md.j2", contents, escape=False)


def groups_of(rows: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Backbones and floors apart, each group with its title; an empty group is left out."""
    kinds = {"backbone": "Frozen backbones", "floor": "Floors"}
    parts = [(title, [row for row in rows if row.kind == kind]) for kind, title in kinds.items()]
    return [(title, part) for title, part in parts if part]


def common_n(rows: Sequence[ModelScores]) -> Score | None:
    """The first score when every row is of as many subjects, so that n can stand in the head."""
    counts = {(row.scores[0].n, row.scores[0].positives) for row in rows}
    return rows[0].scores[0] if len(counts) == 1 else None


def reason_without_score(task: Task, model: str) -> str:
    """Why a model has no cell in the overview."""
    reasons = [
        one["reason"]
        for one in task.skipped
        if one["model"] in (model, None) and one["protocol"] != "few_shot"
    ]
    return reasons[0] if reasons else "not part of this task"


def forest(rows: Sequence[ModelScores]) -> list[dict[str, float] | None]:
    """The interval of each row's primary metric as places on one scale from 0 to 100.

    Returns:
        ``{low, value, high, chance}`` of each row; None for a row without an interval.
    """
    whole = [row.scores[0] for row in rows if row.scores[0].low is not None]
    if not whole:
        return [None] * len(rows)
    chance = CHANCE[whole[0].metric]
    # A floor far below chance (an R2 of -20) must not press all others into one point.
    start = max(min([chance, *(score.low or 0.0 for score in whole)]), chance - 0.5)
    stop = max([chance, *(score.high or 0.0 for score in whole)])

    def place(value: float | None) -> float:
        share = ((value or 0.0) - start) / ((stop - start) or 1.0)
        return round(100 * min(max(share, 0.0), 1.0), 1)

    return [_places(row.scores[0], place(chance), place) for row in rows]


def _places(score: Score, chance: float, place: Any) -> dict[str, float] | None:
    if score.low is None:
        return None
    ends = {"low": score.low, "value": score.value, "high": score.high}
    return {name: place(value) for name, value in ends.items()} | {"chance": chance}


def few_shot_figure(task: Task, name: str) -> str:
    """The curves of one task; a number of shots without a value is left out of its line."""
    lines = []
    for curve in task.few_shot:
        known = [point for point in curve.points if point.mean is not None]
        lines.append(
            report_figures.Line(
                x=[point.shots for point in known],
                middle=[point.mean or 0.0 for point in known],
                low=[point.low or 0.0 for point in known],
                high=[point.high or 0.0 for point in known],
                is_floor=curve.kind == "floor",
            )
        )
    return report_figures.few_shot_svg(lines, name=name)


def contact_sheet(
    pictures: Mapping[str, NDArray[np.float32]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """``(group, [(label, data address), ...])`` of pictures named ``GROUP__LABEL__I``."""
    named = [(name.split("__"), array) for name, array in pictures.items()]
    return [
        (group, [(_caption(parts[1]), report_figures.picture(array)) for parts, array in members])
        for group, members in groupby(named, key=lambda one: one[0][0])
    ]


def _caption(label: str) -> str:
    return f"label {label}" if label.isdigit() else label


def triptychs(arrays: Mapping[str, NDArray[np.float32]]) -> list[list[tuple[str, str]]]:
    """Of each scan its original, masked and reconstructed slice as ``(caption, data address)``."""
    return [
        [(name, report_figures.picture(one)) for name, one in zip(RECONSTRUCTION, row, strict=True)]
        for row in zip(*(arrays[name] for name in RECONSTRUCTION), strict=True)
    ]


def _filled(template: str, contents: Sequence[Content], *, escape: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    words = {name: value for name, value in vars(report_words).items() if not name.startswith("_")}
    environment.filters |= {
        "cell": report_words.table_cell,
        "settings": report_words.settings,
    }
    environment.globals |= words | {
        "groups_of": groups_of,
        "common_n": common_n,
        "reason_without_score": reason_without_score,
        "forest": forest,
        "few_shot_figure": few_shot_figure,
        "series_colours": report_figures.series_colours,
        "loss_figure": report_figures.loss_svg,
        "contact_sheet": contact_sheet,
        "triptychs": triptychs,
    }
    dates = [content.date for content in contents if content.date]
    page = environment.get_template(template)
    return page.render(contents=contents, date=max(dates, default="unknown date"))
