"""A volume on a grid of another spacing: smoothed where it gets coarser, then linear.

Slice by slice in float32 with nothing but products and sums, which every processor rounds alike:
the same scan gives the same bytes on any machine, and no copy of the volume is made.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FULL_WIDTH = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian at half its height, in deviations
REACH = 4  # deviations, beyond which the Gaussian is cut
WEIGHT_STEP = 2.0**-20  # weights are rounded to it: exponentials differ between machines


class _Taps(NamedTuple):
    """Of one axis: new sample k is the sum over t of weight[k, t] * old[source[k, t]]."""

    source: np.ndarray
    weight: np.ndarray


def new_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """As many whole new voxels as fit; an axis of one voxel keeps it."""
    pairs = zip(shape, spacing_mm, target_mm, strict=True)
    return tuple(1 if n == 1 else max(1, math.floor(n * old / new + 1e-6)) for n, old, new in pairs)


def regrid(
    voxels: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    is_rounded: bool = False,
) -> np.ndarray:
    """(D, H, W) voxels at ``target_mm`` around the same centre, float32.

    An axis that gets k times coarser is first smoothed by a Gaussian whose deviation is
    sqrt(k^2 - 1) / 2.355 old voxels (Cardoso et al. 2015); the edge goes on beyond itself.

    Args:
        voxels: int16 or float32.
        spacing_mm: Of them, (d, h, w).
        target_mm: Of the result.
        is_rounded: Give int16; no value lies beyond those of ``voxels``.
    """
    shape = new_shape(voxels.shape, spacing_mm, target_mm)
    d, h, w = (
        _taps(*axis) for axis in zip(voxels.shape, shape, spacing_mm, target_mm, strict=True)
    )
    found = np.empty(shape, dtype=np.int16 if is_rounded else np.float32)
    for number, (index, weight) in enumerate(zip(*d, strict=True)):
        plane = np.zeros(voxels.shape[1:], dtype=np.float32)
        for place, part in zip(index, weight, strict=True):
            if part:
                plane += np.multiply(voxels[place], part, dtype=np.float32)
        plane = _rows(np.ascontiguousarray(_rows(plane, h).T), w).T
        found[number] = np.rint(plane) if is_rounded else plane
    return found


def _rows(plane: np.ndarray, taps: _Taps) -> np.ndarray:
    """The first axis of a (rows, columns) plane on its new grid."""
    found = np.zeros((len(taps.source), plane.shape[1]), dtype=np.float32)
    for index, weight in zip(taps.source.T, taps.weight.T, strict=True):
        part = plane[index]
        part *= weight[:, None]
        found += part
    return found


def _taps(length: int, count: int, old_mm: float, new_mm: float) -> _Taps:
    """Linear interpolation of the smoothed axis, as one sum over old samples."""
    factor = new_mm / old_mm
    places = (length - 1) / 2 + (np.arange(count) - (count - 1) / 2) * factor
    sigma = math.sqrt(factor**2 - 1) / FULL_WIDTH if factor > 1 and length > 1 else 0.0
    reach = math.ceil(REACH * sigma)
    kernel = [math.exp(-0.5 * (step / sigma) ** 2) if step else 1.0 for step in _steps(reach)]
    smooth = np.asarray(kernel) / sum(kernel)
    places = places.clip(0, length - 1)
    below = np.floor(places).astype(np.int64)
    part = places - below
    weight = np.zeros((count, 2 * reach + 2))
    weight[:, :-1] += (1 - part)[:, None] * smooth
    weight[:, 1:] += part[:, None] * smooth
    weight = np.rint(weight / WEIGHT_STEP) * WEIGHT_STEP
    weight[:, reach] += 1 - weight.sum(axis=1)  # a flat volume stays flat
    index = below[:, None] + np.arange(-reach, reach + 2)
    return _Taps(index.clip(0, length - 1), weight.astype(np.float32))


def _steps(reach: int) -> range:
    return range(-reach, reach + 1)
