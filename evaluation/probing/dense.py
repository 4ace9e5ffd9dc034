"""Segmentation's features and scores: scans with masks, patch tokens on grids, Dice by subject.

A segmentation has no label in the table: what is learnt and scored are masks, which are read when
they are needed, one at a time. An estimator of a segmentation takes :class:`MaskedScans` (a floor
that looks at voxels) or :class:`DenseFeatures` (a probe on a frozen backbone's tokens).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.embedder import Dense, Spacing
from evaluation.extraction.dense import load_dense
from evaluation.probing.estimator import Floats, Rows
from evaluation.tasks.task import Task
from shards.scan import ScanError, read_scan
from shards.sources.cohort import CohortRow

Classes = NDArray[np.uint8]


class MaskError(ValueError):
    """A mask that cannot be read or does not fit its scan."""


class Mask(NamedTuple):
    """What a voxel is.

    Attributes:
        classes: (D, H, W): 0 is background, k the k-th class of the task.
        spacing_mm: (d, h, w).
    """

    classes: Classes
    spacing_mm: Spacing


@dataclass(frozen=True)
class MaskedScans:
    """Scans and masks of n subjects, by path.

    Attributes:
        scans: Rows of the cohort of each subject, the same grid as their masks.
        values: Value in the masks of each class, by name; other values are background.
        mask: Which of the cohort's masks; None is the one it calls ``mask``.
    """

    scans: tuple[tuple[CohortRow, ...], ...]
    values: Mapping[str, int]
    mask: str | None

    @classmethod
    def of(cls, task: Task) -> "MaskedScans":
        """Those of a segmentation task, in the order of its subjects."""
        label = task.card.label
        return cls(task.scans, label.mask_values, label.mask)

    def __len__(self) -> int:
        return len(self.scans)

    def take(self, rows: Rows) -> "MaskedScans":
        """Those of some subjects, so that the others cannot be read."""
        return replace(self, scans=tuple(self.scans[row] for row in rows))

    @property
    def num_classes(self) -> int:
        """Without the background."""
        return len(self.values)

    def read_mask(self, subject: int, scan: int) -> Mask:
        """The mask of a subject's scan.

        Raises:
            MaskError: There is none, or it cannot be read; the message names it.
        """
        row = self.scans[subject][scan]
        path = row.mask if self.mask is None else row.masks.get(self.mask)
        if path is None:
            raise MaskError(
                f"{row.scan}: no {self.mask or 'mask'} beside it; name it in the cohort, or take "
                "its row out"
            )
        try:
            found = read_scan(path, modality="OT")
        except ScanError as error:
            raise MaskError(f"{path}: {error}; mend it or take its row out") from None
        classes = np.zeros(found.voxels.shape, dtype=np.uint8)
        for number, value in enumerate(self.values.values(), start=1):
            classes[found.voxels == value] = number
        return Mask(classes, found.spacing_mm)


@dataclass(frozen=True)
class DenseFeatures:
    """Patch tokens of a backbone beside the masks they are to tell.

    Attributes:
        masked: Whose masks.
        load: Tokens of a subject's scan, ``load(subject, scan)``; called when they are needed, so
            one scan's tokens are in memory at a time.
    """

    masked: MaskedScans
    load: Callable[[int, int], Dense]

    @classmethod
    def of(cls, task: Task, files: Sequence[Sequence[Path]]) -> "DenseFeatures":
        """Those of a segmentation task from what ``dense_features`` wrote of its scans."""
        return cls(MaskedScans.of(task), lambda subject, scan: load_dense(files[subject][scan]))

    def __len__(self) -> int:
        return len(self.masked)

    def take(self, rows: Rows) -> "DenseFeatures":
        """Those of some subjects, so that the others cannot be read."""
        return DenseFeatures(
            self.masked.take(rows), lambda subject, scan: self.load(int(rows[subject]), scan)
        )


def overlap(predicted: NDArray[np.integer], mask: Classes, *, num_classes: int) -> Floats:
    """Voxels of each class in both, in the prediction and in the mask, (3, K).

    Counts of several scans of a subject add up.

    Args:
        predicted: Classes as in a mask, of the same shape.
        mask: See :class:`Mask`.
        num_classes: K, without the background.
    """
    assert predicted.shape == mask.shape
    parts = (predicted[predicted == mask], predicted, mask)
    counts = [np.bincount(part.ravel(), minlength=num_classes + 1) for part in parts]
    return np.stack(counts)[:, 1:].astype(np.float64)


def dice(counts: Floats) -> Floats:
    """Dice of each class from :func:`overlap`: (..., 3, K) -> (..., K).

    A class that is in neither is NaN: there is nothing to find and nothing was found, so the
    subject has no part in the class's mean. One that is found where there is none has 0.
    """
    both, predicted, true = np.moveaxis(counts, -2, 0)
    total = predicted + true
    found: Floats = np.divide(2 * both, total, out=np.full(total.shape, np.nan), where=total > 0)
    return found
