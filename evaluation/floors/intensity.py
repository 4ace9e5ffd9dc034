"""Intensities as every floor sees them: the modality's window, and the histogram floor."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from foundation.preprocessing import Preprocessing, normalise
from recipes.load import digest
from shards.measure.intensity import intensity_statistics
from shards.scan import MODALITIES, Scan
from shards.sources.cohort import CohortRow

NUM_BINS = 32

_VERSION = 1  # of the floors' extractors: raising it makes all of their caches stale


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


def histogram_extractor() -> Extractor:
    """Share of voxels in each of ``NUM_BINS`` bins of the modality's window."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        counts, _ = np.histogram(windowed(scan), bins=NUM_BINS, range=(-1.0, 1.0))
        return {"histogram": (counts / scan.voxels.size).astype(np.float32)}

    return floor_extractor("histogram", {"bins": NUM_BINS}, extract)


def floor_extractor(
    name: str,
    settings: Mapping[str, Any],
    extract: Callable[[Scan, CohortRow], dict[str, NDArray[Any]]],
    *,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Extractor:
    """An extractor of a floor, whose cache is stale when its settings or the version change."""
    made_by = digest({"name": name, "version": _VERSION, **settings})
    return Extractor(name, made_by, spacing_mm, extract)
