"""Layers, windows and grids of tokens, against references that are written another way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.network.patches import patchify
from foundation.preprocessing import Preprocessing
from foundation.vit import Crops, Vit3d, VitConfig, build_vit
from foundation.windows import (
    Layers,
    Prepared,
    Tokens,
    merge_windows,
    pool_scan,
    pool_windows,
    prepare,
)
from shards.scan import Scan

PATCH, CROP = (2, 3, 4), (4, 6, 12)
PREPROCESSING = Preprocessing(crop_shape=CROP)


def scan(shape: tuple[int, int, int], value: int = 0) -> Scan:
    voxels = np.full(shape, value, np.int16)
    return Scan(voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT", metadata={})


def brightness(windows: Tensor) -> Layers:
    """A network whose tokens are the mean intensity of their patch and of the whole window."""
    patches = patchify(windows, patch_size=PATCH).mean(dim=2, keepdim=True)
    return [Tokens(windows.mean(dim=(2, 3, 4)), patches)]


@pytest.fixture
def vit() -> Vit3d:
    torch.manual_seed(5)
    config = VitConfig(size="toy", embed_dim=48, patch_size=PATCH, depth=3, position="rope_mm")
    return build_vit(config).eval()


@torch.inference_mode()
def test_the_last_layers_are_what_hooks_on_the_blocks_see(vit: Vit3d) -> None:
    seen: list[Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    volume = torch.rand(2, 1, *CROP) * 2 - 1
    spacing = torch.tensor([[3.0, 1.0, 1.5], [2.0, 2.0, 1.0]])
    layers = vit.last_layers(Crops(volume, spacing), num=2)
    assert len(layers) == 2
    for layer, output in zip(layers, [seen[2], seen[1]], strict=True):
        tokens = vit.norm(output).view(2, vit.num_prefix + 12, 48)
        torch.testing.assert_close(layer.cls_token, tokens[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(layer.patch_tokens, tokens[:, 5:], rtol=0, atol=0)
    whole = vit(volume, spacing_mm=spacing)
    assert torch.equal(layers[0].cls_token, whole.cls_token)
    assert torch.equal(layers[0].patch_tokens, whole.patch_tokens)
    assert len(vit.last_layers(Crops(volume, spacing), num=9)) == 3


def test_crops_pooled_are_the_scan() -> None:
    prepared = prepare(scan((10, 9, 20)), preprocessing=PREPROCESSING, device="cpu")
    noise = torch.rand(prepared.volume.shape, generator=torch.Generator().manual_seed(0))
    prepared = prepared._replace(volume=noise)
    pooled = pool_scan(brightness, prepared, crop_shape=CROP, patch_size=PATCH)
    assert len(pooled.crop_cls) == 3 * 2 * 2
    torch.testing.assert_close(pooled.crop_cls.mean(dim=0), pooled.cls[0])
    torch.testing.assert_close(pooled.crop_mean.mean(dim=0), pooled.mean[0])


def test_padding_has_no_part_in_means_and_samples() -> None:
    """6 voxels of 12 are the scan's, in the middle: of three patches the second, and halves."""
    prepared = prepare(scan((4, 6, 6), 500), preprocessing=PREPROCESSING, device="cpu")
    assert prepared.before == (0, 0, 3)
    # The outer patches see one voxel column of four each.
    expected = (0.5 - 1 - 1 - 1) / 4
    pooled = pool_scan(brightness, prepared, crop_shape=CROP, patch_size=PATCH, most_patches=100)
    assert sorted(set(pooled.patch[:, 0].tolist())) == pytest.approx([expected, 0.5])
    narrow = prepare(scan((4, 6, 4), 500), preprocessing=PREPROCESSING, device="cpu")
    pooled = pool_scan(brightness, narrow, crop_shape=CROP, patch_size=PATCH, most_patches=100)
    assert pooled.patch.shape == (4, 1)
    assert pooled.mean.item() == pytest.approx(0.5)
    assert pooled.crop_mean.item() == pytest.approx(0.5)
    assert pooled.cls.item() == pytest.approx((0.5 - 2) / 3)


def test_a_sample_of_patches_is_spread_over_all_windows_without_repeats() -> None:
    numbers = torch.arange(5 * 40.0).view(5, 40, 1)
    weight = torch.ones(5, 40)
    weight[2, :30] = 0
    outputs = [[Tokens(None, numbers[:3])], [Tokens(None, numbers[3:])]]
    pooled = pool_windows(outputs, weight=weight, most_patches=34)
    kept = pooled.patch[:, 0]
    counting = weight.flatten().nonzero()[:, 0]
    place = torch.searchsorted(counting, kept.long())
    assert torch.equal(counting[place], kept.long())
    assert torch.equal(place // 5, torch.arange(34))
    assert len(set((kept.long() % 5).tolist())) == 5, "no period of the raster"
    assert torch.equal(pooled.cls, pooled.mean), "no class token"
    assert len(pool_windows(outputs, weight=weight, most_patches=500).patch) == 170


def test_a_bright_voxel_is_in_the_token_that_covers_it() -> None:
    """On a grid that is neither cubic nor isotropic, with padding in front and overlap."""
    shape = (9, 10, 21)
    for at in ((0, 0, 0), (8, 9, 20), (5, 4, 13), (2, 7, 16)):
        volume = scan(shape, -1000)
        volume.voxels[at] = 1000
        prepared = prepare(volume, preprocessing=PREPROCESSING, device="cpu", patch_size=PATCH)
        assert prepared.volume.shape == (10, 12, 24)
        assert prepared.before == (0, 1, 1)
        tokens = merge_windows(brightness, prepared, crop_shape=CROP, patch_size=PATCH)
        assert tokens.shape == (5, 4, 6, 1)
        expected = torch.full((5, 4, 6), -1.0)
        d, h, w = (place + gap for place, gap in zip(at, prepared.before, strict=True))
        cell = (d // PATCH[0], h // PATCH[1], w // PATCH[2])
        expected[cell] += 2 / 24
        torch.testing.assert_close(tokens[..., 0], expected)


def test_overlapping_windows_are_averaged() -> None:
    calls = iter(range(100))

    def numbered(windows: Tensor) -> Layers:
        number = torch.tensor([float(next(calls)) for _ in windows])
        return [Tokens(None, number[:, None, None].expand(-1, 12, 2))]

    prepared = Prepared(torch.zeros(6, 6, 12), torch.ones(6, 6, 12), (0, 0, 0))
    tokens = merge_windows(numbered, prepared, crop_shape=CROP, patch_size=PATCH)
    assert tokens.shape == (3, 2, 3, 2)
    assert tokens[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]


def test_the_tokens_of_one_window_are_the_networks_own(vit: Vit3d) -> None:
    prepared = prepare(scan(CROP, 300), preprocessing=PREPROCESSING, device="cpu")
    spacing = torch.tensor([[3.0, 1.0, 1.5]])

    @torch.inference_mode()
    def network(windows: Tensor) -> Layers:
        return [Tokens(*vit(windows, spacing_mm=spacing))]

    tokens = merge_windows(network, prepared, crop_shape=CROP, patch_size=PATCH)
    expected = network(prepared.volume[None, None])[0].patch_tokens
    assert torch.equal(tokens, expected.view(2, 2, 3, 48))
