"""What only the whole report can say: Holm over every comparison shown, ranks over the tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.reporting.content import Content, Task
from evaluation.reporting.numbers import plural
from evaluation.reporting.picks import one_per_model
from evaluation.reporting.results import Comparison
from evaluation.reporting.titles import is_lower_better
from evaluation.statistics.kinds import BACKBONE, TRAINED
from evaluation.statistics.paired import average_ranks, holm

FEWEST_TASKS = 3


@dataclass(frozen=True)
class Ranks:
    """Average ranks of the models that have a score in every one of ``tasks``; 1 is the best.

    Attributes:
        ranks: By model, the best first; empty with the reason.
        tasks: Names of the tasks.
        left_out: Models without a score in some of them.
        tasks_left_out: On which every backbone has a score, but fewer models than on these.
        critical_difference: Two average ranks that are closer cannot be told apart (Nemenyi).
        p: Of Friedman's test that all models are alike.
        reason: Why there are no ranks.
    """

    ranks: dict[str, float]
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    tasks_left_out: tuple[str, ...]
    critical_difference: float | None
    p: float | None
    reason: str | None


def family_size(contents: Sequence[Content]) -> int:
    """How many comparisons with a p the report shows."""
    return len(_known(contents))


def with_holm(contents: Sequence[Content]) -> list[Content]:
    """The same contents, each comparison with its p adjusted for all that the report shows."""
    found = _known(contents)
    adjusted = iter(holm(found).tolist() if found else [])
    return [
        replace(content, tasks=tuple(_adjusted(task, adjusted) for task in content.tasks))
        for content in contents
    ]


def _known(contents: Sequence[Content]) -> list[float]:
    tasks = [task for content in contents for task in content.tasks]
    return [one.p for task in tasks for one in task.results.all_comparisons if one.p is not None]


def _adjusted(task: Task, adjusted: Iterator[float]) -> Task:
    def with_p(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
        return tuple(
            one if one.p is None else replace(one, p_holm=next(adjusted)) for one in comparisons
        )

    results = replace(task.results, comparisons=with_p(task.results.comparisons))
    if results.fractions is not None:
        pairs = with_p(results.fractions.comparisons)
        results = replace(results, fractions=replace(results.fractions, comparisons=pairs))
    return replace(task, results=results)


def ranks_of(content: Content) -> Ranks:
    """Average ranks over tasks on which every backbone has a primary score.

    A model without a score in one of these tasks is not ranked: its average would be over easier
    or harder ones. Where models differ in their tasks, the tasks are those that leave the largest
    table, so that one segmentation does not drop every floor of the other tasks. What was trained
    on the labels of some tasks is not ranked: ranks are of what is the same for every task.
    """
    values = {task.name: _primary(task) for task in content.tasks}
    backbones = [model.name for model in content.models if model.kind == BACKBONE]
    tasks = [
        task
        for task in content.tasks
        if backbones and all(values[task.name].get(model) is not None for model in backbones)
    ]
    every, names = tasks, tuple(task.name for task in tasks)
    if len(tasks) < FEWEST_TASKS:
        reason = (
            f"every backbone has a score on {plural(len(tasks), 'task')}; there is no rank under "
            f"{FEWEST_TASKS}"
        )
        return Ranks({}, names, (), (), None, None, reason)
    names, ranked = _largest(values, names)
    tasks = [task for task in tasks if task.name in names]
    scored = {model for one in values.values() for model in one}
    known = [model.name for model in content.models if model.name in scored]
    ranked = [model for model in known if model in ranked]
    table = np.array([[values[name][model] for model in ranked] for name in names], dtype=float)
    found = average_ranks(
        table,
        lower_is_better=[is_lower_better(task.results.metric) for task in tasks],
    )
    order = sorted(zip(found.ranks.tolist(), ranked, strict=True), key=lambda one: one[0])
    return Ranks(
        {model: rank for rank, model in order},
        names,
        tuple(model for model in known if model not in ranked),
        tuple(task.name for task in every if task.name not in names),
        found.critical_difference,
        found.friedman_p,
        None,
    )


def _largest(
    values: Mapping[str, Mapping[str, float | None]], names: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Of these tasks and the models scored in all of them, the largest table of enough tasks."""
    scored = {name: {m for m, value in values[name].items() if value is not None} for name in names}
    best: tuple[tuple[str, ...], set[str]] = (tuple(names), set.intersection(*scored.values()))
    for models in scored.values():
        tasks = tuple(name for name in names if models <= scored[name])
        if len(tasks) >= FEWEST_TASKS and len(tasks) * len(models) > len(best[0]) * len(best[1]):
            best = tasks, models
    return best[0], sorted(best[1])


def _primary(task: Task) -> dict[str, float | None]:
    rows = [row for row in task.results.rows if row.kind != TRAINED]
    return {row.model: row.scores[0].value for row in one_per_model(rows)}
