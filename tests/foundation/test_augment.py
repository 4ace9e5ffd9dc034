from typing import Any

import numpy as np
import pytest
import torch

from foundation.augment import AugmentConfig, CropScale, View, apply_view, draw_view
from foundation.augmenting import artefacts, intensity
from foundation.augmenting.spatial import resample
from recipes.load import RecipeError, parse
from shards.scan import MODALITIES

SHAPE = (6, 11, 14)
VIEW_SHAPE = (4, 9, 7)
SCALE = CropScale(in_plane=(0.2, 0.9), across=(0.3, 1.0))
WHOLE = CropScale(in_plane=(1, 1), across=(1, 1), aspect=(1, 1))
WINDOW_HU = (-800.0, 1200.0)
SPACING_MM = torch.tensor([[5.0, 0.7, 0.9], [2.0, 1.0, 1.1], [1.5, 3.0, 0.5]])
CT, MR = MODALITIES.index("CT"), MODALITIES.index("MR")
MODALITY = torch.tensor([[MR, CT], [MR, MR], [CT, CT]])
CHANGES = tuple(name for name in AugmentConfig.model_fields if name != "flip")


def _config(probability: float, **sections: Any) -> AugmentConfig:
    tree: dict[str, Any] = {
        name: {"probability": probability} | sections.get(name, {}) for name in CHANGES
    }
    tree["flip"] = sections.get("flip", (0, 0, 0))
    return parse(tree, AugmentConfig, where="test")


STILL = _config(0)
ALWAYS = _config(1, flip=[0.5, 0.5, 0.5])


def _volume() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, *SHAPE, generator=generator) * 2 - 1


def _draw(positions=(5, 2, 9), *, augment=STILL, scale=SCALE, seed=1, view=0, modality=MODALITY):
    return draw_view(
        torch.tensor(positions),
        seed=seed,
        view=view,
        scale=scale,
        augment=augment,
        modality=modality,
        window_hu=WINDOW_HU,
    )


def _apply(parameters, volume=None, *, shape=VIEW_SHAPE, rows=slice(None), **masks) -> View:
    volume = _volume() if volume is None else volume
    return apply_view(volume[rows], parameters, shape=shape, spacing_mm=SPACING_MM[rows], **masks)


def _flat(parameters) -> list[torch.Tensor]:
    return [*parameters.geometry, *parameters.appearance]


def test_the_whole_crop_at_its_own_shape_is_unchanged() -> None:
    view = _apply(_draw(scale=WHOLE), shape=SHAPE)
    torch.testing.assert_close(view.volume, _volume(), atol=1e-5, rtol=0)
    torch.testing.assert_close(view.spacing_mm, SPACING_MM)
    assert view.inside.all()


def test_the_crop_itself_is_left_alone() -> None:
    volume = _volume()
    _apply(_draw(scale=WHOLE, augment=ALWAYS), volume, shape=SHAPE)
    assert torch.equal(volume, _volume())


def test_a_views_spacing_is_its_boxs_size_by_its_voxels() -> None:
    parameters = _draw()
    box_mm = parameters.geometry.extent * SPACING_MM * torch.tensor(SHAPE)
    got = _apply(parameters).spacing_mm * torch.tensor(VIEW_SHAPE)
    torch.testing.assert_close(got, box_mm)


def test_boxes_lie_inside_and_obey_both_scales() -> None:
    geometry = _draw(range(2000), modality=torch.zeros(2000, 1, dtype=torch.int64)).geometry
    assert (geometry.start >= 0).all()
    assert (geometry.start + geometry.extent <= 1 + 1e-6).all()
    across, height, width = geometry.extent.unbind(1)
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
    torch.manual_seed(1)
    whole = _draw(augment=ALWAYS)
    torch.manual_seed(2)
    part = _draw((2, 9), augment=ALWAYS, modality=MODALITY[1:])
    for all_values, some in zip(_flat(whole), _flat(part), strict=True):
        assert torch.equal(all_values[1:], some)
    for other in (_draw(view=1, augment=ALWAYS), _draw(seed=2, augment=ALWAYS)):
        for mine, others in zip(_flat(whole), _flat(other), strict=True):
            assert not torch.equal(mine, others)


