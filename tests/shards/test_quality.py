"""The quality score, on volumes whose defects are known."""

from itertools import pairwise

import numpy as np
import pytest

from shards.measure.intensity import foreground_box, intensity_statistics
from shards.measure.quality import quality_score

SHAPE = (40, 110, 70)


def score(voxels: np.ndarray, modality: str = "MR") -> float:
    statistics = intensity_statistics(voxels)
    box = foreground_box(voxels, modality=modality, statistics=statistics)
    return quality_score(voxels, modality=modality, statistics=statistics, box=box)


def organ(noise: float = 0.0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Smooth structures of 0 to 1000 with a dark rim, and white noise, int16."""
    d, h, w = (np.linspace(-1, 1, length) for length in shape)
    radius = np.sqrt(d[:, None, None] ** 2 + h[:, None] ** 2 + w**2)
    volume = 600 * np.clip(1.2 - radius, 0, 1) + 300 * np.sin(4 * h[:, None]) * np.cos(3 * w)
    return (volume + np.random.default_rng(0).normal(0, noise, shape)).astype(np.int16)


def test_a_clean_volume_scores_high_and_noise_lowers_it_step_by_step() -> None:
    found = [score(organ(noise)) for noise in (0, 20, 60, 150, 400)]
    assert found[0] > 0.95
    assert all(first > second + 0.02 for first, second in pairwise(found))
    assert found[-1] < 0.5


def test_the_score_is_one_minus_noise_over_spread() -> None:
    voxels = organ(60)
    assert score(voxels) == pytest.approx(1 - 60 / voxels.std(), abs=0.05)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "OT"])
def test_noise_alone_scores_near_zero(modality: str) -> None:
    noise = np.random.default_rng(1).normal(0, 100, SHAPE)
    assert score(noise.astype(np.int16), modality) < 0.05
    assert score(noise.astype(np.float32), modality) < 0.05


@pytest.mark.parametrize("value", [-1024, 0, 55])
def test_a_constant_volume_scores_zero(value: int) -> None:
    assert score(np.full((9, 30, 20), value, np.int16)) == 0.0
    assert score(np.full((9, 30, 20), value, np.float32), "CT") == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blank_slices_lower_the_score_by_their_share(axis: int) -> None:
    whole = organ(20)
    blank = whole.copy()
    length = whole.shape[axis]
    lost = slice(length // 4, length // 2)
    blank[(slice(None),) * axis + (lost,)] = whole.min()
    share = 1 - len(range(length)[lost]) / length
    # The blank slices also widen the spread a little.
    assert score(blank) == pytest.approx(score(whole) * share, abs=0.05)


def test_swapped_bytes_and_wrapped_values_score_lower() -> None:
    voxels = organ(20)
    assert score(voxels.byteswap()) < score(voxels) - 0.3
    wrapped = (voxels.astype(np.int32) * 500).astype(np.int16)
    assert score(wrapped) < score(voxels) - 0.3


def test_the_body_of_a_ct_is_measured_not_its_padding() -> None:
    hounsfield = organ(60) - np.int16(400)
    padded = hounsfield.copy()
    padded[:, :5] = -32000
    padded[10:14, 50:54, 30:34] = 31000
    assert score(padded, "CT") == pytest.approx(score(hounsfield, "CT"), abs=0.05)


def test_thin_and_tiny_volumes() -> None:
    assert score(organ(20)[18:20]) > 0.5
    box = ((0, 1), (0, 2), (0, 40))
    voxels = organ(20)[20:21, 50:52, :40]
    statistics = intensity_statistics(voxels)
    assert quality_score(voxels, modality="MR", statistics=statistics, box=box) == 0.0


def test_large_intensities_keep_their_contrast() -> None:
    voxels = organ(20).astype(np.float32)
    assert score(voxels * 1e3 + 1e7) == pytest.approx(score(voxels), abs=0.02)


def test_the_same_volume_has_the_same_score_and_stays_as_it_is() -> None:
    voxels = organ(20, (130, 118, 101))
    before = voxels.copy()
    assert score(voxels) == score(before)
    np.testing.assert_array_equal(voxels, before)
