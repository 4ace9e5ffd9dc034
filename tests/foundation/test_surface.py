"""Surface distances, against brute force over all pairs of voxels, and against MONAI's."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foundation.metrics.surface import surface_distances

SPACING = (3.0, 0.5, 1.25)
SHAPE = (4, 7, 5)
Classes = NDArray[np.uint8]


def blobs(seed: int) -> Classes:
    """Two classes with holes and islands, at the edges of the volume too."""
    values = np.random.default_rng(seed).random(SHAPE)
    return np.select([values > 0.8, values > 0.45], [2, 1], 0).astype(np.uint8)


def surface(mask: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    found = []
    for place in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = list(place)
            other[axis] += step
            beyond = not 0 <= other[axis] < mask.shape[axis]
            if beyond or not mask[tuple(other)]:
                found.append(tuple(int(each) for each in place))
                break
    return found


def brute_force(
    one: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[float, float]:
    def nearest(place: tuple[int, ...], places: list[tuple[int, ...]]) -> float:
        return min(
            math.sqrt(
                sum(((a - b) * mm) ** 2 for a, b, mm in zip(place, each, spacing, strict=True))
            )
            for each in places
        )

    first, second = surface(one), surface(other)
    there = [nearest(place, second) for place in first]
    back = [nearest(place, first) for place in second]
    far = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return sum(there + back) / len(there + back), far


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_brute_force_gives_the_same(seed: int) -> None:
    predicted, mask = blobs(seed), blobs(seed + 10)
    found = surface_distances(predicted, mask, spacing_mm=SPACING, num_classes=2)
    for number in (1, 2):
        assd, hd95 = brute_force(predicted == number, mask == number, SPACING)
        assert found.assd_mm[number - 1] == pytest.approx(assd, rel=1e-9)
        assert found.hd95_mm[number - 1] == pytest.approx(hd95, rel=1e-9)


def test_a_shift_along_an_axis_counts_that_axis_millimetres() -> None:
    for axis, shift_mm in enumerate(SPACING):
        mask = np.zeros((9, 9, 9), np.uint8)
        mask[3:5, 3:5, 3:5] = 1
        moved = np.roll(mask, 3, axis=axis)
        found = surface_distances(moved, mask, spacing_mm=SPACING, num_classes=1)
        # Voxels of a pair of planes: one is two steps from the other mask, one three.
        assert found.assd_mm[0] == pytest.approx(2.5 * shift_mm)
        assert found.hd95_mm[0] == pytest.approx(3 * shift_mm)


def test_equal_masks_are_at_distance_zero() -> None:
    mask = blobs(3)
    found = surface_distances(mask, mask, spacing_mm=SPACING, num_classes=2)
    assert found.assd_mm.tolist() == found.hd95_mm.tolist() == [0.0, 0.0]


def test_a_class_in_neither_is_nan_and_in_one_only_infinite() -> None:
    predicted, mask = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    predicted[1, 2, 3], mask[1, 2, 3] = 1, 2
    predicted[0, 0, 0] = mask[0, 0, 0] = 4
    found = surface_distances(predicted, mask, spacing_mm=SPACING, num_classes=4)
    np.testing.assert_array_equal(found.assd_mm, [np.inf, np.inf, np.nan, 0.0])
    np.testing.assert_array_equal(found.hd95_mm, [np.inf, np.inf, np.nan, 0.0])


def test_monai_gives_the_same() -> None:
    from monai import metrics  # seconds, which collecting the tests shall not take

    predicted, mask = np.zeros((8, 12, 9), np.uint8), np.zeros((8, 12, 9), np.uint8)
    predicted[2:6, 3:9, 2:7] = 1
    mask[3:7, 2:9, 3:6] = 1
    one, other = (torch.from_numpy(each)[None, None].float() for each in (predicted, mask))
    options = {"include_background": True, "spacing": list(SPACING)}
    found = surface_distances(predicted, mask, spacing_mm=SPACING, num_classes=1)
    theirs = metrics.compute_average_surface_distance(one, other, symmetric=True, **options)
    assert found.assd_mm[0] == pytest.approx(float(theirs), rel=1e-5)
    far = metrics.compute_hausdorff_distance(one, other, percentile=95, **options)
    assert found.hd95_mm[0] == pytest.approx(float(far), rel=1e-5)
