"""Does pretraining help? Each method against random initialisation, over seeds and subjects.

    python -m evaluation.claim stores/learn_2 stores/learn_3 stores/learn_4 --out reports/learn

Reads what ``evaluation.run`` stored of backbones that were pretrained with different seeds, on
cohorts that were drawn with different seeds or on one and the same. The difference of a backbone is
its mean over the tasks of the probe's metric, less that of the untrained networks of its
architecture, on the same subjects; tasks of different metrics are never averaged. Its interval
comes from a bootstrap over stores, over the backbones of a store, and over subjects, who are drawn
together in all tasks, and in all stores where these hold the same subjects.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.metrics import METRICS, draw_counts
from evaluation.storing import store
from recipes.command import errors_in_one_line
from shards.files import write_text

PROTOCOL = "linear"
METRIC_NAMES = {"auroc": "AUROC", "r2": "R2"}

Floats = NDArray[np.float64]


class ClaimError(ValueError):
    """Stores that say nothing of pretraining against none."""


class TaskScores(NamedTuple):
    """Of one task: m of the store's subjects, by model."""

    metric: str
    rows: NDArray[np.int64]
    """(m,), which of the store's subjects they are"""
    label: Floats
    score: dict[str, Floats]


class Scored(NamedTuple):
    """One store."""

    where: str
    date: str | None
    split: str
    subjects: tuple[str, ...]
    tasks: dict[str, TaskScores]
    runs: dict[str, list[str]]
    """by method: its backbones"""
    twins: dict[str, list[str]]
    """by backbone: the untrained networks of its architecture"""

    @property
    def num_subjects(self) -> int:
        """Of all tasks together."""
        return len(self.subjects)


