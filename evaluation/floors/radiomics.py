"""Radiomics: first-order and shape features of a region, in mm, with the spacing respected.

Definitions follow the image biomarker standardisation initiative (Zwanenburg et al. 2020) but for
two: an axis is that of the ellipsoid with the region's second moments (a ball's is its diameter),
and the surface is Crofton's, counted along 13 directions (Lehmann and Legland 2012): within 2% for
a ball, where a mesh of its voxels is up to a fifth too large; up to 7% too small for an elongated
body and a sixth for large faces across an axis.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from evaluation.floors.intensity import floor_extractor
from evaluation.floors.regions import BODY_HU, Region, region_of
from shards.scan import Scan
from shards.sources.cohort import CohortRow

Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
NUM_BINS = 32  # of the entropy, between the region's own minimum and maximum
FIRST_ORDER = (
    "mean", "sd", "skewness", "kurtosis", "minimum", "maximum",
    *(f"percentile_{percent}" for percent in PERCENTILES),
    "mean_absolute_deviation", "entropy_bits", "energy_mm3", "root_mean_square",
)  # fmt: skip
SHAPE = (
    "volume_mm3", "surface_mm2", "sphericity", "surface_to_volume_per_mm",
    "extent_d_mm", "extent_h_mm", "extent_w_mm",
    "longest_axis_mm", "middle_axis_mm", "shortest_axis_mm", "elongation", "flatness",
)  # fmt: skip
NAMES = (*FIRST_ORDER, *SHAPE)


def radiomics_extractor(region: Region) -> Extractor:
    """The features ``NAMES`` of the foreground or of the cohort's mask, float64."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        return {"radiomics": radiomics(scan, region_of(scan, row, region=region))}

    return floor_extractor("radiomics", {"region": region, "body_hu": BODY_HU}, extract)


def radiomics(scan: Scan, inside: NDArray[np.bool_]) -> Floats:
    """The features ``NAMES``, (P,); all zero for an empty region.

    Args:
        scan: With voxels (D, H, W) and its spacing.
        inside: The region, (D, H, W).
    """
    if not inside.any():
        return np.zeros(len(NAMES))
    voxel_mm3 = float(np.prod(scan.spacing_mm))
    values = scan.voxels[inside].astype(np.float64)
    return np.concatenate(
        [first_order(values, voxel_mm3=voxel_mm3), shape(inside, spacing_mm=scan.spacing_mm)]
    )


def first_order(values: Floats, *, voxel_mm3: float) -> Floats:
    """Features ``FIRST_ORDER`` of a region's intensities, (n,) with n > 0."""
    mean, sd = values.mean(), values.std()
    z = (values - mean) / sd if sd > 0 else np.zeros_like(values)
    squared = z * z
    counts, _ = np.histogram(values, bins=NUM_BINS)
    share = counts[counts > 0] / len(values)
    return np.array(
        [
            mean, sd, (squared @ z) / len(z), (squared @ squared) / len(z) - 3.0 if sd > 0 else 0.0,
            values.min(), values.max(), *np.percentile(values, PERCENTILES),
            np.abs(values - mean).mean(), -(share * np.log2(share)).sum() + 0.0,
            (values @ values) * voxel_mm3, np.sqrt((values @ values) / len(values)),
        ]
    )  # fmt: skip


def shape(inside: NDArray[np.bool_], *, spacing_mm: Spacing) -> Floats:
    """Features ``SHAPE`` of a region that is not empty, (D, H, W)."""
    spacing = np.array(spacing_mm, dtype=np.float64)
    lines = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    region = inside[box]
    volume = np.count_nonzero(region) * float(spacing.prod())
    surface = surface_mm2(region, spacing_mm=spacing_mm)
    sphericity = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface
    axes = axes_mm(region, spacing_mm=spacing_mm)
    return np.array(
        [
            volume, surface, sphericity, surface / volume, *(np.array(region.shape) * spacing),
            *axes, axes[1] / axes[0], axes[2] / axes[0],
        ]
    )  # fmt: skip


def axes_mm(region: NDArray[np.bool_], *, spacing_mm: Spacing) -> Floats:
    """Full axes of the ellipsoid with the region's second moments, longest first, (3,).

    Moments come from sums along the axes, so nothing as large as coordinates is made.
    """
    count = np.count_nonzero(region)
    covariance = np.zeros((3, 3))
    offsets = []  # of the voxels along each axis from the centre, in mm
    for axis, step in enumerate(spacing_mm):
        others = tuple(other for other in range(3) if other != axis)
        share = region.sum(axis=others) / count
        place = np.arange(region.shape[axis]) * step
        offsets.append(place - share @ place)
        covariance[axis, axis] = share @ offsets[axis] ** 2 + step**2 / 12.0  # a voxel's own
    for first, second in ((0, 1), (0, 2), (1, 2)):
        share = region.sum(axis=3 - first - second) / count
        cross = offsets[first] @ share @ offsets[second]
        covariance[first, second] = covariance[second, first] = cross
    return 2.0 * np.sqrt(5.0 * np.linalg.eigvalsh(covariance)[::-1])


def surface_mm2(region: NDArray[np.bool_], *, spacing_mm: Spacing) -> float:
    """Area by Crofton's formula: twice the mean, over directions, of crossings of parallel lines
    times the area of the plane each line stands for."""
    padded = np.pad(region, 1)
    total = 0.0
    for step, length, weight in _directions(spacing_mm):
        here, there = zip(*(_shifted(by) for by in step), strict=True)
        crossings = np.count_nonzero(padded[here] != padded[there])
        total += weight * crossings / length
    return 2.0 * total * float(np.prod(spacing_mm))


def _shifted(by: int) -> tuple[slice, slice]:
    """A line of voxels, and the same line ``by`` voxels on; ``by`` is -1, 0 or 1."""
    ahead, behind = slice(1, None), slice(None, -1)
    if by == 0:
        return slice(None), slice(None)
    return (behind, ahead) if by > 0 else (ahead, behind)


@functools.lru_cache
def _directions(spacing_mm: Spacing) -> tuple[tuple[tuple[int, int, int], float, float], ...]:
    """Steps to 13 neighbours, their lengths in mm, and the share of the sphere nearest to each."""
    from scipy.spatial import SphericalVoronoi

    ends = (-1, 0, 1)
    steps = [(d, h, w) for d in ends for h in ends for w in ends if (d, h, w) > (0, 0, 0)]
    moves = np.array(steps) * np.array(spacing_mm)
    lengths = np.linalg.norm(moves, axis=1)
    unit = moves / lengths[:, None]
    areas = SphericalVoronoi(np.concatenate([unit, -unit])).calculate_areas()
    shares = (areas[: len(steps)] + areas[len(steps) :]) / (4 * np.pi)
    return tuple(
        (step, float(length), float(share))
        for step, length, share in zip(steps, lengths, shares, strict=True)
    )
