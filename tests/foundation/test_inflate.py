"""2D weights in 3D: a volume that repeats one slice gets what the 2D network gives the slice."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from foundation.beginning.fitting import fit
from foundation.beginning.inflate import (
    DEPTH_SHARE,
    FlatNetwork,
    InflationError,
    fitted_patch,
    fitted_positions,
    weights_of_flat,
)
from foundation.network.patches import patchify
from foundation.vit import Vit3d, VitConfig, build_vit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EDGES = (4, 8, 16)
GRID = (3, 5)


def flat_model(name: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    """A 2D network, two blocks deep, of 8 x 16 patches, every tensor drawn."""
    torch.manual_seed(0)
    settings = {"img_size": (GRID[0] * 8, GRID[1] * 16), "patch_size": EDGES[1:], "depth": 2}
    model = timm.create_model(name, pretrained=False, **{**settings, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def described(model: nn.Module, *, mean: object = (0.5,) * 3, std: object = (0.5,) * 3):
    return FlatNetwork(
        num_heads=model.blocks[0].attn.num_heads,
        mean=mean,
        std=std,
        grid=model.patch_embed.grid_size,
        position_prefix=0 if model.no_embed_class else model.num_prefix_tokens,
    )


def backbone(**changes: object) -> Vit3d:
    tree = {"size": "tiny", "depth": 2, "num_heads": 3, "patch_size": EDGES, "num_registers": 0}
    torch.manual_seed(1)
    return build_vit(VitConfig(**{**tree, **changes})).eval()


def inflated(model: nn.Module, vit: Vit3d, **about: object):
    """The report of bringing ``model`` into ``vit``, which then has its weights."""
    fitted = fit(weights_of_flat(model.state_dict(), described(model, **about)), vit)
    vit.load_state_dict({**vit.state_dict(), **fitted.tensors})
    return fitted.report


def picture(grid: tuple[int, int] = GRID, *, count: int = 2) -> Tensor:
    """(B, h, w) of -1 to 1."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, grid[0] * 8, grid[1] * 16, generator=generator) * 2 - 1