class Finding(NamedTuple):
    """A method's difference from its random initialisations."""

    difference: float
    interval: tuple[float, float]
    by_store: dict[str, float]
    by_task: dict[str, float]
    pretrained: float
    random: float
    num_runs: int
    num_subjects: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path, nargs="+", help="folders that evaluation.run wrote")
    parser.add_argument("--out", type=Path, help="also write OUT.json and OUT.md")
    parser.add_argument("--bootstraps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    words = parser.parse_args()
    with errors_in_one_line():
        found = [read_scored(each) for each in words.stores]
        parts = by_metric(found)
        findings = {
            metric: compare(part, num_bootstraps=words.bootstraps, seed=words.seed)
            for metric, part in parts.items()
        }
        text = "\n\n".join(markdown(findings[metric], part) for metric, part in parts.items())
        print(text)
        if words.out:
            content = {metric: as_json(findings[metric], part) for metric, part in parts.items()}
            store.write_json(words.out.with_suffix(".json"), content)
            write_text(words.out.with_suffix(".md"), text + "\n")
            print(f"\nreports: {words.out}.json and .md")


def read_scored(where: Path) -> Scored:
    """The probe's predictions of every pretrained backbone and untrained network in a store.

    Raises:
        ClaimError: It holds no pretrained backbone, or one without untrained twins.
    """
    run = store.read_run(where)
    models: dict[str, dict[str, Any]] = run["models"]
    if not all("architecture" in model for model in models.values()):
        raise ClaimError(
            f"{where}: written by an earlier version; run python -m evaluation.run again"
        )
    runs: dict[str, list[str]] = {}
    twins: dict[str, list[str]] = {}
    for name, model in models.items():
        if model["kind"] != "backbone":
            continue
        runs.setdefault(model["provenance"]["method"], []).append(name)
        twins[name] = [
            other
            for other, each in models.items()
            if each["kind"] == "floor" and each["architecture"] == model["architecture"]
        ]
        if not twins[name]:
            raise ClaimError(f"{where}: no random initialisation of {name}; set random_init.seeds")
    if not runs:
        raise ClaimError(f"{where}: holds no pretrained backbone; name some under backbones")
    tables = {task: store.read_predictions(where, task) for task in run["tasks"]}
    wanted = [*twins, *(name for names in twins.values() for name in names)]
    chosen = {
        task: table[
            (table.protocol == PROTOCOL)
            & table.split.isin((run["split"], "cv"))  # a cross-validated task has no other
            & table.model.isin(wanted)
        ]
        for task, table in tables.items()
    }
    everyone = sorted({subject for table in chosen.values() for subject in table.subject})
    place = {subject: index for index, subject in enumerate(everyone)}
    tasks = {
        task: _task_scores(table, place=place, metric=run["tasks"][task]["metric"])
        for task, table in chosen.items()
    }
    return Scored(str(where), run["date"], run["split"], tuple(everyone), tasks, runs, twins)


def by_metric(stores: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The stores with the tasks of one metric each: an AUROC and an R2 have no common mean."""
    metrics = {task.metric: None for each in stores for task in each.tasks.values()}
    return {metric: [_with_metric(each, metric) for each in stores] for metric in metrics}


def compare(
    stores: Sequence[Scored], *, num_bootstraps: int = 2000, seed: int = 0
) -> dict[str, Finding]:
    """Every method that all stores hold, with its 95% interval.

    Raises:
        ClaimError: The stores differ in their tasks or split, share some of their subjects only,
            or have no method in common.
    """
    first = stores[0]
    for each in stores[1:]:
        if set(each.tasks) != set(first.tasks) or each.split != first.split:
            raise ClaimError(f"{each.where}: other tasks or another split than {first.where}")
    methods = [name for name in first.runs if all(name in each.runs for each in stores)]
    if not methods:
        raise ClaimError("no method has a backbone in every store")
    drawn = _drawn(stores, num_bootstraps=num_bootstraps, seed=seed)
    return {method: _finding(method, stores, drawn) for method in methods}


def markdown(findings: Mapping[str, Finding], stores: Sequence[Scored]) -> str:
    """One line for each method, and one below for each task."""
    split = {"val": "validation", "test": "test", "cv": "cross-validation"}[stores[0].split]
    metric = METRIC_NAMES.get(one := next(iter(stores[0].tasks.values())).metric, one)
    num, tasks = len(stores), len(stores[0].tasks)
    about, over = f"{num} cohorts", "cohorts, pretraining seeds and subjects"
    if _share_subjects(stores):
        about, over = f"{num} stores of one cohort", "pretraining seeds and subjects"
    lines = [
        f"Mean {metric} of {tasks} tasks on {split}, {about}; 95% bootstrap intervals over {over}."
        if tasks > 1
        else f"{metric} of 1 task on {split}, {about}; 95% bootstrap intervals over {over}.",
        "",
        "| method | pretrained | random initialisation | difference | n |",
        "|---|---|---|---|---|",
    ]
    for method, each in findings.items():
        low, high = each.interval
        lines.append(
            f"| {method} | {each.pretrained:.3f} | {each.random:.3f} | {each.difference:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] | {each.num_runs} runs, {each.num_subjects} subjects |"
        )
    lines += ["", f"| difference | {' | '.join(findings)} |", f"|---|{'---|' * len(findings)}"]
    for part in ("by_store", "by_task"):
        for name in getattr(next(iter(findings.values())), part):
            cells = [f"{getattr(each, part)[name]:+.3f}" for each in findings.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(findings: Mapping[str, Finding], stores: Sequence[Scored]) -> dict[str, Any]:
    """Everything that :func:`markdown` says, unrounded."""
    return {
        "date": max((each.date for each in stores if each.date), default=None),
        "split": stores[0].split,
        "stores": [each.where for each in stores],
        "protocol": PROTOCOL,
        "methods": {
            method: {**each._asdict(), "interval": list(each.interval)}
            for method, each in findings.items()
        },
    }


def _with_metric(scored: Scored, metric: str) -> Scored:
    """Only the tasks of this metric, and the subjects of those."""
    chosen = {name: task for name, task in scored.tasks.items() if task.metric == metric}
    if not chosen:
        raise ClaimError(f"{scored.where}: no task is scored by {metric}, as in the other stores")
    used = np.unique(np.concatenate([task.rows for task in chosen.values()]))
    tasks = {
        name: task._replace(rows=np.searchsorted(used, task.rows)) for name, task in chosen.items()
    }
    return scored._replace(subjects=tuple(scored.subjects[row] for row in used), tasks=tasks)


def _share_subjects(stores: Sequence[Scored]) -> bool:
    """Whether all stores hold the same subjects; otherwise none may be in two of them."""
    if all(each.subjects == stores[0].subjects for each in stores[1:]):
        return len(stores) > 1
    seen: set[str] = set()
    for each in stores:
        if seen & set(each.subjects):
            raise ClaimError(
                f"{each.where}: holds some of the other stores' subjects; take stores of the same "
                "subjects, or of different ones"
            )
        seen |= set(each.subjects)
    return False


def _task_scores(table: Any, *, place: Mapping[str, int], metric: str) -> TaskScores:
    """One task's predictions, every model's in the order of subjects."""
    by_model = {name: part.sort_values("subject") for name, part in table.groupby("model")}
    one = next(iter(by_model.values()))
    subjects = list(one.subject)
    assert all(list(part.subject) == subjects for part in by_model.values())
    return TaskScores(
        metric,
        np.array([place[subject] for subject in subjects]),
        one.label.to_numpy(np.float64),
        {name: part.score.to_numpy(np.float64) for name, part in by_model.items()},
    )


class _Drawn(NamedTuple):
    """What the bootstrap drew; S stores make S places in each draw."""

    chosen: NDArray[np.int64]
    """(draws, S), the store in each place"""
    weights: list[list[Floats]]
    """by place and store: (draws, subjects), how often each subject is drawn"""
    uniform: Floats
    """(draws, S, R) in [0, 1), which choose among up to R backbones of a method"""


def _drawn(stores: Sequence[Scored], *, num_bootstraps: int, seed: int) -> _Drawn:
    rng = np.random.default_rng(seed)
    num = len(stores)
    chosen = rng.integers(0, num, (num_bootstraps, num))
    if _share_subjects(stores):
        # Whoever is drawn is drawn in every store: their scores rise and fall together.
        alike = _subject_counts(rng, stores[0], num_bootstraps)
        weights = [[alike] * num] * num
    else:
        weights = [
            [_subject_counts(rng, each, num_bootstraps) for each in stores] for _ in range(num)
        ]
    most = max(len(names) for each in stores for names in each.runs.values())
    return _Drawn(chosen, weights, rng.random((num_bootstraps, num, most)))


def _subject_counts(rng: np.random.Generator, scored: Scored, num_bootstraps: int) -> Floats:
    """(draws, subjects): how often each is drawn."""
    everyone = [np.arange(scored.num_subjects)]
    counts: Floats = draw_counts(rng, everyone, num_bootstraps, scored.num_subjects)
    return counts


def _finding(method: str, stores: Sequence[Scored], drawn: _Drawn) -> Finding:
    everyone = [np.ones((1, each.num_subjects)) for each in stores]
    parts = [_parts(each, method, weight) for each, weight in zip(stores, everyone, strict=True)]
    # (2, tasks) of each store: the pretrained and the untrained.
    point = np.stack([part[..., 0].mean(axis=0) for part in parts])
    difference = point[:, 0] - point[:, 1]
    draws = [
        [_difference(each, method, weight) for each, weight in zip(stores, place, strict=True)]
        for place in drawn.weights
    ]
    boot = np.zeros(len(drawn.chosen))
    for place in range(len(stores)):
        for number in range(len(stores)):
            mine = drawn.chosen[:, place] == number
            runs = draws[place][number]  # (runs, draws)
            picked = (drawn.uniform[:, place, : len(runs)] * len(runs)).astype(int)
            one = np.take_along_axis(runs, picked.T, axis=0).mean(axis=0)
            boot[mine] += one[mine] / len(stores)
    low, high = np.nanpercentile(boot, [2.5, 97.5])
    tasks = list(stores[0].tasks)
    return Finding(
        difference=float(difference.mean()),
        interval=(float(low), float(high)),
        by_store={each.where: float(d.mean()) for each, d in zip(stores, difference, strict=True)},
        by_task={name: float(d) for name, d in zip(tasks, difference.mean(axis=0), strict=True)},
        pretrained=float(point[:, 0].mean()),
        random=float(point[:, 1].mean()),
        num_runs=sum(len(each.runs[method]) for each in stores),
        num_subjects=len({subject for each in stores for subject in each.subjects}),
    )


def _difference(scored: Scored, method: str, weight: Floats) -> Floats:
    """(runs, draws): pretrained less untrained, the mean over tasks."""
    parts = _parts(scored, method, weight)
    difference: Floats = (parts[:, 0] - parts[:, 1]).mean(axis=1)
    return difference


def _parts(scored: Scored, method: str, weight: Floats) -> Floats:
    """(runs, 2, tasks, draws): each backbone's metric, and the mean of its untrained twins'."""
    runs = scored.runs[method]
    measured = {
        name: np.stack([_measure(task, name, weight) for task in scored.tasks.values()])
        for name in {*runs, *(twin for run in runs for twin in scored.twins[run])}
    }
    return np.stack(
        [
            [measured[run], np.mean([measured[twin] for twin in scored.twins[run]], axis=0)]
            for run in runs
        ]
    )


def _measure(task: TaskScores, model: str, weight: Floats) -> Floats:
    """(draws,); a draw that has one class only is left out."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return METRICS[task.metric](task.label, task.score[model], weight[:, task.rows])


if __name__ == "__main__":
    main()
