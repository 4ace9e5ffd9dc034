"""Intensity statistics and the foreground box, against hand-sized cases."""

import numpy as np
import pytest

from shards.measure.intensity import foreground_box, intensity_statistics


def test_the_air_is_left_out() -> None:
    voxels = np.full((4, 5, 10), -1000, np.int16)
    voxels.reshape(-1)[:101] = np.arange(101)
    found = intensity_statistics(voxels)
    assert found.minimum == -1000
    assert (found.maximum, found.p50, found.mean) == (100, 50, 50)
    assert (found.p00_5, found.p99_5) == (0.5, 99.5)
    assert found.std == pytest.approx(np.arange(101).std(), rel=1e-12)


def test_flat_and_not_finite_volumes() -> None:
    assert intensity_statistics(np.full((2, 3, 4), 7, np.int16)) == (7, 7, 7, 0, 7, 7, 7)
    voxels = np.array([[[np.nan, 1.0, 2.0, np.inf, 3.0]]], np.float32)
    found = intensity_statistics(voxels)
    assert (found.minimum, found.maximum, found.mean) == (1, 3, 2.5)
    with pytest.raises(ValueError, match="no finite voxel"):
        intensity_statistics(np.full((1, 2, 3), np.nan))


def test_the_box_holds_the_body_and_not_the_noise() -> None:
    voxels = np.full((30, 40, 20), -1000, np.int16)
    voxels[5:25, 8:30, 3:18] = 40
    voxels[29, 39, 19] = 3000  # one bright voxel of noise
    statistics = intensity_statistics(voxels)
    box = foreground_box(voxels, modality="CT", statistics=statistics)
    assert box == [[5, 25], [8, 30], [3, 18]]


def test_the_box_of_an_mr_follows_its_own_range() -> None:
    voxels = np.random.default_rng(0).normal(20, 2, (20, 30, 24)).astype(np.float32)
    voxels[4:16, 6:25, 5:21] += 300
    statistics = intensity_statistics(voxels)
    box = foreground_box(voxels, modality="MR", statistics=statistics)
    assert box == [[4, 16], [6, 25], [5, 21]]


def test_a_volume_of_air_is_its_own_box() -> None:
    voxels = np.full((3, 4, 5), -1000, np.int16)
    statistics = intensity_statistics(voxels)
    box = foreground_box(voxels, modality="CT", statistics=statistics)
    assert box == [[0, 3], [0, 4], [0, 5]]