def as_rgb(grey: Tensor, *, mean: object = (0.5,) * 3, std: object = (0.5,) * 3) -> Tensor:
    """(B, 3, h, w), from -1 to 1, as a 2D pipeline normalises a picture from 0 to 1."""
    unit = ((grey + 1) / 2)[:, None].expand(-1, 3, -1, -1)
    return (unit - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def repeated(grey: Tensor, *, slices: int, channels: int = 1) -> Tensor:
    """(B, C, slices, h, w)."""
    return grey[:, None, None].expand(-1, channels, slices, -1, -1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("about", [{}, dict(zip(("mean", "std"), IMAGENET, strict=True))])
@torch.inference_mode()
def test_the_embedding_of_a_repeated_slice_is_that_of_the_slice(
    channels: int, about: dict[str, object]
) -> None:
    model = flat_model()
    vit = backbone(in_chans=channels)
    inflated(model, vit, **about)
    grey = picture()
    expected = model.patch_embed(as_rgb(grey, **about))
    volume = repeated(grey, slices=8, channels=channels)
    found = vit.patch_embed(patchify(volume, patch_size=EDGES))
    for part in found.chunk(2, dim=1):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
    # A vertical edge and a horizontal one are not each other's.
    turned = model.patch_embed.proj.weight.transpose(2, 3).reshape(192, 3, 8, 16)
    swapped = nn.functional.conv2d(as_rgb(grey, **about), turned, stride=(8, 16))
    assert (swapped.flatten(2).transpose(1, 2) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("vit_tiny_patch16_224", {}, {}),
        (
            "vit_small_patch14_reg4_dinov2",
            {"embed_dim": 192, "num_heads": 3},
            {"num_registers": 4, "layer_scale": 1e-3},
        ),
        (
            "vit_small_patch14_reg4_dinov2",
            {"embed_dim": 192, "num_heads": 3, "no_embed_class": False},
            {"num_registers": 4, "layer_scale": 1e-3},
        ),
        (
            "vit_giant_patch14_dinov2",
            {"embed_dim": 192, "num_heads": 8, "mlp_ratio": 16 / 3},
            {"num_heads": 8, "layer_scale": 1.0, "mlp": "swiglu"},
        ),
    ],
)
@torch.inference_mode()
def test_a_volume_one_patch_deep_has_the_features_of_its_slice(
    name: str, options: dict[str, object], changes: dict[str, object]
) -> None:
    """Class token and patch tokens of supervised, DINOv2 and SwiGLU networks, on another grid."""
    model = flat_model(name, **options, dynamic_img_size=True)
    grid = (4, 3)
    vit = backbone(position="learned", position_grid=(1, *grid), **changes)
    report = inflated(model, vit)
    assert report.coverage == 1
    assert not report.missing
    grey = picture(grid)
    expected = model.forward_features(as_rgb(grey))
    found = vit(repeated(grey, slices=4))
    torch.testing.assert_close(found.cls_token, expected[:, 0], atol=2e-4, rtol=1e-4)
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(found.patch_tokens, expected[:, prefix:], atol=2e-4, rtol=1e-4)


def test_slices_are_told_apart_by_a_code_of_a_stated_size() -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(1, 24, 1, 3, 5, generator=generator)
    found = fitted_positions(table, grid=(4, 3, 5), flat=True)
    torch.testing.assert_close(found.mean(dim=2), table[:, :, 0], atol=1e-5, rtol=0)
    code = found - table
    torch.testing.assert_close(code, code[..., :1, :1].expand_as(code), atol=1e-5, rtol=0)
    about_mean = table - table.mean(dim=(3, 4), keepdim=True)
    share = code.square().mean().sqrt() / about_mean.square().mean().sqrt()
    assert share.item() == pytest.approx(DEPTH_SHARE, rel=1e-4)
    distances = torch.pdist(code[0, :, :, 0, 0].T)
    assert distances.min() > 0.1
    assert fitted_positions(table, grid=(1, 3, 5), flat=True) is table
    # Along W, where torch resizes lines rightly.
    for size in ((7, 5), (7, 1)):
        plane = nn.functional.interpolate(
            table[:, :, 0].transpose(2, 3), size[::-1], mode="bicubic", antialias=True
        ).transpose(2, 3)
        resized = fitted_positions(table, grid=(1, *size), flat=True)
        torch.testing.assert_close(resized[:, :, 0], plane, atol=1e-5, rtol=0)


def test_a_3d_table_is_resized_along_each_axis_by_itself() -> None:
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(1, 6, 2, 3, 5, generator=generator)
    found = fitted_positions(table, grid=(4, 3, 5), flat=False)
    # Halving the step from two places: the ends stay, a quarter and three quarters lie between.
    shares = torch.tensor([0, 0.25, 0.75, 1])[:, None, None]
    expected = table[:, :, :1] * (1 - shares) + table[:, :, 1:] * shares
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_patch_edges_are_resized_as_flexivit_does() -> None:
    """Against timm's own in 2D; along depth against the least squares that the paper states."""
    weight = torch.randn(7, 1, 1, 6, 10, generator=torch.Generator().manual_seed(5))
    found = fitted_patch(weight, in_chans=1, patch_size=(1, 9, 4))
    expected = resample_patch_embed(weight[:, 0], [9, 4])
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-4)

    deep = torch.randn(2, 1, 3, 1, 1, generator=torch.Generator().manual_seed(6))
    resized = fitted_patch(deep, in_chans=1, patch_size=(5, 1, 1))
    lines = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    stretched = nn.functional.interpolate(
        torch.from_numpy(lines)[:, None, None], (1, 5), mode="bicubic", antialias=True
    ).flatten(1)
    responses = lines @ deep.flatten(1).T.numpy()
    fitted, *_ = np.linalg.lstsq(stretched.numpy(), responses, rcond=1e-4)
    np.testing.assert_allclose(resized.flatten(1).T.numpy(), fitted, atol=1e-4)


