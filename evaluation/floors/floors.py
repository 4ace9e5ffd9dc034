"""Floors: what a backbone must beat, computed on the same subjects by the same protocols.

Whatever is fitted (imputation, PCA) is fitted on the training rows it is handed, never outside
them. The cheap extractors here run in the same pass over the scans as the backbones.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor, FeatureError, read_mask
from evaluation.probing.linear import sigmoid
from evaluation.probing.protocols import Estimator, Floats, Rows, Setting
from evaluation.tasks.task import Task, VoxelFloor
from foundation.preprocessing import Preprocessing, normalise
from recipes.load import digest
from shards.measure.intensity import intensity_statistics
from shards.scan import MODALITIES, Scan
from shards.sources.cohort import CohortRow

NUM_BINS = 32
BODY_HU = -500.0

_VERSION = 1  # of the extractors below: raising it makes their caches stale
_SVM_CS = (0.1, 1.0, 10.0, 100.0)
_SVM_GAMMAS = (0.1, 1.0)  # times 1 / (number of features x variance), scikit-learn's "scale"


def histogram_extractor() -> Extractor:
    """Share of voxels in each of ``NUM_BINS`` bins of the modality's window."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        counts, _ = np.histogram(windowed(scan), bins=NUM_BINS, range=(-1.0, 1.0))
        return {"histogram": (counts / scan.voxels.size).astype(np.float32)}

    return _extractor("histogram", {"bins": NUM_BINS}, extract)


def foreground_extractor() -> Extractor:
    """Volume in mm3 above air: -500 HU in CT, the scan's own minimum elsewhere."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        air = BODY_HU if scan.modality == "CT" else scan.voxels.min()
        count = np.count_nonzero(scan.voxels > air)
        return {"volume": np.array([count * np.prod(scan.spacing_mm)], dtype=np.float64)}

    return _extractor("foreground", {"body_hu": BODY_HU}, extract)


def mask_extractor() -> Extractor:
    """Volume of the cohort's mask in mm3, and mean and maximum of the intensities inside it."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        if row.mask is None:
            raise FeatureError(f"{row.scan}: a floor asks for a mask, its cohort names none")
        inside = read_mask(row)
        if inside.shape != scan.voxels.shape or not inside.any():
            raise FeatureError(
                f"{row.mask}: a mask of {inside.shape} voxels, {np.count_nonzero(inside)} of them "
                f"set, does not fit its scan of {scan.voxels.shape}"
            )
        values = scan.voxels[inside].astype(np.float64)
        volume = np.count_nonzero(inside) * np.prod(scan.spacing_mm)
        return {
            "volume": np.array([volume]),
            "intensity": np.array([values.mean(), values.max()]),
        }

    return _extractor("mask", {}, extract)


def voxel_extractor(config: VoxelFloor) -> Extractor:
    """The windowed scan on a common small grid, flattened: see ``VoxelFloor``."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        return {"voxels": _on_grid(windowed(scan), grid=config.grid, pool=config.pool).ravel()}

    settings = {"grid": config.grid, "pool": config.pool}
    return _extractor("voxels", settings, extract, spacing_mm=config.spacing_mm)


def pca_features(voxels: NDArray[np.float32], *, num_components: int) -> Callable[[Rows], Floats]:
    """Principal components of raw voxels, fitted on the training rows.

    The last fit is kept: several protocols in a row ask for the same rows.
    """

    @functools.lru_cache(maxsize=1)
    def fitted(train: bytes) -> Floats:
        return fit_and_transform(np.frombuffer(train, dtype=np.int64))

    def fit_and_transform(train: Rows) -> Floats:
        from sklearn.decomposition import PCA

        inside = voxels[train]
        pca = PCA(min(num_components, len(train) - 1), svd_solver="randomized", random_state=0)
        pca.fit(inside)
        values: Floats = pca.transform(voxels).astype(np.float64)
        return values

    return lambda train: fitted(train.astype(np.int64).tobytes())


def clinical_features(task: Task, columns: Sequence[str]) -> Callable[[Rows], Floats]:
    """Columns of the cohort: numbers with a missing flag, text one-hot.

    A missing number becomes the median of the training rows; categories that the training rows do
    not have are all zero.
    """
    table = [[scans[0].values[column] for scans in task.scans] for column in columns]

    def fit_and_transform(train: Rows) -> Floats:
        parts = [_encoded(np.array(cells, dtype=object), train) for cells in table]
        return np.concatenate(parts, axis=1)

    return fit_and_transform


def beside(first: Callable[[Rows], Floats], second: NDArray[Any]) -> Callable[[Rows], Floats]:
    """Fitted features with further columns that need no fitting."""
    return lambda train: np.concatenate([first(train), second], axis=1)


def constant() -> Estimator:
    """The majority class or the mean: the same score for everyone."""

    def predict(
        features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
    ) -> Floats:
        del features, settings
        mean = (train @ label) / train.sum(axis=1)
        return np.repeat(mean[:, None], len(label), axis=1)

    return Estimator("constant", ({},), predict)


def rbf_svm() -> Estimator:
    """A support vector machine with a radial kernel; its score is the sigmoid of the margin.

    The margin ranks; it is no calibrated probability.
    """
    settings = tuple({"C": c, "gamma": gamma} for c in _SVM_CS for gamma in _SVM_GAMMAS)
    return Estimator("svm", settings, _predict_svm)


def _predict_svm(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    from sklearn.svm import SVC

    scores = np.empty(train.shape)
    for number, (rows, setting) in enumerate(zip(train, settings, strict=True)):
        inside = features[rows]
        # One scale for all components: dividing each by its own would lift the noise of the last.
        centre, spread = inside.mean(axis=0), max(float(inside.std()), 1e-12)
        model = SVC(C=setting["C"], gamma=setting["gamma"] / features.shape[1])
        model.fit((inside - centre) / spread, label[rows])
        scores[number] = sigmoid(model.decision_function((features - centre) / spread))
    return scores


def _encoded(cells: NDArray[np.object_], train: Rows) -> Floats:
    missing = np.array([cell is None for cell in cells])
    if any(isinstance(cell, str) for cell in cells):
        levels = sorted({str(cells[row]) for row in train if not missing[row]})
        hot = [[float(cell == level) for level in levels] for cell in cells]
        return np.array(hot).reshape(len(cells), len(levels))
    values = np.array([np.nan if cell is None else float(cell) for cell in cells])
    known = values[train][~missing[train]]
    filled = np.where(missing, np.median(known) if len(known) else 0.0, values)
    return np.stack([filled, missing.astype(np.float64)], axis=1)


def windowed(scan: Scan) -> NDArray[np.float32]:
    """The scan in [-1, 1], by the same windows the backbones use by default, (D, H, W)."""
    values = normalise(
        torch.from_numpy(np.ascontiguousarray(scan.voxels, dtype=np.float32))[None, None],
        slope=torch.ones(1),
        intercept=torch.zeros(1),
        modality=torch.tensor([MODALITIES.index(scan.modality)]),
        statistics=torch.tensor([tuple(intensity_statistics(scan.voxels))]),
        preprocessing=Preprocessing(crop_shape=(1, 1, 1)),
    )
    windowed: NDArray[np.float32] = values[0, 0].numpy()
    return windowed


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


def _extractor(
    name: str,
    settings: Mapping[str, Any],
    extract: Callable[[Scan, CohortRow], dict[str, NDArray[Any]]],
    *,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Extractor:
    made_by = digest({"name": name, "version": _VERSION, **settings})
    return Extractor(name, made_by, spacing_mm, extract)
