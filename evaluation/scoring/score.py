"""One task, every model and protocol: predictions, chosen settings, few-shot draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.backbones.models import Candidate
from evaluation.extraction.progress import progress
from evaluation.probing import few_shot as few_shots
from evaluation.probing.few_shot import Draws, FewShotConfig
from evaluation.probing.protocols import Outcome, evaluate
from evaluation.statistics.metrics import bootstrap_interval, measure
from evaluation.storing.store import FEW_SHOT_COLUMNS, PREDICTION_COLUMNS
from evaluation.tasks.task import Task

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TaskScores:
    """What one task adds to a store.

    Attributes:
        task: Its name.
        metric: Its primary metric.
        predictions: ``PREDICTION_COLUMNS``.
        few_shot: ``FEW_SHOT_COLUMNS``, or None.
        draws: The few-shot draws as stored, or empty.
        selections: What was chosen, with the whole grid.
        skipped: What was not computed, with the reason.
    """

    task: str
    metric: str
    predictions: "pandas.DataFrame"
    few_shot: "pandas.DataFrame | None"
    draws: dict[str, Any]
    selections: list[dict[str, Any]]
    skipped: list[dict[str, Any]]

    def intervals(self, num_bootstraps: int, seed: int) -> list[dict[str, Any]]:
        """Every test score with its interval, for the ledger; empty without a test split."""
        test = self.predictions[self.predictions["split"] == "test"]
        return [
            {
                "model": model,
                "protocol": protocol,
                "metric": self.metric,
                "score": measure(rows["label"], rows["score"], self.metric),
                "interval": bootstrap_interval(
                    rows["label"],
                    rows["score"],
                    self.metric,
                    num_bootstraps=num_bootstraps,
                    seed=seed,
                ),
                "n": len(rows),
            }
            for (model, protocol), rows in test.sort_values("subject").groupby(
                ["model", "protocol"]
            )
        ]


def score_task(
    task: Task,
    models: Mapping[str, Candidate],
    *,
    few_shot: FewShotConfig | None,
    open_test: bool,
) -> TaskScores:
    """Score every model by every protocol of its own.

    Args:
        task: Its subjects, labels and splits.
        models: By name.
        few_shot: None leaves the few-shot probes out.
        open_test: Whether the test split is scored beside validation.
    """
    import pandas

    name = task.card.name
    rows: list[tuple[Any, ...]] = []
    selections = []
    jobs = [(model, estimator) for model, each in models.items() for estimator in each.estimators]
    for model, estimator in progress(
        jobs, title=f"scores of {name}", unit="probe", total=len(jobs)
    ):
        outcome = evaluate(task, models[model].features, estimator, open_test=open_test)
        rows += _prediction_rows(task, model, estimator.name, outcome)
        about = {"task": name, "model": model, "protocol": estimator.name}
        selections.append({**about, "chosen": outcome.chosen, "grid": outcome.grid})
    table, draws, skipped = _few_shot(task, models, few_shot, open_test=open_test)
    return TaskScores(
        task=name,
        metric=task.card.metric,
        predictions=pandas.DataFrame(rows, columns=list(PREDICTION_COLUMNS)),
        few_shot=table,
        draws=draws,
        selections=selections,
        skipped=skipped,
    )


def summarise(scores: Sequence[TaskScores]) -> str:
    """A line per task: its best backbone-or-floor scores, for the console."""
    lines = []
    for each in scores:
        last = each.predictions["split"].isin(["test", "cv"])
        shown = each.predictions[last] if last.any() else each.predictions
        parts = [
            f"{model} {measure(rows['label'], rows['score'], each.metric):.3f}"
            for (model, protocol), rows in shown.groupby(["model", "protocol"], sort=False)
            if protocol in ("linear", "constant")
        ]
        split = shown["split"].iloc[0]
        lines.append(f"{each.task} ({each.metric}, {split}): {', '.join(parts)}")
    return "\n".join(lines)


def _prediction_rows(
    task: Task, model: str, protocol: str, outcome: Outcome
) -> Iterator[tuple[Any, ...]]:
    for split, scores in outcome.scores.items():
        for row, score in zip(task.rows(split), scores, strict=True):
            yield model, protocol, split, task.subjects[row], task.label[row], float(score)


def _few_shot(
    task: Task, models: Mapping[str, Candidate], config: FewShotConfig | None, *, open_test: bool
) -> tuple["pandas.DataFrame | None", dict[str, Any], list[dict[str, Any]]]:
    if config is None:
        return None, {}, []
    if reason := few_shots.unsuitable(task):
        return None, {}, [_skip(task, reason)]
    import pandas

    draws = few_shots.draw(task, config)
    skipped = [_skip(task, f"{k} shots: {reason}") for k, reason in draws.missing.items()]
    rows = list(_few_shot_rows(task, models, draws, config, split="test" if open_test else "val"))
    stored = few_shots.stored_draws(task, draws, config)
    return pandas.DataFrame(rows, columns=list(FEW_SHOT_COLUMNS)), stored, skipped


def _few_shot_rows(
    task: Task,
    models: Mapping[str, Candidate],
    draws: Draws,
    config: FewShotConfig,
    *,
    split: str,
) -> Iterator[tuple[Any, ...]]:
    able = {name: each.few_shot for name, each in models.items() if each.few_shot is not None}
    bar = progress(
        able.items(), title=f"few-shot of {task.card.name}", unit="model", total=len(able)
    )
    for name, features in bar:
        for k, number, score in few_shots.score_draws(task, features, draws, config, split=split):
            yield name, k, number, score


def _skip(task: Task, reason: str) -> dict[str, Any]:
    return {"task": task.card.name, "model": None, "protocol": "few_shot", "reason": reason}
