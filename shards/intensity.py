"""What is known of a volume's intensities: statistics and the box that holds the body.

The shard builder and the embedding of a raw scan call the same functions, so both see the same
numbers.
"""

from typing import NamedTuple

import numpy as np

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
    from depending on how much of it the field of view holds. Percentiles are exact (linear).

    Raises:
        ValueError: No voxel is finite.
    """
    values = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels.reshape(-1)
    if values.size == 0:
        raise ValueError("intensity_statistics: no finite voxel")
    minimum = values.min()
    above = values[values > minimum]
    chosen = above if above.size else values
    low, middle, high = np.percentile(chosen, [0.5, 50, 99.5])
    return IntensityStatistics(
        minimum=float(minimum),
        maximum=float(chosen.max()),
        mean=float(chosen.mean(dtype=np.float64)),
        std=float(chosen.std(dtype=np.float64)),
        p00_5=float(low),
        p50=float(middle),
        p99_5=float(high),
    )


def foreground_box(
    voxels: np.ndarray, *, modality: str, statistics: IntensityStatistics
) -> list[list[int]]:
    """[[start, stop) per axis] around what is not air; the whole volume if nothing stands out."""
    if modality == "CT":
        threshold = BODY_HU
    else:
        spread = statistics.p99_5 - statistics.p00_5
        threshold = statistics.p00_5 + FOREGROUND_RANGE * spread
    mask = voxels > threshold
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        profile = mask.sum(axis=others)
        places = np.flatnonzero(profile > FOREGROUND_SHARE * profile.max())
        if len(places):
            box.append([int(places[0]), int(places[-1]) + 1])
        else:
            box.append([0, voxels.shape[axis]])
    return box