def test_channels_that_hold_one_volume_answer_as_before() -> None:
    weight = torch.randn(5, 3, 2, 3, 4, generator=torch.Generator().manual_seed(7))
    found = fitted_patch(weight, in_chans=2, patch_size=(2, 3, 4))
    torch.testing.assert_close(found.sum(dim=1), weight.sum(dim=1))
    assert fitted_patch(weight, in_chans=3, patch_size=(2, 3, 4)) is weight
    turned = fitted_patch(weight, in_chans=3, patch_size=(2, 4, 3))
    assert turned.shape == (5, 3, 2, 4, 3)
    assert not torch.allclose(turned.flatten(1), weight.flatten(1), atol=0.1)


def test_the_report_names_every_tensor_of_both_sides() -> None:
    model = flat_model("vit_small_patch14_reg4_dinov2", embed_dim=192, num_heads=3, num_classes=5)
    vit = backbone(num_registers=2, layer_scale=1e-3, in_chans=2, position="rope")
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    report = inflated(model, vit)
    after = vit.state_dict()
    assert report.missing == ("registers", "absent_embed")
    assert report.unused == ("reg_token", "pos_embed")
    assert report.unexpected == ("head.weight", "head.bias")
    assert set(report.resized) == {"patch_embed.weight"}
    assert {*report.loaded, *report.resized, *report.missing} == set(after)
    for name in after:
        assert torch.equal(before[name], after[name]) == (name in report.missing), name
    numbers = {name: tensor.numel() for name, tensor in after.items()}
    fresh = sum(numbers[name] for name in report.missing)
    assert report.coverage == pytest.approx(1 - fresh / sum(numbers.values()))
    assert "rope 64-1024, where the source has learned" in " ".join(report.lines())


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


@pytest.mark.parametrize(
    ("changes", "damage", "line"),
    [
        ({"num_heads": 4}, None, r"3 heads, the backbone's 4; .* vit.num_heads=3"),
        ({"embed_dim": 144}, None, r"cls_token is \(1, 1, 192\), .* vit.embed_dim"),
        ({"mlp_ratio": 2.0}, None, r"mlp.fc1.weight is \(768, 192\), .* vit.mlp_ratio"),
        ({"layer_scale": 0.1}, None, "source has no blocks.0.ls1.gamma; see vit.layer_scale"),
        ({}, ("blocks.1.attn.qkv.bias", "blocks.1.attn.qvk.bias"), "no blocks.1.attn.qkv.bias"),
        ({}, ("patch_embed.proj.weight", "patch.weight"), "no 'patch_embed.proj.weight'"),
        ({}, ("norm.weight", "norm_pre.weight"), "a norm before its blocks"),
    ],
)
def test_another_network_is_refused(
    changes: dict[str, object], damage: tuple[str, str] | None, line: str
) -> None:
    model = flat_model()
    tensors = dict(model.state_dict())
    if damage:
        rename(tensors, *damage)
    with pytest.raises(InflationError, match=line):
        fit(weights_of_flat(tensors, described(model)), backbone(**changes))


def test_places_that_make_no_grid_are_refused() -> None:
    model = flat_model()
    network = described(model)._replace(grid=(4, 4))
    with pytest.raises(InflationError, match="15 places, which are no square grid"):
        weights_of_flat(model.state_dict(), network)
    assert math.prod(described(model).grid) == 15


def test_deeper_blocks_are_left_out_and_said() -> None:
    model = flat_model(depth=3)
    report = inflated(model, backbone(depth=2))
    assert len([name for name in report.unexpected if name.startswith("blocks.2.")]) == 12
    shallow = inflated(flat_model(depth=1), backbone(depth=2))
    assert {name.split(".")[1] for name in shallow.missing} == {"1"}
    assert 0.5 < shallow.coverage < 0.8
