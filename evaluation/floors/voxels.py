"""Raw voxels: the windowed scan on a common small grid, and its principal components.

With a ``VoxelFloor`` the grid is physical: scans are resampled, then padded or cut about their
centres. With ``auto`` nothing need be known of the cohort: each scan's whole field of view is
averaged onto ``AUTO_CELLS`` cells along each axis, so what the grid misses is the scan's size,
which other floors hold.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from evaluation.floors.intensity import floor_extractor, windowed
from evaluation.probing.estimator import Fitted, Floats
from foundation.tasks.card import VoxelFloor
from shards.scan import Scan
from shards.sources.cohort import CohortRow

AUTO_CELLS = 24
AUTO_COMPONENTS = 64

_ROWS_AT_ONCE = 256


def voxel_extractor(config: VoxelFloor | Literal["auto"]) -> Extractor:
    """``voxels``, the flattened grid of a scan in float32."""
    if config == "auto":
        return floor_extractor("voxels", {"auto": AUTO_CELLS}, _extract_cells)
    grid, pool = config.grid, config.pool

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        return {"voxels": _on_grid(windowed(scan), grid=grid, pool=pool).ravel()}

    settings = {"grid": grid, "pool": pool}
    return floor_extractor("voxels", settings, extract, spacing_mm=config.spacing_mm)


def num_components(config: VoxelFloor | Literal["auto"]) -> int:
    """How many principal components are kept, where there are as many."""
    return AUTO_COMPONENTS if config == "auto" else config.pca


def pca_features(values: NDArray[Any], *, num_components: int) -> Fitted:
    """Principal components, fitted on the training rows it is handed.

    Args:
        values: (n, D).
        num_components: At most; fewer where the training rows span fewer.
    """
    return Fitted(values, _Remembered(lambda rows: fit_pca(rows, num_components=num_components)))


def fit_pca(rows: NDArray[Any], *, num_components: int) -> Callable[[NDArray[Any]], Floats]:
    """An exact thin SVD of the centred rows (n, D), by whichever Gram matrix is the smaller.

    Returns:
        What turns (m, D) into (m, K): centred on the mean of ``rows``, components by falling
        variance, the largest entry of each axis positive.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    axes = _leading_axes(centred, min(num_components, len(rows) - 1))
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes *= np.where(largest < 0, -1.0, 1.0)

    def transform(others: NDArray[Any]) -> Floats:
        parts = range(0, len(others), _ROWS_AT_ONCE)
        return np.concatenate([(others[i : i + _ROWS_AT_ONCE] - mean) @ axes for i in parts])

    return transform


def _leading_axes(centred: Floats, count: int) -> Floats:
    """(D, K) with K <= count: right singular vectors of non-zero singular values."""
    from scipy.linalg import eigh

    is_wide = centred.shape[1] > centred.shape[0]
    gram = centred @ centred.T if is_wide else centred.T @ centred
    size = len(gram)
    count = min(count, size)
    if count < 1:
        return np.zeros((centred.shape[1], 0))
    power, vectors = eigh(gram, subset_by_index=(size - count, size - 1))
    power, vectors = power[::-1], vectors[:, ::-1]
    kept = power > max(power[0], 0.0) * size * np.finfo(np.float64).eps
    if not is_wide:
        return np.ascontiguousarray(vectors[:, kept])
    axes: Floats = centred.T @ (vectors[:, kept] / np.sqrt(power[kept]))
    return axes


class _Remembered:
    """A fit that keeps its last answer: several protocols in a row ask for the same rows."""

    def __init__(self, fit: Callable[[NDArray[Any]], Callable[[NDArray[Any]], Floats]]) -> None:
        self._fit = fit
        self._last: tuple[NDArray[Any], Callable[[NDArray[Any]], Floats]] | None = None

    def __call__(self, rows: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
        if self._last is None or not np.array_equal(self._last[0], rows):
            self._last = (rows.copy(), self._fit(rows))
        return self._last[1]


def _extract_cells(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
    del row
    return {"voxels": _cells(windowed(scan), count=AUTO_CELLS).ravel()}


def _cells(volume: NDArray[np.float32], *, count: int) -> NDArray[np.float32]:
    """Means over ``count`` equal parts of each axis; a voxel on a border is shared, (c, c, c)."""
    for _ in range(3):  # the first axis each time; it goes to the end
        flat = volume.reshape(len(volume), -1)
        cells = (cell_shares(len(volume), count) @ flat).reshape(count, *volume.shape[1:])
        volume = np.ascontiguousarray(np.moveaxis(cells, 0, -1))
    return volume


def cell_shares(length: int, count: int) -> NDArray[np.float32]:
    """(count, length): the weight of each voxel in each cell's mean; rows add up to 1."""
    edges = np.arange(length + 1) / length
    starts = np.arange(count)[:, None] / count
    inside = np.minimum(edges[1:], starts + 1 / count) - np.maximum(edges[:-1], starts)
    return (np.clip(inside, 0.0, None) * count).astype(np.float32)


def _on_grid(
    volume: NDArray[np.float32], *, grid: tuple[int, int, int], pool: int
) -> NDArray[np.float32]:
    """Pad with air or cut about the centre to ``grid`` voxels, then mean over ``pool`` cubes."""
    for axis, size in enumerate(grid):
        extra = size - volume.shape[axis]
        if extra < 0:
            start = -extra // 2
            volume = np.take(volume, range(start, start + size), axis=axis)
        pad = [(0, 0)] * 3
        pad[axis] = (max(extra, 0) // 2, max(extra, 0) - max(extra, 0) // 2)
        volume = np.pad(volume, pad, constant_values=-1.0)
    d, h, w = (size // pool for size in grid)
    cubes = volume.reshape(d, pool, h, pool, w, pool)
    pooled: NDArray[np.float32] = cubes.mean(axis=(1, 3, 5), dtype=np.float32)
    return pooled
