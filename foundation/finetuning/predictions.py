"""Scores of subjects that nothing was learnt from: as a table, and as metrics with intervals."""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.finetuning.parts import Part
from foundation.metrics.by_name import METRICS, METRICS_OF
from foundation.metrics.quality import measures
from shards.files import write_text

_NUM_BOOTSTRAPS = 1000
_DISTANCES = ("assd_mm", "hd95_mm")

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Predicted(NamedTuple):
    """Scores of subjects that a model, or the model of their fold, has not learnt from.

    Attributes:
        rows: Of the task, (m,).
        folds: (m,) number of the fold; 0 of validation subjects.
        scores: (m, K).
        distances_mm: Of a segmentation, (m, 2, K): see ``foundation.metrics.surface``.
        split: ``val`` or ``cv``.
    """

    rows: Rows
    folds: Rows
    scores: Floats
    distances_mm: Floats | None
    split: str


def summary(part: Part, predicted: Predicted, *, seed: int) -> dict[str, Any]:
    """Every metric of the task's kind, with a 95% percentile interval by subject.

    Of surface distances it is the median over subjects, as a class that is missed has no finite
    one; where that holds for half of the subjects, there is none.
    """
    task = part.task
    label = task.label[predicted.rows]
    scores = {}
    for metric in METRICS_OF[task.card.kind]:
        value = float(measures(label, predicted.scores[None], metric)[0])
        if np.isfinite(value):
            of_draws = partial(METRICS[metric], label, predicted.scores)
            low, high = _interval(len(label), of_draws, seed=seed)
            scores[metric] = {"value": value, "low": low, "high": high}
    if predicted.distances_mm is not None:
        scores |= _of_distances(predicted.distances_mm, seed=seed)
    return {"split": predicted.split, "n": len(predicted.rows), "scores": scores}


def write_predictions(path: Path, part: Part, predicted: Predicted) -> None:
    """A row for each subject: pseudonym, split, fold, scores, and of a segmentation distances.

    A cell is empty where there is no number, ``inf`` where a class is in only one of two masks.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    values, num = predicted.scores, predicted.scores.shape[1]
    names = [f"score_{number}" for number in range(num)]
    if predicted.distances_mm is not None:
        values = np.concatenate([values, predicted.distances_mm.reshape(len(values), -1)], axis=1)
        names += [f"{name}_{number}" for name in _DISTANCES for number in range(num)]
    table.writerow(["subject", "split", "fold", *names])
    for row, fold, of_subject in zip(predicted.rows, predicted.folds, values, strict=True):
        cells = ["" if np.isnan(value) else repr(float(value)) for value in of_subject]
        table.writerow([part.task.subjects[row], predicted.split, int(fold), *cells])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def out_of_fold(folds: Sequence[tuple[Part, Path]]) -> Predicted:
    """Everybody, in the order of the task, from what each fold has written of those it held out."""
    rows = np.concatenate([part.held_out for part, _ in folds])
    numbers = np.concatenate([np.full(len(part.held_out), part.fold) for part, _ in folds])
    order = np.argsort(rows)
    scores, distances = (
        np.concatenate([_read(path, prefixes) for _, path in folds])[order]
        for prefixes in (("score",), _DISTANCES)
    )
    shaped = distances.reshape(len(rows), len(_DISTANCES), -1) if distances.size else None
    return Predicted(rows[order], numbers[order], scores, shaped, "cv")


def _read(path: Path, prefixes: Sequence[str]) -> Floats:
    """(m, columns) of the columns that begin so; none is no column."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    names = [name for name in lines[0] if name.rpartition("_")[0] in prefixes]
    return np.array([[float(line[name] or "nan") for name in names] for line in lines])


def _of_distances(distances_mm: Floats, *, seed: int) -> dict[str, dict[str, float | None]]:
    """The median over subjects of the mean over classes, of each distance."""
    found: dict[str, dict[str, float | None]] = {}
    for name, values in zip(_DISTANCES, np.moveaxis(distances_mm, 1, 0), strict=True):
        known = ~np.isnan(values)
        has_any = known.any(axis=1)
        total = np.where(known, values, 0.0).sum(axis=1)
        means = total[has_any] / known.sum(axis=1)[has_any]
        if len(means) and np.isfinite(value := float(np.median(means))):
            low, high = _interval(len(means), partial(_medians, means), seed=seed)
            found[name] = {"value": value, "low": low, "high": high}
    return found


def _medians(values: Floats, draws: Floats) -> Floats:
    """(B,): the lower median of the values that each draw holds so many times."""
    order = np.argsort(values)
    reached = np.cumsum(draws[:, order], axis=1) >= draws.sum(axis=1, keepdims=True) / 2
    middle: Floats = values[order][reached.argmax(axis=1)]
    return middle


def _interval(
    count: int, statistic: Callable[[Floats], Floats], *, seed: int
) -> list[float | None]:
    """Percentiles over draws of ``count`` subjects; of draws that define nothing none is taken."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=_NUM_BOOTSTRAPS)
    values = statistic(draws.astype(np.float64))
    values = values[np.isfinite(values)]
    if not len(values):
        return [None, None]
    return [float(each) for each in np.quantile(values, [0.025, 0.975])]
