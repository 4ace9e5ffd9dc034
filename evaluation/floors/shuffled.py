"""Shuffled labels: a probe trained on labels that mean nothing must score at chance.

Training labels are replaced by shuffled ones, at one fixed middle setting, and the held-out
subjects are scored by their true labels. The shuffled labels hold as many of each class, or values
spread evenly: then a shuffle and its mirror image (classes exchanged, values reversed) are equally
likely, so the mean over shuffles is exactly chance. With unequal classes it is not. A single
feature that tells the classes apart and has a long tail points, under most shuffles, away from the
rarer class, and the mean of healthy shuffles is far from .5. For the same reason classes are
compared in pairs, by the ratio of their two probabilities. Survival has no exact mirror: half of
the subjects die at one time and the others live, which is near to one.

What it sees: an estimator that looks at the labels of held-out subjects, and a score that does not
come from the labels it was trained on (a model kept from an earlier fit, features that were
replaced by predictions from all labels). What it cannot see: labels inside the features, or
features selected by the labels of all subjects. A probe that is trained on noise does not find
them; only the score on true labels is too good.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from evaluation.probing.estimator import Floats, Rows, Scorer
from evaluation.probing.predictions import predict
from evaluation.probing.subjects import Part
from foundation.metrics.by_name import measure
from foundation.metrics.rows import StatisticsError
from foundation.tasks.task import Task

CHANCE = 0.5
NUM_SHUFFLES = 20
NUM_CONFIRMING = 200
STANDARD_ERRORS = 3.0
METRIC_OF = {
    "binary": "auroc",
    "multiclass": "auroc of pairs of classes",
    "multilabel": "macro_auroc",
    "regression": "concordance",
    "ordinal": "concordance",
    "survival": "concordance",
}

_FOLDS = 5


class ShuffleError(ValueError):
    """A probe beats chance on labels that mean nothing: something leaks."""


def shuffled_check(
    task: Task, scorer: Scorer, *, model: str, open_test: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Whether the mean of ``NUM_SHUFFLES`` is within three standard errors of chance.

    A healthy task fails that by chance in 0.7% of cases (Student's t with 19 degrees of freedom),
    so a failure counts only when ``NUM_CONFIRMING`` more shuffles fail too.

    Args:
        task: Subjects, labels and splits; scored on validation, on test when it is open, and on
            one fold after the other where folds are drawn.
        scorer: The protocol; the first of its features is used.
        model: Named in the message.
        open_test: Whether the test split is open.
        seed: Of the shuffles.

    Returns:
        ``metric, chance, num, mean, se, passed, reason`` and the ``model`` and ``protocol``;
        numbers are None, with a reason, where the question makes no sense.

    Raises:
        ShuffleError: The mean is not at chance, and more shuffles say so too.
    """
    kind = task.card.kind
    result = {"model": model, "protocol": scorer.estimator.name, "metric": METRIC_OF.get(kind),
              "chance": CHANCE, "num": 0, "mean": None, "se": None, "passed": None}  # fmt: skip
    if kind not in METRIC_OF:
        return {**result, "chance": None, "reason": f"no labels are trained on in a {kind} task"}
    scores = _scores_of_shuffles(task, scorer, open_test=open_test, seed=seed)
    try:
        first = np.array([next(scores) for _ in range(NUM_SHUFFLES)])
        mean, se = _mean_and_error(first)
        if _at_chance(mean, se):
            return {**result, "num": NUM_SHUFFLES, "mean": mean, "se": se, "passed": True,
                    "reason": ""}  # fmt: skip
        more = np.array([next(scores) for _ in range(NUM_CONFIRMING)])
    except StatisticsError as error:
        return {**result, "reason": str(error)}
    off = f"the first {NUM_SHUFFLES} had a mean of {mean:.3f} with a standard error of {se:.3f}"
    mean, se = _mean_and_error(more)
    if not _at_chance(mean, se):
        raise ShuffleError(
            f"task {task.card.name}, model {model}, {scorer.estimator.name}: trained on shuffled "
            f"labels, the mean {METRIC_OF[kind]} of {NUM_CONFIRMING} shuffles is {mean:.3f} with a "
            f"standard error of {se:.4f}, expected {CHANCE} within {STANDARD_ERRORS:g}; labels "
            "reach the scores by another way than training: look for it before any score is read"
        )
    reason = f"{off}; {NUM_CONFIRMING} more are at chance"
    return {**result, "num": NUM_CONFIRMING, "mean": mean, "se": se, "passed": True,
            "reason": reason}  # fmt: skip


