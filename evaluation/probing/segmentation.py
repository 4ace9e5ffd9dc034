"""Segmentation on frozen patch tokens: a linear probe, and the best that tokens allow.

A token learns the share of each class in its voxels, so a lesion smaller than a token counts too.
Shares are interpolated from tokens to voxels and compared with the mask on the mask's own grid: a
voxel is foreground where its share of foreground exceeds a threshold, and then of the class with
the largest share. Strength and threshold are settings, chosen on validation: with classes as rare
as lesions, the threshold of the best Dice is far below one half.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.embedder import Dense
from evaluation.probing.dense import DenseFeatures
from evaluation.probing.estimator import Estimator, Floats, Setting
from evaluation.probing.multinomial import fit_multinomial, softmax
from evaluation.probing.token_grid import TokenGrid
from evaluation.probing.token_sample import sample_tokens
from foundation.tasks.masks import Mask, dice

CS = (0.01, 0.2, 4.0, 100.0)
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02)

_VOXELS_AT_ONCE = 4_000_000

Shares = NDArray[np.float32]


def segmentation_probe() -> Estimator:
    """The linear probe on :class:`DenseFeatures`; scores are Dice of each class, (B, n, K).

    A class that is in neither mask nor prediction of a subject is NaN, see
    :func:`evaluation.probing.dense.dice`. The masks of held-out subjects are opened when everything
    is trained, to be compared with.
    """
    settings = tuple({"C": c, "threshold": t} for c in CS for t in THRESHOLDS)
    return Estimator("linear", settings, _predict)


def token_ceiling(features: DenseFeatures, subjects: Sequence[int]) -> Floats:
    """Dice of each class if every token told its true shares, (len(subjects), K).

    The threshold is the best of ``THRESHOLDS`` for each subject and class. What a probe lacks to
    this is the backbone's; what this lacks to 1 is the size of the patches.
    """
    thresholds = np.sort(THRESHOLDS)
    found = []
    for subject in subjects:
        counts = np.zeros((len(thresholds), 3, features.masked.num_classes))
        for scan in _scans(features, subject):
            shares = scan.grid.shares(scan.mask, num_classes=features.masked.num_classes)
            counts += _overlaps(shares, scan, thresholds)
        found.append(dice(counts).max(axis=0))
    return np.array(found)


class _Scan(NamedTuple):
    dense: Dense
    mask: Mask
    grid: TokenGrid


class _Models(NamedTuple):
    """Distinct fits among B problems: problems that differ in their threshold share one."""

    coefficient: NDArray[np.float32]  # (F, K + 1, E)
    intercept: NDArray[np.float32]  # (F, K + 1)
    train: NDArray[np.bool_]  # (F, n)
    of_problem: NDArray[np.int64]  # (B,)


def _predict(
    features: DenseFeatures, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    del label  # it is in the masks
    models = _fit(features, train, strength=[float(each["C"]) for each in settings])
    wanted = [float(each["threshold"]) for each in settings]
    thresholds = np.unique(wanted)
    level = np.searchsorted(thresholds, wanted)
    num_classes = features.masked.num_classes
    scores = np.full((*train.shape, num_classes), np.nan)
    for subject in np.flatnonzero(~train.all(axis=0)).tolist():
        counts = np.zeros((len(models.train), len(thresholds), 3, num_classes))
        for scan in _scans(features, subject):
            for fit in np.flatnonzero(~models.train[:, subject]):
                logits = scan.dense.tokens @ models.coefficient[fit].T + models.intercept[fit]
                counts[fit] += _overlaps(softmax(logits).astype(np.float32), scan, thresholds)
        held_out = ~train[:, subject]
        scores[held_out, subject] = dice(counts[models.of_problem, level])[held_out]
    return scores


def _fit(
    features: DenseFeatures, train: NDArray[np.bool_], *, strength: Sequence[float]
) -> _Models:
    sets, which = np.unique(train, axis=0, return_inverse=True)
    problems = list(zip(which.ravel().tolist(), strength, strict=True))
    fits = list(dict.fromkeys(problems))
    rows = sets[[number for number, _ in fits]]
    tokens = sample_tokens(features, train)
    models = fit_multinomial(
        tokens.values,
        tokens.shares,
        rows[:, tokens.subject] * tokens.weight,
        [c for _, c in fits],
        tolerance=1e-4,
        max_iterations=150,
    )
    return _Models(
        models.coefficient.astype(np.float32),
        models.intercept.astype(np.float32),
        rows,
        np.array([fits.index(problem) for problem in problems]),
    )


def _scans(features: DenseFeatures, subject: int) -> Iterator[_Scan]:
    for number in range(len(features.masked.scans[subject])):
        dense = features.load(subject, number)
        mask = features.masked.read_mask(subject, number)
        yield _Scan(dense, mask, TokenGrid.of(dense, mask.classes.shape, mask.spacing_mm))


def _overlaps(shares: Shares, scan: _Scan, thresholds: Floats) -> Floats:
    """Voxels of each class in both, prediction and mask at ascending thresholds, (T, 3, K).

    Args:
        shares: Of background and each class in each token, (d, h, w, K + 1).
        scan: Whose tokens they are.
        thresholds: (T,): a voxel is foreground above it.
    """
    num, truth = shares.shape[-1], scan.mask.classes
    of_classes = np.ascontiguousarray(np.moveaxis(shares[..., 1:], -1, 0))
    size = (len(thresholds) + 1, num)
    both, called = np.zeros(size), np.zeros(size)
    step = max(1, _VOXELS_AT_ONCE // (num * truth[0].size))
    for start in range(0, len(truth), step):
        planes = slice(start, start + step)
        voxels = scan.grid.upsample(of_classes, planes).reshape(num - 1, -1)
        foreground = voxels.sum(axis=0)
        place = np.flatnonzero(foreground > thresholds[0])
        winner = 1 + voxels[:, place].argmax(axis=0)
        # How many thresholds a voxel is above: it is called at these, and at no other.
        code = np.searchsorted(thresholds, foreground[place], side="left") * num + winner
        right = winner == truth[planes].ravel()[place]
        called += np.bincount(code, minlength=size[0] * num).reshape(size)
        both += np.bincount(code[right], minlength=size[0] * num).reshape(size)
    at_least = [np.cumsum(part[::-1], axis=0)[::-1][1:, 1:] for part in (both, called)]
    true = np.bincount(truth.ravel(), minlength=num)[1:]
    return np.stack([*at_least, np.broadcast_to(true, at_least[0].shape)], axis=1)
