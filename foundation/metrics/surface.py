"""How far the surface of a predicted mask lies from that of the true one, in millimetres."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]


class SurfaceDistances(NamedTuple):
    """Of K classes, without the background."""

    assd_mm: Floats
    """(K,) average symmetric surface distance: the mean over the surface voxels of both masks"""
    hd95_mm: Floats
    """(K,) 95% Hausdorff distance: the larger of both directions' 95th percentiles"""


def surface_distances(
    predicted: NDArray[np.integer],
    mask: NDArray[np.integer],
    *,
    spacing_mm: Spacing,
    num_classes: int,
) -> SurfaceDistances:
    """Distances between the surfaces of each class.

    A surface are the voxels of a class with at least one of six neighbours outside it; what lies
    beyond the volume is outside. Distances go from centre to centre. A class that is in neither has
    NaN, as its Dice; one that is in only one of them has infinity: no distance can tell how wrong
    that is.

    Args:
        predicted: (D, H, W) classes, 0 is background.
        mask: Of the same grid.
        spacing_mm: (d, h, w) of that grid.
        num_classes: K, without the background.
    """
    assert predicted.shape == mask.shape
    pairs = [(predicted == number, mask == number) for number in range(1, num_classes + 1)]
    found = np.array([_distances(*pair, spacing_mm=spacing_mm) for pair in pairs])
    return SurfaceDistances(*found.reshape(num_classes, 2).T)


def _distances(
    predicted: NDArray[np.bool_], mask: NDArray[np.bool_], *, spacing_mm: Spacing
) -> tuple[float, float]:
    """Both distances of one class."""
    if not (predicted.any() and mask.any()):
        nothing = np.inf if predicted.any() or mask.any() else np.nan
        return nothing, nothing
    box = _box(predicted | mask)
    here, there = _surface(predicted[box]), _surface(mask[box])
    to_mask = _to(there, spacing_mm=spacing_mm)[here]
    to_predicted = _to(here, spacing_mm=spacing_mm)[there]
    far = max(np.percentile(to_mask, 95), np.percentile(to_predicted, 95))
    return float(np.concatenate([to_mask, to_predicted]).mean()), float(far)


def _box(either: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest that holds all; beyond it, a mask is as empty as beyond the volume."""
    edges = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(either.any(axis=others))
        edges.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(edges)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    surface: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return surface


def _to(surface: NDArray[np.bool_], *, spacing_mm: Spacing) -> Floats:
    """Of each voxel the distance to the nearest of a surface."""
    from scipy.ndimage import distance_transform_edt

    distance: Floats = distance_transform_edt(~surface, sampling=spacing_mm)
    return distance
