"""Training tokens of a segmentation: as many of each class as of the background, where there are.

A token stands for the class of its largest share of foreground; without any it is background. All
tokens of a rare lesion are taken and few of the background. In a fit each counts by the root of how
many it stands for: by their number a rare lesion is hardly learnt, all alike everything looks like
a lesion; the root measured best of the three, and a threshold is chosen afterwards anyhow.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.dense import DenseFeatures
from evaluation.probing.estimator import Floats, Rows
from evaluation.probing.token_grid import TokenGrid

_TOKENS = 10_000  # of all training subjects together, about
_LEAST, _MOST = 8, 128  # of a class in a scan
_SEED = 0


class Tokens(NamedTuple):
    """N tokens of training subjects.

    Attributes:
        values: (N, E).
        shares: Of background and each class in the token's voxels, (N, K + 1).
        weight: (N,).
        subject: Position of whose token it is, (N,).
    """

    values: NDArray[np.float32]
    shares: NDArray[np.float32]
    weight: Floats
    subject: Rows


def sample_tokens(features: DenseFeatures, train: NDArray[np.bool_]) -> Tokens:
    """Tokens of every subject that any of B problems trains on; no other mask is read.

    Args:
        features: Of n subjects.
        train: (B, n).
    """
    num_classes = features.masked.num_classes
    most = int(_TOKENS / ((1 + num_classes) * max(1, train.sum(axis=1).max())))
    most = min(max(most, _LEAST), _MOST)
    parts = []
    for subject in np.flatnonzero(train.any(axis=0)):
        for scan in range(len(features.masked.scans[subject])):
            rng = np.random.default_rng([_SEED, int(subject), scan])
            parts.append(_of_scan(features, int(subject), scan, most=most, rng=rng))
    return Tokens(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _of_scan(
    features: DenseFeatures, subject: int, scan: int, *, most: int, rng: np.random.Generator
) -> Tokens:
    dense, mask = features.load(subject, scan), features.masked.read_mask(subject, scan)
    grid = TokenGrid.of(dense, mask.classes.shape, mask.spacing_mm)
    shares = grid.shares(mask, num_classes=features.masked.num_classes)
    shares = shares.reshape(-1, shares.shape[-1])
    foreground = shares[:, 1:]
    stands_for = np.where(foreground.any(axis=1), 1 + foreground.argmax(axis=1), 0)
    stands_for[~shares.any(axis=1)] = -1  # padding
    rows, weights = [], []
    for number in range(shares.shape[1]):
        members = np.flatnonzero(stands_for == number)
        taken = np.sort(rng.permutation(members)[:most])
        rows.append(taken)
        weights.append(np.full(len(taken), np.sqrt(len(members) / max(1, len(taken)))))
    chosen = np.concatenate(rows)
    values = dense.tokens.reshape(len(shares), -1)[chosen]
    return Tokens(values, shares[chosen], np.concatenate(weights), np.full(len(chosen), subject))
