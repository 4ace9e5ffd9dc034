"""Scores of fine-tuned networks on a task: rows of its table, and points of its curve."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.sharing import Share
from evaluation.finetuned.lines import TaskParts
from evaluation.finetuned.outputs import Outputs
from evaluation.finetuned.parts import PREDICTIONS, FinetunedError, Part
from evaluation.statistics.kinds import FINE_TUNED
from evaluation.storing.rows import to_rows
from evaluation.storing.store import FRACTION_COLUMNS, PREDICTION_COLUMNS
from foundation.metrics.quality import measures
from foundation.tasks.task import Task
from recipes.load import digest

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class TrainedScores(NamedTuple):
    """What the fine-tunings of a recipe come to on one task.

    Attributes:
        predictions: ``PREDICTION_COLUMNS``, of networks trained on all training subjects.
        fractions: ``FRACTION_COLUMNS``, of every share of them.
        trainings: Of each network: model, fraction, num_train, begun, and a digest of whom it was
            trained on.
        folds: By model and protocol, the score of each fold.
    """

    predictions: "pandas.DataFrame"
    fractions: "pandas.DataFrame"
    trainings: list[dict[str, Any]]
    folds: dict[tuple[str, str], list[float]]


class OutOfFold(NamedTuple):
    """Predictions of a cross-validation in the order of the task's subjects.

    Attributes:
        scores: (n, K).
        fold: Which fold each subject was held out in, (n,).
    """

    scores: Floats
    fold: Rows


def fill_outputs(
    task: Task, parts: TaskParts, *, open_test: bool, folder: Path, share: Share
) -> None:
    """Apply every network to the scans that are scored; training scans are not, and those of the
    test split only where it is open. Out-of-fold predictions are there already."""
    if task.card.protocol.repeated_cv is not None:
        return
    for name, own in parts.items():
        for part in own:
            outputs = Outputs(task, part, name=name, folder=folder, device=share.device)
            outputs.fill(_splits(task, open_test=open_test), share)


def score_trained(
    task: Task, parts: TaskParts, *, open_test: bool, folder: Path, device: str
) -> TrainedScores:
    """Read what :func:`fill_outputs` has filled, or what was predicted out of fold.

    Raises:
        FinetunedError: Predictions that are not of the task's subjects.
    """
    rows: list[tuple[Any, ...]] = []
    fractions: list[tuple[Any, ...]] = []
    trainings: list[dict[str, Any]] = []
    folds: dict[tuple[str, str], list[float]] = {}
    for name, own in parts.items():
        for part in own:
            if task.card.protocol.repeated_cv is None:
                outputs = Outputs(task, part, name=name, folder=folder, device=device)
                splits = _splits(task, open_test=open_test)
                scores = {split: outputs.scores(split) for split in splits}
            else:
                found = read_out_of_fold(task, part)
                scores = {"cv": found.scores}
                if part.is_whole and (values := _of_folds(task, found)):
                    folds[name, FINE_TUNED] = values
            fractions += [(name, part.fraction, *row) for row in _prediction_rows(task, scores)]
            if part.is_whole:
                rows += [(name, FINE_TUNED, *row) for row in _prediction_rows(task, scores)]
            trainings.append(_training(name, part))
    return TrainedScores(
        _table(rows, PREDICTION_COLUMNS), _table(fractions, FRACTION_COLUMNS), trainings, folds
    )


def read_out_of_fold(task: Task, part: Part) -> OutOfFold:
    """The predictions of a cross-validation, of each subject by the fold that held it out.

    Raises:
        FinetunedError: The file is missing, lacks a column or a number, or is of other subjects.
    """
    import pandas

    path = part.folder / PREDICTIONS
    columns = [f"score_{number}" for number in range(len(task.outputs))]
    try:
        table = pandas.read_csv(path, dtype={"subject": str, "split": str})
        table = table[table["split"] == "cv"]
        scores = table[columns].to_numpy(np.float64)
        fold = table["fold"].to_numpy(np.int64)
    except (OSError, KeyError, ValueError, pandas.errors.ParserError) as error:
        raise FinetunedError(f"{path}: cannot be read ({error}); fine-tune again") from None
    if not len(table):
        raise FinetunedError(
            f"{path}: holds no out-of-fold predictions, and task {task.card.name} is "
            "cross-validated; fine-tune with its folds, or take the line out"
        )
    subjects = table["subject"].tolist()
    _check_subjects(task, subjects, path=path)
    if task.card.kind != "segmentation" and not np.isfinite(scores).all():
        raise FinetunedError(f"{path}: a score is no number; fine-tune again")
    place = {subject: row for row, subject in enumerate(subjects)}
    order = [place[subject] for subject in task.subjects]
    return OutOfFold(scores[order], fold[order])


def _check_subjects(task: Task, subjects: Sequence[str], *, path: Path) -> None:
    found, known = set(subjects), set(task.subjects)
    if len(subjects) == len(found) and found == known:
        return
    raise FinetunedError(
        f"{path}: out-of-fold predictions must be of each subject of task {task.card.name} once; "
        f"{len(known - found)} of {len(known)} are missing, {len(found - known)} are of others, "
        f"{len(subjects) - len(found)} are there twice. Were its pseudonyms made with another key?"
    )


def _splits(task: Task, *, open_test: bool) -> tuple[str, ...]:
    return ("val", "test") if open_test and len(task.rows("test")) else ("val",)


def _of_folds(task: Task, found: OutOfFold) -> list[float] | None:
    """The primary metric of each fold; None where they are not as many as the card's, as the
    overlap of training sets is then another one."""
    cv, numbers = task.card.protocol.repeated_cv, np.unique(found.fold)
    if cv is None or len(numbers) != cv.folds:
        return None
    held_out = [np.flatnonzero(found.fold == number) for number in numbers]
    return [
        float(measures(task.label[rows], found.scores[rows][None], task.card.metric)[0])
        for rows in held_out
    ]


def _prediction_rows(task: Task, scores: Mapping[str, Floats]) -> Iterator[tuple[Any, ...]]:
    for split, values in scores.items():
        rows = task.rows(split)
        subjects = [task.subjects[row] for row in rows]
        for row in to_rows(subjects, task.label[rows], values, kind=task.card.kind):
            yield split, *row


def _training(name: str, part: Part) -> dict[str, Any]:
    return {
        "model": name,
        "fraction": part.fraction,
        "num_train": part.num_train,
        "begun": part.begun,
        "trained_digest": digest(sorted(part.trained)),
    }


def _table(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...]) -> "pandas.DataFrame":
    import pandas

    return pandas.DataFrame(rows, columns=list(columns))
