"""Pictures for the report: a slice of a few scans of each task, and of MAE reconstructions.

Only scans that are trained on are shown, never those of a validation or test split.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import read_mask, read_row
from evaluation.floors.floors import windowed
from evaluation.storing.store import read_arrays
from evaluation.tasks.task import Task
from shards.sources.cohort import CohortRow

_PER_LABEL = 1


def cohort_slices(task: Task) -> dict[str, NDArray[np.float32]]:
    """Slices by ``TASK__LABEL__i``, each (H, W) in [0, 1]; labels of a regression are low, high."""
    return {
        f"{task.card.name}__{label}__{number}": _middle_slice(task.scans[row][0])
        for label, rows in _examples(task)
        for number, row in enumerate(rows)
    }


def reconstructions(run: Path) -> dict[str, NDArray[np.float32]]:
    """What a pretraining run left in its ``pictures/reconstructions.npz``; empty without."""
    path = run / "pictures" / "reconstructions.npz"
    return read_arrays(path) if path.is_file() else {}


def _examples(task: Task) -> Iterator[tuple[str, list[int]]]:
    rows = task.rows("train", "cv")
    if task.card.kind == "binary":
        for level in (0, 1):
            yield str(level), [int(row) for row in rows[task.label[rows] == level][:_PER_LABEL]]
        return
    ordered = rows[np.argsort(task.label[rows], kind="stable")]
    yield "low", [int(row) for row in ordered[:_PER_LABEL]]
    yield "high", [int(row) for row in ordered[-_PER_LABEL:]]


def _middle_slice(row: CohortRow) -> NDArray[np.float32]:
    """Across the body's axis, where the mask is largest if there is one, else in the middle."""
    volume = (windowed(read_row(row)) + 1.0) / 2.0
    index = volume.shape[0] // 2
    if row.mask is not None:
        area = read_mask(row).sum(axis=(1, 2))
        if area.any() and len(area) == len(volume):
            index = int(area.argmax())
    picture: NDArray[np.float32] = volume[index].astype(np.float32)
    return picture
