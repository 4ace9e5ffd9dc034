"""The numbers of the report, from predictions: pure functions, no file is read here.

Every score is computed over subjects, with a bootstrap interval by subject from the run's own seed,
so that two models on the same subjects are drawn alike. A score that the rows do not define is
None with the reason, never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.metrics import StatisticsError, bootstrap_interval, measure

if TYPE_CHECKING:
    import pandas

# What a task of each kind is scored by; the task's own primary metric comes first.
METRICS_OF = {
    "binary": ("auroc", "average_precision", "balanced_accuracy"),
    "regression": ("r2", "mean_absolute_error"),
}
LOWER_IS_BETTER = frozenset({"mean_absolute_error", "brier"})
SHOWN_DIGITS = 3
OVERVIEW_PROTOCOL = "linear"


@dataclass(frozen=True)
class Score:
    """One metric over ``n`` subjects with its 95% interval; where one is missing, the reason."""

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int | None
    reason: str | None = None
    is_best: bool = False


@dataclass(frozen=True)
class ModelScores:
    """One row of a task's table; ``scores`` in the order of the task's metrics."""

    model: str
    kind: str
    protocol: str
    split: str
    scores: tuple[Score, ...]


class Bootstrap(NamedTuple):
    """How intervals are drawn: from ``run.json``."""

    num_bootstraps: int
    seed: int


def task_table(
    rows: "pandas.DataFrame",
    *,
    task: Mapping[str, Any],
    kinds: Mapping[str, str],
    split: str,
    bootstrap: Bootstrap,
) -> tuple[ModelScores, ...]:
    """Score every model and protocol of one task on the shown split.

    Args:
        rows: One per model, protocol, split and subject, as the store keeps them.
        task: The task's entry in ``run.json``.
        kinds: "backbone" or "floor" of each model, in the order of the table.
        split: The shown split.
        bootstrap: Of the intervals.

    Returns:
        Models in the order of ``kinds``, backbones before floors; the linear probe first in each.
    """
    metrics = metrics_of(task)
    threshold = training_prevalence(task)
    shown = rows[rows["split"] == split].sort_values("subject", kind="stable")
    table = []
    for (model, protocol), part in shown.groupby(["model", "protocol"], sort=True):
        label, score = part["label"].to_numpy(float), part["score"].to_numpy(float)
        scores = tuple(
            score_of(label, score, metric=metric, threshold=threshold, bootstrap=bootstrap)
            for metric in metrics
        )
        table.append(ModelScores(model, kinds[model], protocol, split, scores))
    place = {model: at for at, model in enumerate(kinds)}
    table.sort(
        key=lambda row: (
            row.kind == "floor",
            place[row.model],
            row.protocol != OVERVIEW_PROTOCOL,
            row.protocol,
        )
    )
    return mark_best(table)


def metrics_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics a task is shown with, its primary one first.

    Raises:
        ValueError: A kind of task that the report cannot score.
    """
    if task["kind"] not in METRICS_OF:
        known = ", ".join(METRICS_OF)
        raise ValueError(
            f"{task['title']}: a task of kind {task['kind']!r}; the report knows {known}"
        )
    others = [metric for metric in METRICS_OF[task["kind"]] if metric != task["metric"]]
    return (task["metric"], *others)


def training_prevalence(task: Mapping[str, Any]) -> float:
    """The share of positives among training subjects; of all subjects where there is no split.

    It is the threshold of balanced accuracy: the shown split has no part in choosing it.
    """
    part = "train" if task["n"].get("train") else next(iter(task["n"]), "train")
    positives, n = (task.get("positives") or {}).get(part), task["n"].get(part)
    return positives / n if positives and n else 0.5


def score_of(
    label: NDArray[np.float64],
    score: NDArray[np.float64],
    *,
    metric: str,
    threshold: float,
    bootstrap: Bootstrap,
) -> Score:
    """One metric with its interval, or None with the reason.

    Args:
        label: One per subject, (n,).
        score: Probability of the positive class or predicted value, (n,).
        metric: A name of ``evaluation.statistics.metrics.METRICS``.
        threshold: Of balanced accuracy; the other metrics have none.
        bootstrap: Of the interval.
    """
    binary = set(np.unique(label)) <= {0.0, 1.0}
    positives = int(label.sum()) if binary else None
    if metric == "balanced_accuracy":
        score = score + (0.5 - threshold)  # the metric itself cuts at one half
    try:
        value = measure(label, score, metric)
        low, high = bootstrap_interval(label, score, metric, **bootstrap._asdict())
    except StatisticsError as error:
        return Score(metric, None, None, None, len(label), positives, reason=str(error))
    if not (math.isfinite(low) and math.isfinite(high)):
        few = "too few subjects for an interval"
        return Score(metric, value, None, None, len(label), positives, reason=few)
    # Without an error in the rows no draw has one; only a constant score makes that exact.
    is_flat = low == high and len(np.unique(score)) > 1
    flat = "every draw gave this value, so the interval is narrower than the truth"
    return Score(metric, value, low, high, len(label), positives, reason=flat if is_flat else None)


def mark_best(table: Sequence[ModelScores]) -> tuple[ModelScores, ...]:
    """Mark the best point estimate of each metric; equal at the shown digits is equally best."""
    marked = list(table)
    for column in range(len(table[0].scores) if table else 0):
        values = {
            at: round(score.value, SHOWN_DIGITS)
            for at, row in enumerate(table)
            if (score := row.scores[column]).value is not None
        }
        if not values:
            continue
        lower = table[0].scores[column].metric in LOWER_IS_BETTER
        best = min(values.values()) if lower else max(values.values())
        for at, value in values.items():
            scores = list(marked[at].scores)
            scores[column] = replace(scores[column], is_best=value == best)
            marked[at] = replace(marked[at], scores=tuple(scores))
    return tuple(marked)


def overview_column(table: Sequence[ModelScores]) -> dict[str, ModelScores]:
    """Of each model the row of the linear probe, else its first row; the best marked anew."""
    chosen: dict[str, ModelScores] = {}
    for row in table:
        if row.model not in chosen:
            primary = replace(row.scores[0], is_best=False)
            chosen[row.model] = replace(row, scores=(primary,))
    return {row.model: row for row in mark_best(list(chosen.values()))}
