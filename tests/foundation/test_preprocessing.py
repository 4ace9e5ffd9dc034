import numpy as np
import pytest
import torch

from foundation.preprocessing import Preprocessing, inside_mask, normalise, window_starts
from recipes.load import RecipeError, parse

WINDOWS = Preprocessing(crop_shape=(2, 3, 4), window_hu=(-500, 300), window_suv=(0, 8))
STATISTICS = [0.0, 4000.0, 700.0, 300.0, 100.0, 650.0, 2100.0]


def _normalise(stored, *, modality, slope, intercept) -> torch.Tensor:
    batch = len(modality)
    return normalise(
        stored,
        slope=torch.tensor(slope),
        intercept=torch.tensor(intercept),
        modality=torch.tensor(modality),
        statistics=torch.tensor([STATISTICS] * batch),
        preprocessing=WINDOWS,
    )


def test_each_sample_is_windowed_by_its_own_modality() -> None:
    stored = torch.randint(-1500, 3000, (4, 1, 2, 3, 5), dtype=torch.int16)
    slope, intercept = [1.0, 0.5, 0.004, 0.1], [-24.0, 100.0, 0.0, 3.0]
    got = _normalise(stored, modality=[0, 1, 2, 3], slope=slope, intercept=intercept)
    bounds = [(-500, 300), (100, 2100), (0, 8), (0, 255)]
    for index, (low, high) in enumerate(bounds):
        physical = stored[index].numpy().astype(np.float64) * slope[index] + intercept[index]
        want = np.clip((physical - low) / (high - low) * 2 - 1, -1, 1)
        np.testing.assert_allclose(got[index].numpy(), want, atol=2e-6)
    assert got.dtype == torch.float32


def test_a_constant_scan_is_finite_and_air() -> None:
    got = normalise(
        torch.full((1, 1, 2, 3, 4), 7, dtype=torch.int16),
        slope=torch.ones(1),
        intercept=torch.zeros(1),
        modality=torch.tensor([1]),
        statistics=torch.full((1, 7), 7.0),
        preprocessing=WINDOWS,
    )
    assert torch.equal(got, torch.full((1, 1, 2, 3, 4), -1.0))


def test_inside_mask_marks_the_box_of_each_sample() -> None:
    inside = torch.tensor([[[0, 2], [1, 3], [2, 5]], [[1, 2], [0, 4], [0, 3]]], dtype=torch.int32)
    got = inside_mask(inside, (2, 4, 5))
    want = torch.zeros(2, 1, 2, 4, 5, dtype=torch.bool)
    want[0, :, 0:2, 1:3, 2:5] = True
    want[1, :, 1:2, 0:4, 0:3] = True
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("shape", "crop"),
    [((7, 9, 4), (3, 4, 5)), ((64, 65, 128), (32, 32, 64)), ((5, 5, 5), (4, 5, 6))],
)
def test_windows_cover_every_voxel_with_the_fewest_windows(shape, crop) -> None:
    starts = window_starts(shape, crop)
    seen = np.zeros(shape, bool)
    for d, h, w in starts:
        for start, size, window in zip((d, h, w), shape, crop, strict=True):
            assert start >= 0
            assert start + min(window, size) <= size
        seen[d : d + crop[0], h : h + crop[1], w : w + crop[2]] = True
    assert seen.all()
    assert len(starts) == np.prod([-(-n // c) for n, c in zip(shape, crop, strict=True)])
    assert starts == sorted(set(starts))


def test_windows_are_evenly_spaced() -> None:
    assert [d for d, _, _ in window_starts((10, 3, 3), (4, 3, 3))] == [0, 3, 6]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window_hu", [300, -500], "window_hu must rise"),
        ("crop_shape", [0, 4, 4], "crop_shape must be positive"),
        ("spacing_mm", [1, 0, 1], "spacing_mm must be positive"),
        ("windowhu", [0, 1], "did you mean 'window_hu'"),
    ],
)
def test_a_contract_that_cannot_hold_is_refused(field, value, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse({"crop_shape": [4, 4, 4], field: value}, Preprocessing, where="recipe")