def test_each_change_happens_as_often_and_as_far_as_the_recipe_says() -> None:
    num = 4000
    modality = torch.tensor([[CT, MR]]).expand(num, 2)
    augment = _config(0.25, flip=[0.1, 0.2, 0.3])
    geometry, look = _draw(range(num), augment=augment, modality=modality)
    happened = {
        "bias_field": (look.bias != 0).any(-1),
        "low_resolution": look.thickness != 1,
        "blur": look.blur_mm != 0,
        "noise": look.noise_std != 0,
        "window": (look.window != torch.tensor([-1.0, 1.0])).any(-1),
        "gamma": look.gamma != 1,
        "contrast": look.contrast != 1,
        "brightness": look.brightness != 0,
    }
    # Five standard errors of a share of 4,000.
    for name, each in happened.items():
        of_ct, of_mr = each.float().mean(0).tolist()
        assert of_ct == pytest.approx(
            0 if name in ("bias_field", "low_resolution") else 0.25, abs=0.035
        )
        assert of_mr == pytest.approx(0 if name == "window" else 0.25, abs=0.035)
    cut = geometry.boxes.flatten(1).any(1)
    assert cut.float().mean() == pytest.approx(0.25, abs=0.035)
    assert not torch.equal(look.gamma[:, 0], look.gamma[:, 1])
    flipped = (geometry.linear.diagonal(dim1=1, dim2=2) < 0).float().mean(0).tolist()
    assert flipped == pytest.approx([0.1, 0.2, 0.3], abs=0.035)
    ranges = {
        "thickness": (look.thickness[happened["low_resolution"]], augment.low_resolution.factor),
        "blur_mm": (look.blur_mm[happened["blur"]], augment.blur.sigma_mm),
        "noise_std": (look.noise_std[happened["noise"]], augment.noise.std),
        "gamma": (look.gamma[happened["gamma"]], augment.gamma.exponent),
        "contrast": (look.contrast[happened["contrast"]], augment.contrast.factor),
        "brightness": (look.brightness[happened["brightness"]], augment.brightness.shift),
        "bias": (look.bias[happened["bias_field"]], (-0.2, 0.2)),
        "box edge": (
            (geometry.boxes[cut][..., 1] - geometry.boxes[cut][..., 0]),
            augment.cutout.edge,
        ),
    }
    for name, (values, (low, high)) in ranges.items():
        margin = 0.02 * (high - low)
        assert low - 1e-6 <= values.min() < low + margin, name
        assert high - margin < values.max() <= high + 1e-6, name
    assert set(look.thick_axis.unique().tolist()) == {0, 1, 2}


def test_a_jittered_window_lies_inside_the_preprocessings() -> None:
    augment = _config(1, window={"level_hu": [-900, 100], "width": [0.5, 0.8]})
    drawn = _draw(range(3000), augment=augment, modality=torch.full((3000, 1), CT))
    low_hu, high_hu = ((drawn.appearance.window.double() + 1) * 1000 - 800).unbind(-1)
    assert low_hu.min() == pytest.approx(-800, abs=1e-3)
    assert high_hu.max() <= 1200 + 1e-3
    width_hu, level_hu = high_hu - low_hu, (low_hu + high_hu) / 2 - 200
    assert 1000 - 1e-3 <= width_hu.min() < 1010
    assert 1590 < width_hu.max() <= 1600 + 1e-3
    # A width of half the window has room for 500 HU either way, one of 0.8 for 200.
    assert -500 - 1e-3 <= level_hu.min() < -480
    assert 90 < level_hu.max() <= 100 + 1e-3


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("rotation", "affine")])
def test_each_change_reaches_the_channels_it_is_meant_for(name: str) -> None:
    sections = {name: {"probability": 1}}
    if name == "noise":
        sections[name]["std"] = [0.05, 0.05]
    still = _apply(_draw(scale=WHOLE), shape=SHAPE).volume
    view = _apply(_draw(scale=WHOLE, augment=_config(0, **sections)), shape=SHAPE).volume
    assert view.abs().max() <= 1
    meant = {
        "bias_field": MODALITY == MR,
        "low_resolution": MODALITY == MR,
        "window": MODALITY == CT,
    }
    changed = (view - still).abs().amax(dim=(2, 3, 4)) > 1e-3
    assert torch.equal(changed, meant.get(name, torch.ones(3, 2, dtype=torch.bool)))


def test_all_changes_together_are_the_single_ones_in_their_order() -> None:
    parameters = _draw(augment=_config(1, cutout={"probability": 0}))
    look = parameters.appearance
    seen = resample(
        _volume(), parameters.geometry, shape=VIEW_SHAPE, spacing_mm=SPACING_MM, inside=None
    )
    got = _apply(parameters).volume
    for row, channel in np.ndindex(3, 2):
        bias, thickness, axis, blur_mm, std, noise_seed, window, gamma, contrast, brightness = (
            value[row : row + 1, channel] for value in look
        )
        want = artefacts.apply_bias_field(seen.volume[row : row + 1, channel], bias)
        want = artefacts.thicken(want, thickness, axis=axis.item())
        want = artefacts.blur(want, blur_mm, seen.spacing_mm[row : row + 1])
        want = intensity.add_noise(want, std, noise_seed)
        want = intensity.curve(intensity.rewindow(want, window), gamma)
        want = intensity.stretch(want, contrast, brightness)
        want = want.masked_fill(~seen.inside[row], -1)
        torch.testing.assert_close(got[row, channel], want[0], atol=1e-5, rtol=0)


