"""One model on one task: predictions by every protocol, what was chosen, few-shot draws."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.probing.draws import Draws, FewShotConfig
from evaluation.probing.estimator import Candidate
from evaluation.probing.few_shot import score_draws
from evaluation.probing.protocols import Outcome, evaluate
from evaluation.storing.memo import Kept
from evaluation.storing.rows import to_rows
from evaluation.storing.store import FEW_SHOT_COLUMNS, PREDICTION_COLUMNS
from foundation.tasks.task import Task

if TYPE_CHECKING:
    import pandas

PREDICTIONS, FEW_SHOT = "predictions", "few_shot"


class How(NamedTuple):
    """How models are scored, the same for all of a run.

    Attributes:
        open_test: Whether the test split is scored beside validation.
        spread: Resampled training sets, for the spread beside the interval; 0 leaves it out.
        few_shot: None leaves the few-shot probes out.
        seed: Of resampled training sets and of probes that are trained.
    """

    open_test: bool
    spread: int
    few_shot: FewShotConfig | None
    seed: int


def score_model(
    task: Task, model: str, candidate: Candidate, *, how: How, draws: Draws | None
) -> Kept:
    """Score a model by each of its protocols.

    Returns:
        Tables ``predictions`` and, where there are draws, ``few_shot``; and as content the
        ``selections``, and by protocol the scores of ``folds`` and of the training ``spread``.
    """
    rows: list[tuple[Any, ...]] = []
    selections: list[dict[str, Any]] = []
    folds: dict[str, list[float | None]] = {}
    spread: dict[str, list[float | None]] = {}
    for scorer in candidate.scorers:
        protocol = scorer.estimator.name
        outcome = evaluate(task, scorer, open_test=how.open_test, spread=how.spread, seed=how.seed)
        rows += _prediction_rows(task, model, protocol, outcome)
        about = {"task": task.card.name, "model": model, "protocol": protocol}
        selections.append({**about, "chosen": outcome.chosen, "grid": outcome.grid})
        for kept, values in ((folds, outcome.folds), (spread, outcome.spread)):
            if values is not None:
                kept[protocol] = [None if value != value else float(value) for value in values]
    tables = {PREDICTIONS: _table(rows, PREDICTION_COLUMNS)}
    if draws is not None and candidate.few_shot is not None:
        assert how.few_shot is not None
        split = "test" if how.open_test else "val"
        found = score_draws(task, candidate.few_shot, draws, how.few_shot, split=split)
        tables[FEW_SHOT] = _table([(model, *row) for row in found], FEW_SHOT_COLUMNS)
    return Kept(tables, {"selections": selections, "folds": folds, "spread": spread})


def _prediction_rows(
    task: Task, model: str, protocol: str, outcome: Outcome
) -> Iterator[tuple[Any, ...]]:
    for split, scores in outcome.scores.items():
        rows = task.rows(split)
        subjects = [task.subjects[row] for row in rows]
        for row in to_rows(subjects, task.label[rows], scores, kind=task.card.kind):
            yield model, protocol, split, *row


def _table(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...]) -> "pandas.DataFrame":
    import pandas

    return pandas.DataFrame(rows, columns=list(columns))


def as_nan(values: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Scores of folds or resampled training sets, NaN where JSON holds null."""
    return {
        protocol: [float("nan") if value is None else value for value in each]
        for protocol, each in values.items()
    }
