"""Choose settings on validation, predict, and open the test split only when told to.

Every estimator answers the same question: trained on these rows with this setting, what is the
score of every row? So choosing a setting is written once, for a split and for nested
cross-validation, whatever is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.metrics import measure
from evaluation.tasks.task import RepeatedCv, Task

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Setting = Mapping[str, float | int]
Features = Floats | Callable[[Rows], Floats]
"""(n, P) of all subjects, or what makes them after fitting on the training rows it is given."""

_INNER_FOLDS = 5


class Estimator(NamedTuple):
    """A way to learn from features.

    Attributes:
        name: The protocol's name in the store.
        settings: To choose from, the most cautious first: it wins a tie.
        predict: ``(features (n, P), label (n,), train (B, n) bool, settings (B))`` -> scores
            (B, n); only rows outside ``train`` are read.
    """

    name: str
    settings: tuple[Setting, ...]
    predict: Callable[[Floats, Floats, NDArray[np.bool_], Sequence[Setting]], Floats]


class Outcome(NamedTuple):
    """Predictions with how they came about.

    Attributes:
        scores: By split (``val`` and perhaps ``test``, or ``cv``), one per subject in its order.
        chosen: Features and setting.
        grid: Every candidate with its score on validation.
    """

    scores: dict[str, Floats]
    chosen: dict[str, Any]
    grid: list[dict[str, Any]]


def evaluate(
    task: Task, features: Mapping[str, Features], estimator: Estimator, *, open_test: bool
) -> Outcome:
    """Score one model on one task.

    Args:
        task: With a split, or to be cross-validated.
        features: Candidates by name, of all the task's subjects; one is chosen.
        estimator: What is trained on them.
        open_test: Also refit on training and validation with the chosen setting and score the
            test split. It is not looked at otherwise.
    """
    if task.card.protocol.repeated_cv is not None:
        return _cross_validated(task, features, estimator, task.card.protocol.repeated_cv)
    return _on_split(task, features, estimator, open_test=open_test)


def stratified_folds(
    label: Floats, rows: Rows, *, num_folds: int, rng: np.random.Generator, by_class: bool
) -> list[Rows]:
    """Cut rows into disjoint folds whose classes are within one subject of each other."""
    strata = [rows[label[rows] == level] for level in (0, 1)] if by_class else [rows]
    dealt = np.concatenate([rng.permutation(members) for members in strata])
    return [np.sort(dealt[start::num_folds]) for start in range(num_folds)]


def _on_split(
    task: Task, features: Mapping[str, Features], estimator: Estimator, *, open_test: bool
) -> Outcome:
    train, val, test = (task.rows(split) for split in ("train", "val", "test"))
    tried = []
    for name, feature in features.items():
        values = _fitted(feature, train)
        scores = estimator.predict(
            values, task.label, _masks(task, [train] * len(estimator.settings)), estimator.settings
        )
        for setting, score in zip(estimator.settings, scores[:, val], strict=True):
            quality = measure(task.label[val], score, task.card.metric)
            tried.append((quality, name, setting, score))
    _, name, setting, score = max(tried, key=lambda candidate: candidate[0])
    grid = [{"features": n, **s, "score": q} for q, n, s, _ in tried]
    outcome = Outcome({"val": score}, {"features": name, **setting}, grid)
    if open_test:
        both = np.concatenate([train, val])
        values = _fitted(features[name], both)
        refit = estimator.predict(values, task.label, _masks(task, [both]), [setting])
        outcome.scores["test"] = refit[0, test]
    return outcome


def _cross_validated(
    task: Task, features: Mapping[str, Features], estimator: Estimator, cv: RepeatedCv
) -> Outcome:
    """Every fold chooses for itself, by cross-validation inside its training part."""
    outer, inner = _nested_folds(task, cv)
    quality = np.stack(
        [_inner_quality(task, feature, estimator, outer, inner) for feature in features.values()]
    )  # (candidates, folds, settings)
    names, num_settings = list(features), len(estimator.settings)
    best = quality.transpose(1, 0, 2).reshape(len(outer), -1).argmax(axis=1)
    total = np.zeros(len(task.label))
    for candidate, name in enumerate(names):
        mine = np.flatnonzero(best // num_settings == candidate)
        if not len(mine):
            continue
        chosen = [estimator.settings[index % num_settings] for index in best[mine]]
        scores = _predict_folds(
            task, features[name], estimator, [(outer[fold][0], outer[fold][0]) for fold in mine],
            chosen,
        )  # fmt: skip
        for fold, score in zip(mine, scores, strict=True):
            part, held_out = outer[fold]
            total[held_out] += _at_one_prevalence(task, score[held_out], part) / cv.repeats
    grid = [
        {"features": name, **setting, "score": float(quality[candidate, :, index].mean()),
         "times_chosen": int((best == candidate * num_settings + index).sum())}
        for candidate, name in enumerate(names)
        for index, setting in enumerate(estimator.settings)
    ]  # fmt: skip
    often = max(grid, key=lambda cell: cell["times_chosen"])
    chosen_most = {key: often[key] for key in often if key != "score"}
    return Outcome({"cv": total}, {**chosen_most, "num_fits": len(outer)}, grid)


def _at_one_prevalence(task: Task, score: Floats, train: Rows) -> Floats:
    """Probabilities as if every fold had been trained at the cohort's prevalence.

    A fold that holds out a positive trains on one less, so its scores are lower: pooled as they
    are, a constant would score far below .5. Shifting the log-odds by the prior takes that out and
    leaves the order within a fold as it is.
    """
    if task.card.kind != "binary":
        return score
    inside = np.clip(score, 1e-9, 1 - 1e-9)
    shift = _log_odds(task.label.mean()) - _log_odds(task.label[train].mean())
    moved = 1.0 / (1.0 + np.exp(-(_log_odds(inside) + shift)))
    # What is equal but for rounding is a tie.
    same: Floats = np.round(moved, 12)
    return same


def _log_odds(probability: Floats) -> Floats:
    return np.log(probability) - np.log1p(-probability)


def _nested_folds(
    task: Task, cv: RepeatedCv
) -> tuple[list[tuple[Rows, Rows]], list[list[tuple[Rows, Rows]]]]:
    """Outer (train, held out) pairs of all repeats, and the inner pairs of each."""
    rng = np.random.default_rng(cv.seed)
    by_class = task.card.kind == "binary"
    everyone = np.arange(len(task.label))
    outer = []
    for _ in range(cv.repeats):
        outer += list(_pairs(task.label, everyone, cv.folds, rng, by_class))
    inner = []
    for train, _ in outer:
        rarest = int(np.bincount(task.label[train].astype(int)).min()) if by_class else len(train)
        folds = max(2, min(_INNER_FOLDS, rarest))
        inner.append(list(_pairs(task.label, train, folds, rng, by_class)))
    return outer, inner


def _pairs(
    label: Floats, rows: Rows, num_folds: int, rng: np.random.Generator, by_class: bool
) -> Iterator[tuple[Rows, Rows]]:
    for fold in stratified_folds(label, rows, num_folds=num_folds, rng=rng, by_class=by_class):
        yield np.setdiff1d(rows, fold), fold


def _inner_quality(
    task: Task,
    feature: Features,
    estimator: Estimator,
    outer: Sequence[tuple[Rows, Rows]],
    inner: Sequence[Sequence[tuple[Rows, Rows]]],
) -> Floats:
    """Metric of each setting inside each outer training part, (folds, settings)."""
    fits = [
        (outer[fold][0], train, setting, fold, held_out)
        for fold in range(len(outer))
        for train, held_out in inner[fold]
        for setting in range(len(estimator.settings))
    ]
    scores = _predict_folds(
        task,
        feature,
        estimator,
        [(part, train) for part, train, *_ in fits],
        [estimator.settings[setting] for *_, setting, _, _ in fits],
    )
    gathered = np.full((len(outer), len(estimator.settings), len(task.label)), np.nan)
    for (*_, setting, fold, held_out), score in zip(fits, scores, strict=True):
        gathered[fold, setting, held_out] = score[held_out]
    return np.array(
        [
            [measure(task.label[train], row[train], task.card.metric) for row in gathered[fold]]
            for fold, (train, _) in enumerate(outer)
        ]
    )


def _predict_folds(
    task: Task,
    feature: Features,
    estimator: Estimator,
    parts: Sequence[tuple[Rows, Rows]],
    settings: Sequence[Setting],
) -> Iterator[Floats]:
    """Scores of all rows, fit by fit; ``parts`` are (rows features are fitted on, rows trained on).

    Features that need no fitting go through one call; others are fitted once per outer part.
    """
    if not callable(feature):
        masks = _masks(task, [train for _, train in parts])
        yield from estimator.predict(feature, task.label, masks, settings)
        return
    start = 0
    while start < len(parts):
        stop = start + 1
        while stop < len(parts) and parts[stop][0] is parts[start][0]:
            stop += 1
        masks = _masks(task, [train for _, train in parts[start:stop]])
        values = feature(parts[start][0])
        yield from estimator.predict(values, task.label, masks, settings[start:stop])
        start = stop


def _fitted(feature: Features, train: Rows) -> Floats:
    return feature(train) if callable(feature) else feature


def _masks(task: Task, parts: Sequence[Rows]) -> NDArray[np.bool_]:
    masks = np.zeros((len(parts), len(task.label)), dtype=np.bool_)
    for mask, rows in zip(masks, parts, strict=True):
        mask[rows] = True
    return masks
