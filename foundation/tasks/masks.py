"""Masks of a segmentation task: read when they are needed, one at a time, and compared by Dice.

A segmentation has no label in the table: what is learnt and scored are masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.tasks.task import Task
from shards.scan import ScanError, read_scan
from shards.sources.cohort import CohortRow

Spacing = tuple[float, float, float]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
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