def shuffled_labels(kind: str, label: Floats, *, num_outputs: int, seed: Any) -> Floats:
    """Labels that mean nothing, for training rows with these labels; missing ones stay missing."""
    rng = np.random.default_rng(seed)
    size = len(label)
    if kind == "binary":
        return _balanced(size, 2, rng)
    if kind in ("multiclass", "ordinal"):
        return _balanced(size, num_outputs, rng)
    if kind == "multilabel":
        shuffled = np.full(label.shape, np.nan)
        for column, known in zip(shuffled.T, np.isfinite(label).T, strict=True):
            column[known] = _balanced(int(known.sum()), 2, rng)
        return shuffled
    if kind == "survival":
        return np.stack([np.full(size, np.median(label[:, 0])), _balanced(size, 2, rng)], axis=1)
    even = rng.permutation(np.linspace(-1.0, 1.0, size))
    return label.mean() + even * label.std() * np.sqrt(3.0)


def _balanced(size: int, num_classes: int, rng: np.random.Generator) -> Floats:
    """As many of each class, but for a remainder that falls on any of them alike."""
    start = int(rng.integers(num_classes))
    return rng.permutation((np.arange(size) + start) % num_classes).astype(np.float64)


def _scores_of_shuffles(
    task: Task, scorer: Scorer, *, open_test: bool, seed: int
) -> Iterator[float]:
    """One score after another, without end; nobody but these subjects is read."""
    features, settings = next(iter(scorer.features.values())), scorer.estimator.settings
    folds = [
        (Part.of(features, task.label, np.union1d(train, held_out)), train, held_out)
        for train, held_out in _parts(task, open_test=open_test, seed=seed)
    ]
    ready = [part.fitted(train) for part, train, _ in folds]
    kind, num_outputs = task.card.kind, len(task.outputs)
    for number in itertools.count():
        part, train, held_out = folds[number % len(folds)]
        inside, outside = part.positions(train), part.positions(held_out)
        label = part.label.copy()
        label[inside] = shuffled_labels(
            kind, label[inside], num_outputs=num_outputs, seed=[seed, number]
        )
        score = predict(
            scorer.estimator,
            ready[number % len(folds)],
            label,
            part.masks([train]),
            [settings[len(settings) // 2]],
            num_outputs=num_outputs,
        )[0]
        yield _SCORES[kind](task.label[held_out], score[outside])


def _parts(task: Task, *, open_test: bool, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """Training and held-out rows: of the split, or folds that share out the classes."""
    if task.card.protocol.repeated_cv is None:
        before = ("train", "val") if open_test else ("train",)
        yield task.rows(*before), task.rows("test" if open_test else "val")
        return
    label = task.label
    key = label[:, -1] if label.ndim == 2 else label
    mixed = np.random.default_rng(seed).permutation(len(label))
    order = mixed[np.argsort(key[mixed], kind="stable")]
    for fold in range(_FOLDS):
        held_out = np.sort(order[fold::_FOLDS])
        yield np.setdiff1d(order, held_out), held_out


def _mean_and_error(scores: Floats) -> tuple[float, float]:
    return float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores)))


def _at_chance(mean: float, se: float) -> bool:
    return abs(mean - CHANCE) <= STANDARD_ERRORS * se + 1e-9


def _concordance(label: Floats, score: Floats) -> float:
    return measure(label, score[:, 0], "concordance")


def _of_levels(label: Floats, score: Floats) -> float:
    return measure(label, score @ np.arange(score.shape[1]), "concordance")


def _of_pairs(label: Floats, score: Floats) -> float:
    """Mean over pairs of classes of the AUROC of one against the other (Hand and Till 2001)."""
    evidence = np.log(np.maximum(score, 1e-300))
    present = [int(level) for level in np.unique(label)]
    if len(present) < 2:
        raise StatisticsError("shuffled labels need held-out subjects of two classes")
    found = []
    for first, second in itertools.combinations(present, 2):
        rows = np.isin(label, (first, second))
        ratio = evidence[rows, second] - evidence[rows, first]
        found.append(measure((label[rows] == second).astype(np.float64), ratio, "auroc"))
    return float(np.mean(found))


def _of_labels(label: Floats, score: Floats) -> float:
    """Mean over labels that have subjects with and without; the others say nothing."""
    found = []
    for truth, column in zip(label.T, score.T, strict=True):
        known = np.isfinite(truth)
        if len(np.unique(truth[known])) == 2:
            found.append(measure(truth[known], column[known], "auroc"))
    if not found:
        raise StatisticsError("shuffled labels need a label with held-out subjects on both sides")
    return float(np.mean(found))


_SCORES: dict[str, Callable[[Floats, Floats], float]] = {
    "binary": lambda label, score: measure(label, score[:, 0], "auroc"),
    "multiclass": _of_pairs,
    "multilabel": _of_labels,
    "regression": _concordance,
    "ordinal": _of_levels,
    "survival": _concordance,
}
