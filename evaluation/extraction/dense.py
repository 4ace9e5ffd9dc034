"""Patch tokens of whole scans for segmentation: a file each, so that one is in memory at a time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.backbones.embedder import Dense, Embedder, Spacing
from evaluation.extraction.cache import CacheFile, FeatureError
from evaluation.extraction.features import content_of, made_by, naming, read_row, require_finite
from evaluation.extraction.progress import progress
from evaluation.extraction.sharing import ALONE, Share, shared
from evaluation.storing.store import StoreError, read_arrays
from foundation.tasks.task import Task
from recipes.load import digest
from shards.scan import resample
from shards.sources.cohort import CohortRow

_VERSION = 1  # of the files below: raising it makes their caches stale
_GRID = ("patch_voxels", "offset_voxels", "shape", "spacing_mm")


def dense_features(
    task: Task, embedder: Embedder, *, name: str, folder: Path, share: Share = ALONE
) -> list[list[Path]] | None:
    """A file of tokens for each scan, from the cache where it has them.

    Args:
        task: Whose scans.
        embedder: What embeds.
        name: Of the backbone in the table.
        folder: Of the cache.
        share: With several ranks each fills its part, and every rank calls it; only after
            ``leave_to_first`` are all files there.

    Returns:
        For :func:`load_dense`, by subject and scan as ``task.scans``; None where the backbone has
        no tokens on a grid.

    Raises:
        FeatureError: A scan cannot be read.
    """
    spacing = task.card.spacing_mm or embedder.spacing_mm
    maker = made_by(digest({"dense": embedder.digest, "version": _VERSION}), spacing)

    def file_of(row: CohortRow) -> CacheFile:
        return CacheFile(folder, f"{name}_dense", maker, content_of([row]))

    def unfilled() -> Sequence[CohortRow]:
        scans = (row for scans in task.scans for row in scans)
        return [row for row in scans if not file_of(row).is_there()]

    rows = shared(share, unfilled)
    title = f"tokens of {task.card.name} by {name}"
    shows = rows and share.is_first
    for row in progress(rows, title=title, unit="scan", total=len(rows)) if shows else rows:
        if not _write(row, embedder, spacing, file_of(row)):
            return None
    return [[file_of(row).path for row in scans] for scans in task.scans]


def load_dense(path: Path) -> Dense:
    """Read what :func:`dense_features` wrote.

    Raises:
        FeatureError: The file is missing or damaged.
    """
    try:
        arrays = read_arrays(path)
    except StoreError as error:
        raise FeatureError(str(error)) from None
    patch, offset, shape, spacing = (tuple(arrays[key].tolist()) for key in _GRID)
    return Dense(
        arrays["tokens"],
        patch_voxels=patch,
        offset_voxels=offset,
        shape=shape,
        spacing_mm=spacing,
    )


def _write(row: CohortRow, embedder: Embedder, spacing: Spacing | None, file: CacheFile) -> bool:
    scan = read_row(row)
    with naming(row):
        dense = embedder.dense(resample(scan, spacing) if spacing else scan)
    if dense is None:
        return False
    require_finite({"tokens": dense.tokens}, file.name, row)
    grid = {key: np.asarray(getattr(dense, key)) for key in _GRID}
    file.write({"tokens": dense.tokens.astype(np.float32), **grid})
    return True
