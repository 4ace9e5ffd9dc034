"""One number for how much of an image a volume holds: 0 is none (constant, or noise), 1 is all.

    quality = share of slices that hold an image * (1 - noise / spread)

Noise is the standard deviation after Immerkaer (Computer Vision and Image Understanding 64, 1996,
p. 300), spread is that of all intensities. It is meant to find what is broken (empty or lost
slices, swapped bytes, wrapped values, noise alone), not to rank good scans of different scanners:
fine detail counts as noise, and noise that a reconstruction has smoothed does not.
"""

from collections.abc import Sequence

import numpy as np

from shards.measure.intensity import IntensityStatistics

RUNS, RUN = 4, 24  # along each axis so many stretches of so many voxels are looked at
POINTS = 32  # along both axes of a slice: enough to see that it is blank
BLANK = 0.02  # of the spread of a usual slice
# Of CT: padding below air and metal above bone must not make the body look free of noise.
CT_RANGE_HU = (-1000.0, 1000.0)


def quality_score(
    voxels: np.ndarray,
    *,
    modality: str,
    statistics: IntensityStatistics,
    box: Sequence[Sequence[int]],
) -> float:
    """The quality of a volume within its foreground box, from a sample of at most 96^3 voxels.

    Args:
        voxels: (D, H, W) in physical units, finite.
        modality: Of the scan.
        statistics: Of ``voxels``.
        box: ((start, stop), ...) along (d, h, w); blank slices outside are not counted.

    Returns:
        In [0, 1]; 0 where the box is too small to tell (fewer than 3 voxels along two axes).
    """
    low, high = statistics.minimum, statistics.p99_5
    if modality == "CT":
        low, high = max(low, CT_RANGE_HU[0]), min(high, CT_RANGE_HU[1])
    if high <= low:
        return 0.0
    window = voxels[tuple(slice(first, last) for first, last in box)]
    sample = _sampled(window, low=low, high=high)
    spread = float(sample.std(dtype=np.float64))
    noise = _noise(sample)
    if noise is None or spread == 0:
        return 0.0
    share = min(_share_with_image(window, axis=axis, low=low, high=high) for axis in range(3))
    return float(share * min(max(1.0 - noise / spread, 0.0), 1.0))


def _sampled(window: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """(R, L, R, L, R, L) float32 in [0, 1]: R stretches of L neighbours along each axis."""
    runs = [_runs(length) for length in window.shape]
    values = window[np.ix_(*(run.reshape(-1) for run in runs))]
    shape = [edge for run in runs for edge in run.shape]
    return _levelled(values, low=low, high=high).reshape(shape)


def _runs(length: int) -> np.ndarray:
    """(R, L) places along an axis: ``RUNS`` stretches, evenly apart, or the whole short axis."""
    if length <= RUNS * RUN:
        return np.arange(length)[None]
    starts = np.linspace(0, length - RUN, RUNS).astype(int)
    return starts[:, None] + np.arange(RUN)


def _levelled(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """float32 in [0, 1] between ``low`` and ``high``."""
    level = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(level, 0, 1, out=level)


def _noise(sample: np.ndarray) -> float | None:
    """Immerkaer's standard deviation, in units of ``sample``; None where no plane is 3 x 3.

    Of the three orientations the least: across thick slices anatomy changes as fast as noise.
    """
    found = []
    for across in range(3):
        first, second = (1 + 2 * axis for axis in range(3) if axis != across)
        if min(sample.shape[first], sample.shape[second]) < 3:
            continue
        bent = np.diff(np.diff(sample, n=2, axis=first), n=2, axis=second)
        found.append(float(np.abs(bent).mean(dtype=np.float64)) * np.sqrt(np.pi / 2) / 6)
    return min(found, default=None)


def _share_with_image(window: np.ndarray, *, axis: int, low: float, high: float) -> float:
    """Share of the slices across ``axis`` whose intensities vary; the slice axis is not known."""
    places = [
        np.arange(length)
        if each == axis or length <= POINTS
        else np.linspace(0, length - 1, POINTS).astype(int)
        for each, length in enumerate(window.shape)
    ]
    values = _levelled(window[np.ix_(*places)], low=low, high=high)
    others = tuple(each for each in range(3) if each != axis)
    spreads = values.std(axis=others, dtype=np.float64)
    return float((spreads > BLANK * np.median(spreads)).mean())
