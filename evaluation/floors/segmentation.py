"""Floors of a segmentation: where the class usually is, and how bright it usually is.

Neither has a network. The atlas is the mean training mask on a grid that spans each scan's field of
view; the intensity floor knows, for each brightness, the share of training voxels of each class. A
voxel is foreground where the shares of all classes add up to a threshold, which is chosen on
validation, and is then of the class with the largest share.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import read_row
from evaluation.floors.intensity import windowed
from evaluation.floors.voxels import cell_shares
from evaluation.probing.estimator import Estimator, Floats, Rows, Setting
from foundation.tasks.masks import Classes, MaskedScans, MaskError, dice, overlap
from shards.sources.cohort import CohortRow

CELLS = 32  # of the atlas, along each axis
BINS = 64  # of the modality's window
THRESHOLDS = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02)

_SETTINGS: tuple[Setting, ...] = tuple({"threshold": each} for each in THRESHOLDS)


class MaskedVoxels:
    """Summaries of each subject's scans and masks, made once, when they are asked for.

    Args:
        masked: The scans and masks.
    """

    def __init__(self, masked: MaskedScans) -> None:
        self.masked = masked
        self._cells: dict[tuple[str, ...], Floats] = {}
        self._counts: dict[tuple[str, ...], Floats] = {}

    def __len__(self) -> int:
        return len(self.masked)

    def take(self, rows: Rows) -> "MaskedVoxels":
        """Those of some subjects, so that the others cannot be read; what is made is shared."""
        taken = MaskedVoxels(self.masked.take(rows))
        taken._cells, taken._counts = self._cells, self._counts
        return taken

    def masks(self, subject: int) -> list[Classes]:
        """Masks of a subject's scans."""
        scans = range(len(self.masked.scans[subject]))
        return [self.masked.read_mask(subject, scan).classes for scan in scans]

    def cells(self, subject: int) -> Floats:
        """Share of each class in each cell, mean over the scans, (K, CELLS, CELLS, CELLS)."""
        key = self._key(subject)
        if key not in self._cells:
            shares = [_class_shares(mask, self.masked.num_classes) for mask in self.masks(subject)]
            self._cells[key] = np.mean(shares, axis=0, dtype=np.float64)
        return self._cells[key]

    def counts(self, subject: int) -> Floats:
        """Voxels by brightness and class, background first, of all scans, (BINS, 1 + K)."""
        key = self._key(subject)
        if key not in self._counts:
            total = np.zeros((BINS, 1 + self.masked.num_classes))
            for row, mask in zip(self.masked.scans[subject], self.masks(subject), strict=True):
                total += _joint_counts(row, mask, num_classes=self.masked.num_classes)
            self._counts[key] = total
        return self._counts[key]

    def _key(self, subject: int) -> tuple[str, ...]:
        return tuple(row.scan for row in self.masked.scans[subject])


def _joint_counts(row: CohortRow, mask: Classes, *, num_classes: int) -> Floats:
    bright = windowed(read_row(row))
    if bright.shape != mask.shape:
        raise MaskError(
            f"{row.scan}: a mask of {mask.shape} voxels does not fit its scan of {bright.shape}"
        )
    bins = np.clip(((bright + 1.0) / 2.0 * BINS).astype(np.int64), 0, BINS - 1)
    joint = bins.ravel() * (1 + num_classes) + mask.ravel()
    counts = np.bincount(joint, minlength=BINS * (1 + num_classes)).astype(np.float64)
    return counts.reshape(BINS, 1 + num_classes)


def atlas() -> Estimator:
    """The mean training mask over :class:`MaskedVoxels`; scores are Dice, (B, n, K)."""
    return Estimator("atlas", _SETTINGS, _predict_atlas)


def intensity() -> Estimator:
    """The brightness of a voxel alone, over :class:`MaskedVoxels`; scores are Dice, (B, n, K)."""
    return Estimator("intensity", _SETTINGS, _predict_intensity)


