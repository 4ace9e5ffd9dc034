"""Pictures for the report: a slice of a few scans of each task, and of MAE reconstructions.

Only scans that are trained on are shown, never those of a validation or test split.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import FeatureError, read_row
from evaluation.floors.intensity import windowed
from evaluation.storing.store import read_arrays
from foundation.tasks.task import Task
from shards.scan import ScanError, read_scan
from shards.sources.cohort import CohortRow

Picture = NDArray[np.float32]

_MAX_CLASSES = 12
_MASKS_READ = 8  # of a segmentation, to find a slice that shows a class


class Example(NamedTuple):
    """One picture: which subject of a task stands for which label."""

    label: str
    row: int


def cohort_slices(task: Task) -> dict[str, Picture]:
    """Slices by ``TASK__LABEL__0``, each (H, W) in [0, 1].

    A label is a class, ``low`` and ``high`` of a number, ``early`` and ``late`` of an event. Of a
    segmentation each slice is followed by its mask, ``TASK__LABEL_mask__0``.
    """
    name = task.card.name
    if task.card.kind == "segmentation":
        return {f"{name}__{_word(label)}__0": image for label, image in _segmented(task)}
    return {
        f"{name}__{_word(example.label)}__0": _middle_slice(task.scans[example.row][0])
        for example in _examples(task)
    }


def reconstructions(run: Path) -> dict[str, Picture]:
    """What a pretraining run left in its ``pictures/reconstructions.npz``; empty without."""
    path = run / "pictures" / "reconstructions.npz"
    return read_arrays(path) if path.is_file() else {}


def _examples(task: Task) -> Iterator[Example]:
    """The first training subject of each class, or the extremes of a number."""
    rows, kind = task.rows("train", "cv"), task.card.kind
    label = task.label[rows]
    if kind == "regression":
        yield Example("low", int(rows[label.argmin()]))
        yield Example("high", int(rows[label.argmax()]))
        return
    if kind == "survival":
        days, event = label.T
        # Whoever left the study early is no picture of an early event.
        yield Example("early", int(rows[np.where(event == 1, days, np.inf).argmin()]))
        yield Example("late", int(rows[days.argmax()]))
        return
    for place, name in enumerate(task.classes[:_MAX_CLASSES]):
        has = label[:, place] == 1 if kind == "multilabel" else label == place
        if has.any():
            yield Example(name, int(rows[has.argmax()]))


def _segmented(task: Task) -> Iterator[tuple[str, Picture]]:
    """For each class the slice with most of it among a few training subjects, and its mask."""
    rows = [task.scans[row][0] for row in task.rows("train", "cv")[:_MASKS_READ]]
    masks = [_read_mask(row) for row in rows]
    values = task.card.label.mask_values
    for name, value in list(values.items())[:_MAX_CLASSES]:
        areas = [(mask == value).sum(axis=(1, 2)) for mask in masks]
        best = int(np.argmax([area.max() for area in areas]))
        if not areas[best].any():
            continue
        index = int(areas[best].argmax())
        volume = (windowed(read_row(rows[best])) + 1.0) / 2.0
        if volume.shape == masks[best].shape:
            yield name, volume[index].astype(np.float32)
            yield f"{name}_mask", (masks[best][index] == value).astype(np.float32)


def _middle_slice(row: CohortRow) -> Picture:
    """Across the body's axis, where the mask is largest if there is one, else in the middle."""
    volume = (windowed(read_row(row)) + 1.0) / 2.0
    index = volume.shape[0] // 2
    if row.mask is not None:
        area = (_read_mask(row) > 0).sum(axis=(1, 2))
        if area.any() and len(area) == len(volume):
            index = int(area.argmax())
    picture: Picture = volume[index].astype(np.float32)
    return picture


def _read_mask(row: CohortRow) -> NDArray[Any]:
    """Values of a row's mask, (D, H, W)."""
    assert row.mask is not None
    try:
        return read_scan(row.mask, modality="OT").voxels
    except ScanError as error:
        raise FeatureError(
            f"{row.mask}: {error}; mend the mask or take its row out of the cohort"
        ) from None


def _word(label: str) -> str:
    """A label as a part of a name: ``__`` parts a picture's name from its task's."""
    return re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9.+-]", "_", label)).strip("_") or "label"
