"""What is known of a volume's intensities: statistics and the box that holds the body.

The shard builder and the embedding of a raw scan call the same functions, so both see the same
numbers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shards.measure.percentile import counts_of, percentiles, percentiles_of_counts, pieces

PERCENTILES = (0.5, 50, 99.5)
BODY_HU = -500.0
FOREGROUND_RANGE = 0.1  # of p00_5..p99_5, for what has no fixed units
FOREGROUND_SHARE = 0.01  # of the fullest slice: fewer foreground voxels than this are noise


class IntensityStatistics(NamedTuple):
    """In physical units. ``minimum`` is the volume's; all others are of the voxels above it."""

    minimum: float
    maximum: float
    mean: float
    std: float
    p00_5: float
    p50: float
    p99_5: float


def intensity_statistics(voxels: np.ndarray) -> IntensityStatistics:
    """Statistics over the finite voxels above the volume's minimum (all of them if it is flat).

    The minimum is the air around the subject in most scans; leaving it out keeps the percentiles
    from depending on how much of it the field of view holds. Percentiles are exact (linear). No
    copy of the volume is made where all of it is finite.

    Raises:
        ValueError: No voxel is finite.
    """
    if voxels.dtype == np.int16 and voxels.size:
        return _of_counts(counts_of(voxels))
    if voxels.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces(voxels)):
        voxels = voxels[np.isfinite(voxels)]
    if voxels.size == 0:
        raise ValueError("intensity_statistics: no finite voxel")
    minimum, maximum = voxels.min(), voxels.max()
    lowest = sum(int(np.count_nonzero(piece == minimum)) for piece in pieces(voxels))
    skip = lowest if lowest < voxels.size else 0
    mean, std = _moments(voxels, above=minimum if skip else None)
    low, middle, high = percentiles(voxels, PERCENTILES, skip=skip)
    return IntensityStatistics(float(minimum), float(maximum), mean, std, low, middle, high)


def _of_counts(counts: np.ndarray) -> IntensityStatistics:
    """Of int16 voxels; the sums are of whole numbers."""
    values = np.flatnonzero(counts)
    minimum = int(values[0])
    skip = int(counts[minimum]) if len(values) > 1 else 0
    chosen = values[1:] if skip else values
    times = counts[chosen]
    size, levels = int(times.sum()), chosen - 32768
    mean = int((times * levels).sum()) / size
    std = float(np.sqrt((times * (levels - mean) ** 2).sum() / size))
    low, middle, high = percentiles_of_counts(counts, PERCENTILES, skip=skip)
    lowest, highest = float(minimum - 32768), float(levels[-1])
    return IntensityStatistics(lowest, highest, mean, std, low, middle, high)


def _moments(voxels: np.ndarray, *, above: float | None) -> tuple[float, float]:
    """Mean and standard deviation in float64, piece by piece."""

    def chosen() -> Iterator[np.ndarray]:
        for piece in pieces(voxels):
            yield (piece if above is None else piece[piece > above]).astype(np.float64)

    sums = [(len(values), values.sum()) for values in chosen()]
    size = sum(length for length, _ in sums)
    mean = float(sum(total for _, total in sums)) / size
    squares = float(sum(((values - mean) ** 2).sum() for values in chosen()))
    return mean, float(np.sqrt(squares / size))


def foreground_box(
    voxels: np.ndarray, *, modality: str, statistics: IntensityStatistics
) -> list[list[int]]:
    """[[start, stop) per axis] around what is not air; the whole volume if nothing stands out."""
    if modality == "CT":
        threshold = BODY_HU
    else:
        spread = statistics.p99_5 - statistics.p00_5
        threshold = statistics.p00_5 + FOREGROUND_RANGE * spread
    profiles = _profiles(voxels, threshold)
    box = []
    for profile in profiles:
        places = np.flatnonzero(profile > FOREGROUND_SHARE * profile.max())
        if len(places):
            box.append([int(places[0]), int(places[-1]) + 1])
        else:
            box.append([0, len(profile)])
    return box


def _profiles(voxels: np.ndarray, threshold: float) -> list[np.ndarray]:
    """How many voxels of each slice along each axis are above the threshold."""
    slices = np.zeros(voxels.shape[0], np.int64)
    plane = np.zeros(voxels.shape[1:], np.int64)
    for place, values in enumerate(voxels):
        above = values > threshold
        slices[place] = np.count_nonzero(above)
        plane += above
    return [slices, plane.sum(axis=1), plane.sum(axis=0)]