def _predict_atlas(
    features: MaskedVoxels, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    del label
    num_classes = features.masked.num_classes
    sets, which = np.unique(train, axis=0, return_inverse=True)
    priors = [_mean_cells(features, np.flatnonzero(rows)) for rows in sets]
    counts = np.zeros((len(train), len(features), 3, num_classes))
    for subject in np.flatnonzero(~train.all(axis=0)):
        for mask in features.masks(int(subject)):
            for number, prior in enumerate(priors):
                shares = None
                for problem in np.flatnonzero((which.ravel() == number) & ~train[:, subject]):
                    shares = _on_voxels(prior, mask.shape) if shares is None else shares
                    found = _decide(shares, float(settings[int(problem)]["threshold"]))
                    counts[problem, subject] += overlap(found, mask, num_classes=num_classes)
    return _of_held_out(counts, train)


def _predict_intensity(
    features: MaskedVoxels, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    """A voxel's class follows from its bin, so the counts hold all that Dice asks for."""
    del label
    num_classes = features.masked.num_classes
    counts = np.zeros((len(train), len(features), 3, num_classes))
    for problem, (rows, setting) in enumerate(zip(train, settings, strict=True)):
        total = sum((features.counts(int(row)) for row in np.flatnonzero(rows)),
                    start=np.zeros((BINS, 1 + num_classes)))  # fmt: skip
        shares = (total / np.maximum(total.sum(axis=1, keepdims=True), 1.0))[:, 1:].T
        called = _decide(shares, float(setting["threshold"]))
        for subject in np.flatnonzero(~rows):
            mine = features.counts(int(subject))
            for number in range(num_classes):
                inside = mine[called == number + 1]
                both, predicted = inside[:, number + 1].sum(), inside.sum()
                counts[problem, subject, :, number] = both, predicted, mine[:, number + 1].sum()
    return _of_held_out(counts, train)


def _of_held_out(counts: Floats, train: NDArray[np.bool_]) -> Floats:
    """Dice; NaN for rows that are trained on."""
    scores = dice(counts)
    scores[train] = np.nan
    return scores


def _mean_cells(features: MaskedVoxels, rows: NDArray[np.int64]) -> Floats:
    total = np.zeros((features.masked.num_classes, CELLS, CELLS, CELLS))
    for row in rows:
        total += features.cells(int(row))
    return total / max(1, len(rows))


def _class_shares(mask: Classes, num_classes: int) -> NDArray[np.float32]:
    """Share of each class in each cell of a mask, (K, CELLS, CELLS, CELLS)."""
    to_d, to_h, to_w = (cell_shares(size, CELLS) for size in mask.shape)
    shares = []
    for number in range(1, num_classes + 1):
        inside = (mask == number).astype(np.float32)
        shares.append(np.einsum("ad,dhw,bh,cw->abc", to_d, inside, to_h, to_w, optimize=True))
    return np.stack(shares)


def _on_voxels(prior: Floats, shape: Sequence[int]) -> NDArray[np.float32]:
    """The prior interpolated linearly between centres of cells, (K, D, H, W)."""
    to_d, to_h, to_w = (_between_cells(size) for size in shape)
    voxels: NDArray[np.float32] = np.einsum(
        "kabc,da,hb,wc->kdhw", prior.astype(np.float32), to_d, to_h, to_w, optimize=True
    )
    return voxels


def _between_cells(length: int) -> NDArray[np.float32]:
    """(length, CELLS): weights of the two nearest centres, for each voxel's centre."""
    place = np.clip((np.arange(length) + 0.5) / length * CELLS - 0.5, 0, CELLS - 1)
    distance = np.abs(place[:, None] - np.arange(CELLS))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def _decide(shares: NDArray[np.floating], threshold: float) -> NDArray[np.uint8]:
    """Class of each place from shares (K, ...), 0 where their sum is below the threshold."""
    is_inside = shares.sum(axis=0) >= threshold
    return np.where(is_inside, shares.argmax(axis=0) + 1, 0).astype(np.uint8)
