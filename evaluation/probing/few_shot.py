"""Few-shot probes: the score after k subjects per class, or after a share of the training labels.

Beside the linear probe stand class means, which need one subject. Strength and temperature are
constants of the recipe, or the strength is chosen by cross-validation among the drawn subjects: no
label beyond them is spent. What needs no label uses all of the training split: features that are
fitted (a PCA) are fitted on it, and the linear probe scales features by their spread in it. From
the drawn rows alone, of one subject per class, every feature would seem to differ by as much as
the next.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.draws import Draws, FewShotConfig
from evaluation.probing.estimator import Features, Floats
from evaluation.probing.linear import linear_probe, linear_scores, strength_name
from evaluation.probing.predictions import padded
from evaluation.probing.prototypes import KINDS as KINDS_OF_PROTOTYPES
from evaluation.probing.prototypes import prototypes
from evaluation.probing.subjects import Part
from foundation.metrics.quality import measures
from foundation.tasks.task import Task

_TOLERANCE = 1e-5
_TUNING_TOLERANCE = 1e-4
_FOLDS = 5
_ENTRIES_AT_ONCE = 20_000_000  # float64 of scores that are held together: 160 MB
_LEAST_PROBABILITY = 1e-12


def score_draws(
    task: Task, features: Features, draws: Draws, config: FewShotConfig, *, split: str
) -> list[tuple[str, float, str, int, float]]:
    """Score every draw on one split.

    Args:
        task: The draws are of its training split.
        features: Arrays or ``Fitted``.
        draws: The same for every model.
        config: Strengths.
        split: ``val`` or ``test``; of no other subject than training's and its own is read.

    Returns:
        (protocol, x, unit, draw, score by the task's metric), draws in order.
    """
    part = Part.of(features, task.label, np.union1d(task.rows("train"), task.rows(split)))
    values = np.asarray(part.fitted(task.rows("train")), dtype=np.float64)
    scaled = _scaled(values, part.positions(task.rows("train")))
    held_out = part.positions(task.rows(split))
    rows: list[tuple[str, float, str, int, float]] = []
    for point in draws.points:
        sets = part.positions(draws.sets(point))
        everyone_alike = sets.shape[1] == len(task.rows("train"))
        some = sets[:1] if everyone_alike else sets
        for protocol, scores in _protocols(
            task, (scaled, values), part.label, some, draws.sizes(point), config
        ):
            shown = padded(scores[:, held_out], len(task.outputs))
            found = measures(part.label[held_out], shown, task.card.metric)
            rows += [
                (protocol, point.x, point.unit, number, float(score))
                for number, score in enumerate(np.broadcast_to(found, len(sets)))
            ]
    return rows


def _protocols(
    task: Task,
    values: tuple[Floats, Floats],
    label: Floats,
    sets: NDArray[np.int64],
    sizes: Mapping[int, int],
    config: FewShotConfig,
) -> list[tuple[str, Floats]]:
    """Scores (draws, n, K) of each protocol that the kind has; ``values`` are scaled, and not."""
    kind, (scaled, plain) = task.card.kind, values
    masks = np.zeros((len(sets), len(label)), dtype=np.bool_)
    np.put_along_axis(masks, sets, True, axis=1)
    strength_by_name = {"C": config.C, "alpha": config.alpha}
    strength = np.full(len(sets), strength_by_name[strength_name(kind)])
    tunes = config.tune_from is not None and min(sizes.values()) >= config.tune_from
    if tunes and kind != "survival":  # of a few deaths, no held-out likelihood tells anything
        strength = tuned(kind, scaled, label, sets, list(sizes.values()))
    found = [
        (
            "linear",
            linear_scores(kind, scaled, label, masks, strength, scales=False, tolerance=_TOLERANCE),
        )
    ]
    if kind in KINDS_OF_PROTOTYPES:
        settings = [{"temperature": config.temperature}] * len(sets)
        found.append(("prototypes", prototypes(kind).predict(plain, label, masks, settings)))
    return found


def tuned(
    kind: str, values: Floats, label: Floats, sets: NDArray[np.int64], sizes: list[int]
) -> Floats:
    """The strength of each draw, chosen by cross-validation inside its set, (draws,).

    By the held-out log loss, or squared error: rank metrics are too coarse for a few subjects.

    Args:
        kind: Of the task.
        values: (n, P).
        label: Of the same rows.
        sets: Positions of the drawn subjects by stratum, in drawn order, (draws, size).
        sizes: Subjects of each stratum, in the order of ``sets``.
    """
    num_outputs = len(np.unique(label)) if kind in ("multiclass", "ordinal") else 1
    per_draw = _FOLDS * len(linear_probe(kind).settings) * len(label) * num_outputs
    step = max(1, _ENTRIES_AT_ONCE // per_draw)
    found = [
        _tuned_some(kind, values, label, sets[start : start + step], sizes)
        for start in range(0, len(sets), step)
    ]
    return np.concatenate(found)


def _tuned_some(
    kind: str, values: Floats, label: Floats, sets: NDArray[np.int64], sizes: list[int]
) -> Floats:
    name = strength_name(kind)
    strengths = np.array([float(each[name]) for each in linear_probe(kind).settings])
    num_folds = max(2, min(_FOLDS, *sizes))
    # The order is random, so dealing it out in turn makes random folds with every class in each.
    fold_of = np.concatenate([np.arange(size) % num_folds for size in sizes])
    masks = np.zeros((len(sets), num_folds, len(label)), dtype=np.bool_)
    for fold in range(num_folds):
        np.put_along_axis(masks[:, fold], sets[:, fold_of != fold], True, axis=1)
    problems = np.repeat(masks.reshape(-1, len(label)), len(strengths), axis=0)
    tiled = np.tile(strengths, len(sets) * num_folds)
    scores = linear_scores(
        kind, values, label, problems, tiled, scales=False, tolerance=_TUNING_TOLERANCE
    )
    shaped = scores.reshape(len(sets), num_folds, len(strengths), *scores.shape[1:])
    total = np.zeros((len(sets), len(strengths)))
    for number, members in enumerate(sets):
        for fold in range(num_folds):
            rows = members[fold_of == fold]
            total[number] += losses(kind, label[rows], shaped[number, fold][:, rows])
    best: Floats = strengths[total.argmin(axis=1)]
    return best


def losses(kind: str, label: Floats, scores: Floats) -> Floats:
    """Summed log loss, or squared error, of (S, m, K) scores, (S,); missing labels count none."""
    if kind == "regression":
        squared: Floats = ((scores[:, :, 0] - label) ** 2).sum(axis=1)
        return squared
    if kind in ("multiclass", "ordinal"):
        given = scores[:, np.arange(len(label)), label.astype(np.int64)]
        return -np.log(np.maximum(given, _LEAST_PROBABILITY)).sum(axis=1)
    truth = label.reshape(len(label), -1)
    given = np.where(truth == 1, scores, 1.0 - scores)
    logged = np.log(np.maximum(given, _LEAST_PROBABILITY))
    return -np.where(np.isfinite(truth), logged, 0.0).sum(axis=(1, 2))


def _scaled(features: Floats, train: NDArray[np.int64]) -> Floats:
    """In units of the training split's spread, in no more columns than it has subjects.

    A probe with an L2 penalty on features that are scaled once never leaves the span of the
    training rows, so coordinates along axes of that span give the same scores.
    """
    mean, spread = features[train].mean(axis=0), features[train].std(axis=0)
    varies = spread > 1e-10 * np.abs(mean) + 1e-15
    scaled: Floats = np.where(varies, features - mean, 0.0) / np.where(varies, spread, 1.0)
    if scaled.shape[1] > len(train):
        axes, _ = np.linalg.qr(scaled[train].T)
        scaled = scaled @ axes
    return scaled
