import numpy as np
import pytest
import torch

from foundation.preprocessing import (
    Preprocessing,
    inside_mask,
    normalise,
    normalise_batch,
    resize_crops,
    window_starts,
)
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


def test_each_channel_has_its_own_window() -> None:
    stored = torch.randint(-1500, 3000, (3, 2, 2, 3, 5), dtype=torch.int16)
    slope, intercept = torch.rand(3, 2) + 0.5, torch.rand(3, 2) * 100
    modality = torch.tensor([[0, 1], [1, 3], [2, 0]])
    statistics = torch.tensor(STATISTICS).repeat(3, 2, 1) * torch.tensor([1.0, 0.5])[None, :, None]
    got = normalise(
        stored,
        slope=slope,
        intercept=intercept,
        modality=modality,
        statistics=statistics,
        preprocessing=WINDOWS,
    )
    for channel in (0, 1):
        alone = normalise(
            stored[:, channel : channel + 1],
            slope=slope[:, channel],
            intercept=intercept[:, channel],
            modality=modality[:, channel],
            statistics=statistics[:, channel],
            preprocessing=WINDOWS,
        )
        assert torch.equal(got[:, channel : channel + 1], alone)


def _resized(crop: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """One axis after the other, from the definition: cells, linear between centres, held beyond."""
    for axis, size in enumerate(shape):
        length = crop.shape[axis]
        centres = (np.arange(size) + 0.5) * length / size - 0.5
        crop = np.apply_along_axis(
            lambda line, at=centres: np.interp(at, np.arange(len(line)), line), axis, crop
        )
    return crop


def test_crops_of_different_extents_are_resized_each_by_its_own_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(3, 2, 6, 11, 9, generator=generator)
    extent = torch.tensor([[6, 11, 9], [3, 7, 9], [1, 11, 4]], dtype=torch.int32)
    shape = (4, 8, 10)
    got = resize_crops(volume, extent=extent, shape=shape)
    for row, (d, h, w) in enumerate(extent.tolist()):
        for channel in (0, 1):
            want = _resized(volume[row, channel, :d, :h, :w].double().numpy(), shape)
            np.testing.assert_allclose(got[row, channel].numpy(), want, atol=2e-5)
    hidden = volume.clone()
    hidden[1, :, 3:], hidden[2, :, :, :, 4:] = 1e9, 1e9
    assert torch.equal(resize_crops(hidden, extent=extent, shape=shape), got)
    same = resize_crops(volume, extent=extent[:1].expand(3, 3), shape=(6, 11, 9))
    torch.testing.assert_close(same, volume, atol=1e-5, rtol=0)


def test_a_batch_of_several_extents_comes_out_in_the_models_shape(crop_batch) -> None:
    """A crop of 6 x 8 x 10 voxels whose first 2 slices lie outside, and one of 3 x 8 x 5."""
    batch = crop_batch((6, 8, 10), positions=[2, 3])
    face = torch.zeros(2, 1, 6, 8, 10, dtype=torch.uint8)
    face[:, :, :, 3] = 1
    batch = batch._replace(
        extent=torch.tensor([[6, 8, 10], [3, 8, 5]], dtype=torch.int32),
        inside=torch.tensor([[[2, 6], [0, 8], [0, 10]], [[0, 3], [0, 8], [1, 5]]]),
        masks=face,
    )
    preprocessing = Preprocessing(crop_shape=(3, 4, 5), window_hu=(-300, 300))
    volume, inside, counted, spacing_mm = normalise_batch(batch, preprocessing=preprocessing)
    assert volume.shape == inside.shape == counted.shape == (2, 1, 3, 4, 5)
    want = torch.ones(2, 1, 3, 4, 5, dtype=torch.bool)
    want[0, :, 0] = False
    want[1, :, :, :, 0] = False
    assert torch.equal(inside, want)
    assert (volume[~inside] == -1).all()
    # Rows 2 and 3 of before are row 1 of now.
    want[:, :, :, 1] = False
    assert torch.equal(counted, want)
    whole = _resized(
        ((batch.volume[1, 0, :3, :8, :5] + 300) / 300 - 1).clamp(-1, 1).numpy(), (3, 4, 5)
    )
    np.testing.assert_allclose(volume[1, 0, :, :, 1:].numpy(), whole[:, :, 1:], atol=1e-5)
    # Voxels of (3, 1, 1.5) mm: the crops' edges divided by the model's.
    torch.testing.assert_close(spacing_mm, torch.tensor([[6.0, 2.0, 3.0], [3.0, 2.0, 1.5]]))


def test_nothing_is_resized_that_has_the_right_shape(crop_batch) -> None:
    batch = crop_batch((6, 8, 10), positions=[0, 2])
    preprocessing = Preprocessing(crop_shape=(6, 8, 10), window_hu=(-300, 300))
    volume, inside, counted, spacing_mm = normalise_batch(batch, preprocessing=preprocessing)
    exact = ((batch.volume.float() + 300) / 300 - 1).clamp(-1, 1)
    torch.testing.assert_close(volume[inside], exact[inside], atol=1e-6, rtol=0)
    assert torch.equal(inside, counted)
    assert torch.equal(spacing_mm, batch.spacing_mm)


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
