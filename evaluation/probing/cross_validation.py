"""Repeated cross-validation by subject in which every fold chooses for itself.

A fold's features and setting are chosen by cross-validation inside its training part, so nothing
of the fold has a say in what is scored on it.

Scores of different folds are of different models, and each of these has learnt from the others'
folds. Where features mean nothing, that puts positives of one fold below negatives of another: the
area over all pairs of subjects is below one half, the more so when repeats are averaged first,
which takes out the chance around it. Pairs within a fold are at one half. So what is kept is one
repeat, not the mean: the one whose score comes nearest to the mean over folds, of a metric of
pairs, or the middle one of any other.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from evaluation.probing.estimator import Estimator, Features, Fitted, Floats, Scorer, Setting
from evaluation.probing.predictions import predict
from evaluation.probing.prevalence import at_prevalence, class_shares
from evaluation.probing.subjects import Part
from foundation.metrics.quality import as_score, measures, qualities
from foundation.tasks.card import OF_ONE_SUBJECT, RepeatedCv
from foundation.tasks.folds import Fold, nested_folds
from foundation.tasks.task import Task

_OF_PAIRS = ("auroc", "macro_auroc", "concordance")
_ENTRIES_AT_ONCE = 30_000_000  # float64 of scores that are held together: 240 MB


class CrossValidated(NamedTuple):
    """What :func:`evaluation.probing.protocols.evaluate` makes an outcome of.

    Attributes:
        scores: Of each subject while it was held out, (n, K), in one repeat. What belongs to one
            subject alone (Dice, a query) is the mean over repeats.
        chosen: What most folds chose.
        grid: Every candidate with its mean score inside training parts, and how often chosen.
        folds: Primary metric of each fold, repeat by repeat, NaN where it has none.
    """

    scores: Floats
    chosen: dict[str, Any]
    grid: list[dict[str, Any]]
    folds: Floats


class _Tried(NamedTuple):
    """One candidate for features, at every setting.

    Attributes:
        quality: Inside the training part of each fold, (folds, settings).
        held_out: By fold: scores of the fold at each setting, (settings, m, K).
    """

    quality: Floats
    held_out: list[Floats]


def cross_validate(task: Task, scorer: Scorer, cv: RepeatedCv) -> CrossValidated:
    """Score one protocol of one model on a cohort without a split."""
    folds = nested_folds(task.label, kind=task.card.kind, cv=cv)
    settings = scorer.estimator.settings
    tried = [
        _try_features(task, features, scorer.estimator, folds)
        for features in scorer.features.values()
    ]
    quality = np.stack([each.quality for each in tried], axis=1)  # (folds, features, settings)
    best = quality.reshape(len(folds), -1).argmax(axis=1)
    by_repeat = np.full((cv.repeats, len(task.label), len(task.outputs)), np.nan)
    metrics = np.zeros(len(folds))
    for number, fold in enumerate(folds):
        which, setting = divmod(int(best[number]), len(settings))
        score = tried[which].held_out[number][setting]
        by_repeat[number // cv.folds, fold.held_out] = score
        metrics[number] = measures(task.label[fold.held_out], score[None], task.card.metric)[0]
    grid = _grid(task, scorer, quality, best)
    often = max(grid, key=lambda cell: cell["times_chosen"])
    chosen = {key: value for key, value in often.items() if key != "score"}
    scores = _kept(task, by_repeat, metrics)
    return CrossValidated(scores, {**chosen, "num_fits": len(folds)}, grid, metrics)


def _kept(task: Task, by_repeat: Floats, metrics: Floats) -> Floats:
    """Of the scores of all repeats, (repeats, n, K), those that stand for them, (n, K)."""
    if task.card.kind in OF_ONE_SUBJECT:
        known = np.isfinite(by_repeat)  # a Dice or a query may have no value in some repeat
        times = known.sum(axis=0)
        total = np.where(known, by_repeat, 0.0).sum(axis=0)
        return np.divide(total, times, out=np.full_like(total, np.nan), where=times > 0)
    whole = measures(task.label, by_repeat, task.card.metric)
    wanted = metrics if task.card.metric in _OF_PAIRS else whole
    if not np.isfinite(whole).any() or not np.isfinite(wanted).any():
        return by_repeat[0]
    middle = np.nanmean(metrics) if wanted is metrics else np.nanmedian(whole)
    kept: Floats = by_repeat[int(np.nanargmin(np.round(np.abs(whole - middle), 12)))]
    return kept


def _try_features(
    task: Task, features: Features, estimator: Estimator, folds: list[Fold]
) -> _Tried:
    """Every setting, inside every training part and on every fold."""
    qualities_of, held_out = [], []
    for some, scores in _predicted(task, features, estimator, folds):
        for fold, of_fold in zip(some, scores, strict=True):
            inner, outer = of_fold[:-1], of_fold[-1]  # (inner folds, settings, n, K)
            gathered = np.zeros_like(outer)
            for (_, rows), score in zip(fold.inner, inner, strict=True):
                gathered[:, rows] = score[:, rows]
            inside = gathered[:, fold.train]
            qualities_of.append(qualities(task.label[fold.train], inside, task.card.metric))
            held_out.append(outer[:, fold.held_out])
    return _Tried(np.stack(qualities_of), held_out)


def _predicted(
    task: Task, features: Features, estimator: Estimator, folds: list[Fold]
) -> Iterator[tuple[list[Fold], list[Floats]]]:
    """Some folds at a time: scores of each, (inner folds + 1, settings, n, K), the outer fit last.

    Features that are fitted are fitted once for each fold, on its training part.
    """
    part = Part.of(features, task.label, np.arange(len(task.label)))
    per_fold = (len(folds[0].inner) + 1) * len(estimator.settings) * len(task.label)
    step = max(1, _ENTRIES_AT_ONCE // (per_fold * len(task.outputs)))
    if isinstance(features, Fitted):
        step = 1
    for start in range(0, len(folds), step):
        some = folds[start : start + step]
        trained = [[*(train for train, _ in fold.inner), fold.train] for fold in some]
        values = part.fitted(some[0].train)
        yield some, _scores_of_folds(task, values, estimator, trained)


def _scores_of_folds(
    task: Task, values: Any, estimator: Estimator, trained: list[list[Any]]
) -> list[Floats]:
    """At the prevalence of the cohort, whatever rows were trained on."""
    settings = estimator.settings
    parts = [rows for fold in trained for rows in fold]
    masks = Part.of(values, task.label, np.arange(len(task.label))).masks(parts)
    num_outputs, kind = len(task.outputs), task.card.kind
    repeated = np.repeat(masks, len(settings), axis=0)
    scores = predict(
        estimator, values, task.label, repeated, list(settings) * len(parts),
        num_outputs=num_outputs,
    )  # fmt: skip
    if kind in ("binary", "multiclass", "multilabel", "ordinal"):
        everyone = np.ones((1, len(task.label)), dtype=np.bool_)
        shares = class_shares(task.label, masks, num_outputs=num_outputs, kind=kind)
        wanted = class_shares(task.label, everyone, num_outputs=num_outputs, kind=kind)
        trained_at = np.repeat(shares, len(settings), axis=0)
        scores = at_prevalence(scores, trained=trained_at, wanted=wanted, kind=kind)
    shaped = scores.reshape(len(parts), len(settings), *scores.shape[1:])
    ends = np.cumsum([len(fold) for fold in trained])
    return np.split(shaped, ends[:-1])


def _grid(
    task: Task, scorer: Scorer, quality: Floats, best: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    settings = scorer.estimator.settings
    cells: list[tuple[str, Setting]] = [
        (name, setting) for name in scorer.features for setting in settings
    ]
    flat = quality.reshape(len(quality), -1)
    return [
        {
            "features": name,
            **setting,
            "score": as_score(float(flat[:, number].mean()), task.card.metric),
            "times_chosen": int((best == number).sum()),
        }
        for number, (name, setting) in enumerate(cells)
    ]
