import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from foundation.augment import (
    AugmentConfig,
    CropScale,
    ViewParameters,
    apply_view,
    draw_view,
    jitter,
    resized_crop,
)
from recipes.load import RecipeError, parse

POSITIONS = torch.tensor([5, 2, 9])
SHAPE = (6, 11, 14)
VIEW_SHAPE = (4, 9, 7)
SCALE = CropScale(in_plane=(0.2, 0.9), across=(0.3, 1.0))
STILL = AugmentConfig(gamma=(1, 1), contrast=(1, 1), brightness=(0, 0), noise_std=(0, 0))


def _volume() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 1, *SHAPE, generator=generator) * 2 - 1


def _draw(
    *, view: int = 0, augment: AugmentConfig = STILL, scale: CropScale = SCALE, seed: int = 1
):
    return draw_view(POSITIONS, seed=seed, view=view, scale=scale, augment=augment)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_resampling_matches_scipy_sample_by_sample(flip: float) -> None:
    volume = _volume()
    parameters = _draw(augment=STILL.model_copy(update={"flip_w": flip}))
    got = resized_crop(volume, parameters, shape=VIEW_SHAPE)
    for sample in range(3):
        axes = []
        for axis, (size, new) in enumerate(zip(SHAPE, VIEW_SHAPE, strict=True)):
            start = parameters.start[sample, axis].item() * size
            edge = parameters.extent[sample, axis].item() * size / new
            axes.append(start + (np.arange(new) + 0.5) * edge - 0.5)
        if flip:
            axes[2] = axes[2][::-1]
        places = np.meshgrid(*axes, indexing="ij")
        want = map_coordinates(volume[sample, 0].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(got[sample, 0].numpy(), want, atol=1e-5)


def test_the_whole_crop_at_its_own_shape_is_unchanged() -> None:
    whole = CropScale(in_plane=(1, 1), across=(1, 1), aspect=(1, 1))
    got = apply_view(_volume(), _draw(scale=whole), shape=SHAPE)
    torch.testing.assert_close(got, _volume(), atol=1e-5, rtol=0)


def test_boxes_lie_inside_and_obey_both_scales() -> None:
    positions = torch.arange(2000)
    parameters = draw_view(positions, seed=0, view=3, scale=SCALE, augment=AugmentConfig())
    assert (parameters.start >= 0).all()
    assert (parameters.start + parameters.extent <= 1 + 1e-6).all()
    across, height, width = parameters.extent.unbind(1)
    assert 0.3 <= across.min() < 0.31
    assert 0.99 < across.max() <= 1
    area = height * width
    # A box that would be longer than the crop on one axis is cut there.
    assert area.max() <= 0.9 + 1e-6
    assert 0.2 - 1e-6 <= area[(height < 1) & (width < 1)].min() < 0.21
    ratio = (height / width)[(height < 1) & (width < 1)]
    assert 0.75 - 1e-6 <= ratio.min() < 0.78
    assert 1.29 < ratio.max() <= 4 / 3 + 1e-6


def test_a_view_follows_from_seed_position_and_number_alone() -> None:
    augment = AugmentConfig(flip_w=0.5)
    torch.manual_seed(1)
    whole = _draw(augment=augment)
    torch.manual_seed(2)
    part = draw_view(POSITIONS[1:], seed=1, view=0, scale=SCALE, augment=augment)
    for all_values, some in zip(whole, part, strict=True):
        assert torch.equal(all_values[1:], some)
    assert not torch.equal(whole.start, _draw(view=1, augment=augment).start)
    assert not torch.equal(whole.start, _draw(seed=2, augment=augment).start)


def test_intensities_follow_each_samples_own_numbers() -> None:
    volume = _volume()
    parameters = _draw(augment=AugmentConfig())
    silent = parameters._replace(noise_std=torch.zeros(3))
    got = jitter(volume, silent)
    for sample in range(3):
        unit = (volume[sample].numpy().astype(np.float64) + 1) / 2
        curved = 2 * unit ** parameters.gamma[sample].item() - 1
        want = curved * parameters.contrast[sample].item() + parameters.brightness[sample].item()
        np.testing.assert_allclose(got[sample].numpy(), np.clip(want, -1, 1), atol=1e-5)


def test_noise_has_its_spread_and_differs_by_sample() -> None:
    still = ViewParameters(*_draw()._replace(noise_std=torch.tensor([0.0, 0.05, 0.05])))
    noise = jitter(torch.zeros(3, 1, 20, 30, 40), still).flatten(1)
    # Five standard errors of a standard deviation over 24,000 values: 2.3%.
    torch.testing.assert_close(noise.std(1), torch.tensor([0.0, 0.05, 0.05]), atol=1e-6, rtol=0.023)
    assert abs(torch.corrcoef(noise[1:])[0, 1]) < 0.033


def test_views_stay_in_range() -> None:
    view = apply_view(_volume(), _draw(augment=AugmentConfig(flip_w=0.5)), shape=VIEW_SHAPE)
    assert view.shape == (3, 1, *VIEW_SHAPE)
    assert view.abs().max() <= 1
    assert view.isfinite().all()


@pytest.mark.parametrize(
    ("schema", "tree", "message"),
    [
        (CropScale, {"in_plane": [0.5, 1.2], "across": [0.5, 1]}, r"in_plane is a range within"),
        (CropScale, {"in_plane": [0.5, 1], "across": [0, 1]}, r"across is a range within"),
        (CropScale, {"in_plane": [0.5, 1], "across": [1, 1], "aspect": [2, 1]}, "aspect"),
        (AugmentConfig, {"gamma": [1.5, 0.7]}, "gamma is a rising range"),
        (AugmentConfig, {"noise_std": [-1, 0]}, "noise_std is a rising range"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(schema, tree, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(tree, schema, where="recipe")