def test_a_sample_alone_gives_the_same_view_as_in_a_batch() -> None:
    inside = torch.ones(3, 1, *SHAPE, dtype=torch.bool)
    inside[1, :, :2] = False
    together = _apply(_draw(augment=ALWAYS), inside=inside)
    for row, position in enumerate((5, 2, 9)):
        one = slice(row, row + 1)
        parameters = _draw((position,), augment=ALWAYS, modality=MODALITY[one])
        alone = _apply(parameters, rows=one, inside=inside[one])
        torch.testing.assert_close(alone.volume, together.volume[one], atol=2e-6, rtol=0)
        assert torch.equal(alone.inside, together.inside[one])


def test_padding_absent_channels_and_what_lies_outside_stay_air() -> None:
    inside = torch.ones(3, 1, *SHAPE, dtype=torch.bool)
    inside[:, :, :, 8:] = False
    present = torch.tensor([[True, False], [True, True], [False, True]])
    augment = _config(1, rotation={"degrees": [40, 10, 10]}, noise={"std": [0.3, 0.3]})
    view = _apply(_draw(augment=augment, scale=WHOLE), shape=SHAPE, inside=inside, present=present)
    shown = view.inside & present[..., None, None, None]
    assert (view.volume[~shown.expand_as(view.volume)] == -1).all()
    assert 0.2 < view.inside.float().mean() < 0.7
    # What is shown of a white scan in front of black padding has no grey rim.
    white = torch.where(inside, 1.0, -1.0).expand(3, 2, *SHAPE)
    turned = _config(0, rotation={"probability": 1, "degrees": [40, 10, 10]})
    view = _apply(_draw(augment=turned, scale=WHOLE), white, shape=SHAPE, inside=inside)
    assert view.volume[:, :1][view.inside].min() > 0.99


def test_views_stay_in_range_and_differ_from_each_other() -> None:
    views = [_apply(_draw(augment=ALWAYS, view=view)).volume for view in range(2)]
    for view in views:
        assert view.shape == (3, 2, *VIEW_SHAPE)
        assert view.dtype == torch.float32
        assert view.abs().max() <= 1
        assert view.isfinite().all()
    assert (views[0] - views[1]).abs().mean() > 0.1


def test_autocast_changes_nothing() -> None:
    plain = _apply(_draw(augment=ALWAYS)).volume
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_apply(_draw(augment=ALWAYS)).volume, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_gpu_agree_to_rounding() -> None:
    inside = torch.ones(3, 1, *SHAPE, dtype=torch.bool)
    inside[:, :, :, 8:] = False
    parameters = _draw(augment=ALWAYS)
    on_cpu = _apply(parameters, inside=inside)
    on_gpu = _apply(parameters, _volume().cuda(), inside=inside.cuda())
    torch.testing.assert_close(on_gpu.volume.cpu(), on_cpu.volume, atol=2e-5, rtol=0)
    torch.testing.assert_close(on_gpu.spacing_mm.cpu(), on_cpu.spacing_mm)
    assert torch.equal(on_gpu.inside.cpu(), on_cpu.inside)


@pytest.mark.parametrize(
    ("schema", "tree", "message"),
    [
        (CropScale, {"in_plane": [0.5, 1.2], "across": [0.5, 1]}, r"in_plane is a range within"),
        (CropScale, {"in_plane": [0.5, 1], "across": [0, 1]}, r"across is a range within"),
        (CropScale, {"in_plane": [0.5, 1], "across": [1, 1], "aspect": [2, 1]}, "aspect"),
        (AugmentConfig, {"gamma": {"exponent": [1.5, 0.7]}}, r"gamma.exponent: a rising range"),
        (AugmentConfig, {"noise": {"std": [-1, 0]}}, r"noise.std: a rising range within \[0, inf"),
        (AugmentConfig, {"low_resolution": {"factor": [0.5, 2]}}, r"within \[1, inf\]"),
        (AugmentConfig, {"window": {"width": [0.5, 1.5]}}, r"within \[0.05, 1\]"),
        (AugmentConfig, {"window": {"level_hu": [9, 3]}}, "level_hu must rise"),
        (AugmentConfig, {"rotation": {"degrees": [0, 200, 0]}}, r"degrees lie within \[0, 180\]"),
        (AugmentConfig, {"blur": {"probability": 1.5}}, r"blur.probability: .* less than or equal"),
        (AugmentConfig, {"gama": {}}, "did you mean 'gamma'"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(schema, tree, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(tree, schema, where="recipe")
