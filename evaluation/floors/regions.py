"""The part of a scan a floor measures, the foreground or the cohort's mask, and its volume."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor, FeatureError, read_mask
from evaluation.floors.intensity import floor_extractor
from shards.scan import Scan
from shards.sources.cohort import CohortRow

BODY_HU = -500.0

Region = Literal["foreground", "mask"]


def foreground(scan: Scan) -> NDArray[np.bool_]:
    """What is above air: -500 HU in CT, the scan's own minimum elsewhere, (D, H, W)."""
    air = BODY_HU if scan.modality == "CT" else scan.voxels.min()
    above: NDArray[np.bool_] = scan.voxels > air
    return above


def masked(scan: Scan, row: CohortRow) -> NDArray[np.bool_]:
    """What is inside the cohort's mask, (D, H, W).

    Raises:
        FeatureError: The row has no mask, an empty one, or one of another shape.
    """
    if row.mask is None:
        raise FeatureError(f"{row.scan}: a floor asks for a mask, its cohort names none")
    inside = read_mask(row)
    if inside.shape != scan.voxels.shape or not inside.any():
        raise FeatureError(
            f"{row.mask}: a mask of {inside.shape} voxels, {np.count_nonzero(inside)} of them "
            f"set, does not fit its scan of {scan.voxels.shape}"
        )
    return inside


def region_of(scan: Scan, row: CohortRow, *, region: Region) -> NDArray[np.bool_]:
    """The foreground, or the mask; errors as in :func:`masked`."""
    return foreground(scan) if region == "foreground" else masked(scan, row)


def foreground_extractor() -> Extractor:
    """Volume of the foreground in mm3."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        count = np.count_nonzero(foreground(scan))
        return {"volume": np.array([count * np.prod(scan.spacing_mm)], dtype=np.float64)}

    return floor_extractor("foreground", {"body_hu": BODY_HU}, extract)


def mask_extractor() -> Extractor:
    """Volume of the cohort's mask in mm3, and mean and maximum of the intensities inside it."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        inside = masked(scan, row)
        values = scan.voxels[inside].astype(np.float64)
        volume = np.count_nonzero(inside) * np.prod(scan.spacing_mm)
        return {
            "volume": np.array([volume]),
            "intensity": np.array([values.mean(), values.max()]),
        }

    return floor_extractor("mask", {}, extract)
