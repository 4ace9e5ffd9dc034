"""All models of one task: what each came to, kept by what it was made from, and put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.extraction.progress import progress
from evaluation.finetuned.scores import TrainedScores
from evaluation.probing.draws import Draws, draw, stored_draws, unsuitable
from evaluation.probing.estimator import Candidate
from evaluation.scoring.model import FEW_SHOT, PREDICTIONS, How, as_nan, score_model
from evaluation.storing.memo import Kept, remember
from foundation.tasks.task import Task
from recipes.load import digest

if TYPE_CHECKING:
    import pandas

SCORED = "scored"

ByProtocol = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class TaskScores:
    """What one task adds to a store.

    Attributes:
        task: Its name.
        predictions: ``PREDICTION_COLUMNS``.
        few_shot: ``FEW_SHOT_COLUMNS``, or None.
        draws: The few-shot draws as stored, or empty.
        missing: Sizes of the training set that could not be drawn: x, unit, reason.
        folds: By model and protocol, the score of each fold.
        spread: By model and protocol, the score after each resampled training set.
        selections: What was chosen, with the whole grid.
        skipped: What was not computed, with the reason.
        used: Digests of the work that was asked for.
        fractions: ``FRACTION_COLUMNS`` of what was fine-tuned, or None.
        trainings: Of each fine-tuned network what it was trained on.
    """

    task: str
    predictions: "pandas.DataFrame"
    few_shot: "pandas.DataFrame | None"
    draws: dict[str, Any]
    missing: list[dict[str, Any]]
    folds: ByProtocol
    spread: ByProtocol
    selections: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    used: frozenset[str]
    fractions: "pandas.DataFrame | None" = None
    trainings: tuple[dict[str, Any], ...] = ()

    def beside(self, trained: TrainedScores) -> "TaskScores":
        """The same with what was fine-tuned for the task, which needs no probe and no draws."""
        import pandas

        if not trained.trainings:
            return self
        return replace(
            self,
            predictions=pandas.concat([self.predictions, trained.predictions], ignore_index=True),
            folds={**self.folds, **trained.folds},
            fractions=trained.fractions,
            trainings=tuple(trained.trainings),
        )


def score_task(
    task: Task,
    candidates: Mapping[str, Candidate],
    *,
    how: How,
    made_from: Mapping[str, str],
    folder: Path,
) -> TaskScores:
    """Score every model by every protocol of its own; what was scored before is not scored again.

    Args:
        task: Its subjects, labels and splits.
        candidates: By model, in the order of the table.
        how: The same for all models.
        made_from: By model, a digest over everything its scores depend on beside ``how``.
        folder: Of the store; work is kept in its ``scored/``.
    """
    name = task.card.name
    draws, skipped = _draws(task, how)
    kept: dict[str, Kept] = {}
    used = set()
    bar = progress(
        candidates.items(), title=f"scores of {name}", unit="model", total=len(candidates)
    )
    for model, candidate in bar:
        key = digest([made_from[model], _how_digest(how)])
        used.add(key)
        kept[model] = remember(
            folder / SCORED,
            name=f"{name}_{model}",
            digest=key,
            make=partial(score_model, task, model, candidate, how=how, draws=draws),
        )
    tables = {table: _joined(list(kept.values()), table) for table in (PREDICTIONS, FEW_SHOT)}
    assert tables[PREDICTIONS] is not None
    stored = (
        stored_draws(task, draws, how.few_shot)
        if draws is not None and how.few_shot is not None
        else {}
    )
    return TaskScores(
        task=name,
        predictions=tables[PREDICTIONS],
        few_shot=tables[FEW_SHOT],
        draws=stored,
        missing=stored.get("missing", []),
        folds=_by_protocol(kept, "folds"),
        spread=_by_protocol(kept, "spread"),
        selections=[each for one in kept.values() for each in one.content["selections"]],
        skipped=skipped,
        used=frozenset(used),
    )


def _draws(task: Task, how: How) -> tuple[Draws | None, list[dict[str, Any]]]:
    if how.few_shot is None:
        return None, []
    if reason := unsuitable(task):
        return None, [_skip(task, reason)]
    draws = draw(task, how.few_shot)
    return draws, [_skip(task, f"{point}: {reason}") for point, reason in draws.missing.items()]


def _skip(task: Task, reason: str) -> dict[str, Any]:
    return {"task": task.card.name, "model": None, "protocol": "few_shot", "reason": reason}


def _how_digest(how: How) -> str:
    few_shot = how.few_shot.model_dump(mode="json") if how.few_shot else None
    return digest({**how._asdict(), "few_shot": few_shot})


def _joined(kept: Sequence[Kept], table: str) -> "pandas.DataFrame | None":
    import pandas

    found = [each.tables[table] for each in kept if table in each.tables]
    return pandas.concat(found, ignore_index=True) if found else None


def _by_protocol(kept: Mapping[str, Kept], what: str) -> ByProtocol:
    return {
        (model, protocol): values
        for model, each in kept.items()
        for protocol, values in as_nan(each.content[what]).items()
    }
