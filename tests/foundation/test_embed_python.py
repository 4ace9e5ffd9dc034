"""Features of scans and tensors in Python, token maps in space, and modules for timm and MONAI."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional

from foundation.backbone import Backbone, random_backbone
from foundation.embedding.features import InputError, embed, embed_volumes, windowed
from foundation.embedding.modules import MonaiEncoder, TimmBackbone, block_indices
from foundation.embedding.token_map import token_map, write_token_map
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig
from foundation.windows import prepare
from shards.scan import Scan, read_scan

PATCH = (4, 8, 6)
CROP = (8, 16, 18)
WIDTH = 96


def backbone_of(**about: object) -> Backbone:
    vit = {name: about.pop(name) for name in list(about) if name in VitConfig.model_fields}
    config = VitConfig.model_validate({"size": "toy", "depth": 3, "patch_size": PATCH, **vit})
    contract = Preprocessing.model_validate({"crop_shape": CROP, **about})
    return random_backbone(config, preprocessing=contract, seed=0)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbone_of()


def scan_of(shape: tuple[int, int, int], *, seed: int = 0, modality: str = "CT") -> Scan:
    voxels = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 3.0, 1.0, 1.5, 1.0
    return Scan(voxels, (3.0, 1.0, 1.5), modality, affine)


@pytest.mark.parametrize("shape", [(8, 16, 18), (5, 17, 40), (20, 12, 5)])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_scan_and_a_tensor_of_it_give_what_the_artefact_gives(
    shape: tuple[int, int, int], modality: str
) -> None:
    backbone = backbone_of(position="rope_mm")
    scan = scan_of(shape, modality=modality)
    expected = backbone.embed_scan(scan)
    found = embed(backbone, scan)
    np.testing.assert_array_equal(found.cls, expected["cls"])
    np.testing.assert_array_equal(found.mean, expected["mean"])
    other = scan_of(shape, seed=1, modality=modality)
    both = torch.stack([torch.from_numpy(one.voxels) for one in (scan, other)])[:, None]
    batch = embed(backbone, both, modality=modality, spacing_mm=scan.spacing_mm)
    assert batch.cls.shape == batch.mean.shape == (2, WIDTH)
    for row, one in enumerate((scan, other)):
        np.testing.assert_allclose(batch.cls[row], embed(backbone, one).cls, atol=2e-5)
        np.testing.assert_allclose(batch.mean[row], embed(backbone, one).mean, atol=2e-5)


def test_a_file_goes_through_the_contract(tmp_path: Path) -> None:
    backbone = backbone_of(spacing_mm=(4.0, 2.0, 2.0))
    voxels = np.random.default_rng(0).integers(-900, 900, (30, 25, 14)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.0, 3.0, 1.0])), tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii", modality="CT")
    found = embed(backbone, tmp_path / "scan.nii", modality="CT")
    np.testing.assert_array_equal(found.cls, backbone.embed_scan(scan)["cls"])
    finer = embed(backbone, str(tmp_path / "scan.nii"), modality="CT", spacing_mm=(3.0, 1.0, 1.5))
    at_own = backbone.embed_scan(scan, spacing_mm=(3.0, 1.0, 1.5))
    np.testing.assert_array_equal(finer.mean, at_own["mean"])


def test_gradients_reach_the_input_and_weights_that_want_them(backbone: Backbone) -> None:
    volume = torch.zeros(2, 1, 5, 17, 40, requires_grad=True)
    found = embed_volumes(backbone, volume)
    (found.cls.square().sum() + found.mean.square().sum()).backward()
    assert volume.grad is not None
    assert (volume.grad.flatten(1).abs().amax(dim=1) > 0).all()
    assert all(weight.grad is None for weight in backbone.parameters())
    free = backbone_of()
    free.vit.requires_grad_(True)
    embed(free, scan_of((8, 16, 18))).cls.sum().backward()
    assert free.vit.patch_embed.weight.grad is not None


def test_padding_is_air_and_does_not_count(backbone: Backbone) -> None:
    """A short axis gives what the same volume gives with the air around it."""
    volume = torch.rand(1, 1, 8, 12, 18) * 2 - 1
    around = functional.pad(volume, (0, 0, 2, 2), value=-1.0)
    np.testing.assert_allclose(
        embed(backbone, volume).cls, embed(backbone, around).cls, atol=1e-6, rtol=0
    )
    long = torch.cat([around, torch.full_like(around, -1.0)], dim=3)
    assert not torch.allclose(embed(backbone, long).mean, embed(backbone, around).mean, atol=1e-4)


def test_several_sequences_go_in_as_channels() -> None:
    two = backbone_of(in_chans=2)
    volume = torch.rand(3, 2, *CROP) * 2 - 1
    present = torch.tensor([[True, True], [True, False], [True, True]])
    found = embed_volumes(two, volume, present=present)
    changed = volume.clone()
    changed[1, 1] = 0.0
    again = embed_volumes(two, changed, present=present)
    torch.testing.assert_close(found.cls, again.cls)
    with pytest.raises(InputError, match="takes 2 sequences at once"):
        embed(two, scan_of(CROP))


def test_what_a_tensor_must_be(backbone: Backbone) -> None:
    for volume, words, said in (
        (torch.zeros(1, *CROP), {}, r"a batch is \(B, 1, D, H, W\)"),
        (torch.zeros(2, 3, *CROP), {}, r"a batch is \(B, 1, D, H, W\), got \(2, 3"),
        (torch.full((1, 1, *CROP), 400.0), {}, "values from 400 to 400"),
        (torch.full((1, 1, *CROP), torch.nan), {}, "values from nan"),
        (torch.zeros(1, 1, *CROP), {"modality": "XR"}, "modality 'XR'"),
        (torch.zeros(3, 1, *CROP), {"spacing_mm": torch.ones(2, 3)}, r"is \(3,\) or \(3, 3\)"),
    ):
        with pytest.raises(InputError, match=said):
            embed(backbone, volume, **words)
    with pytest.raises(InputError, match="positions are in mm: give spacing_mm"):
        embed(backbone_of(position="rope_mm"), torch.zeros(1, 1, *CROP))
    with pytest.raises(InputError, match="of a scan is three numbers"):
        embed(backbone, scan_of(CROP), spacing_mm=torch.ones(3))


OBLIQUE = nib.eulerangles.euler2mat(0.3, -0.2, 0.15)


@pytest.mark.parametrize("target", [None, (2.0, 1.5, 2.5)])
@pytest.mark.parametrize("shape", [(21, 34, 12), (9, 7, 30)])
@pytest.mark.parametrize("turned", [False, True])
def test_each_token_lies_where_its_patch_lay(
    tmp_path: Path,
    target: tuple[float, float, float] | None,
    shape: tuple[int, int, int],
    turned: bool,
) -> None:
    """A bright voxel, found again in the file of the map by millimetres alone."""
    backbone = backbone_of(spacing_mm=target, depth=1, position_scale=0.01)
    affine = np.eye(4)
    # Stored as (left, up, front), with unequal edges, off the origin.
    axes = np.array([[-1.2, 0, 0], [0, 0, 1.0], [0, 2.4, 0]])
    affine[:3, :3] = (OBLIQUE if turned else np.eye(3)) @ axes
    affine[:3, 3] = 40, -25, 13
    rng = np.random.default_rng(1)
    for _ in range(3):
        place = tuple(int(rng.integers(2, size - 2)) for size in shape)
        maps = []
        for value in (0, 3000):
            voxels = np.zeros(shape, np.int16)
            voxels[place] = value
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
            scan = read_scan(tmp_path / "scan.nii", modality="CT")
            with torch.inference_mode():
                write_token_map(tmp_path / "map.nii", token_map(backbone, scan))
            maps.append(nib.load(tmp_path / "map.nii"))
            maps[-1].get_fdata()
        change = np.abs(maps[1].get_fdata() - maps[0].get_fdata()).sum(axis=-1)
        token = np.array(np.unravel_index(change.argmax(), change.shape))
        at_mm = nib.affines.apply_affine(affine, place)
        found = nib.affines.apply_affine(np.linalg.inv(maps[1].affine), at_mm)
        # Its own patch covers half a token to each side; resampled, a voxel spreads to the next.
        spread = 0.0 if target is None else 0.3
        assert (np.abs(found - token) <= 0.5 + spread + 1e-4).all(), (found, token)


def test_a_map_covers_the_scan_and_no_padding(backbone: Backbone, tmp_path: Path) -> None:
    scan = scan_of((9, 7, 30))
    found = token_map(backbone, scan)
    before = np.array(
        prepare(
            scan, preprocessing=Preprocessing(crop_shape=CROP), device="cpu", patch_size=PATCH
        ).before
    )
    stop = -(-(before + scan.voxels.shape) // PATCH)
    assert tuple(found.tokens.shape) == (*(stop - before // PATCH), WIDTH)
    write_token_map(tmp_path / "deep/map.nii", found)
    image = nib.load(tmp_path / "deep/map.nii")
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_zooms()[:3] == (9.0, 8.0, 12.0)  # (w, h, d) of a patch, in mm
    np.testing.assert_array_equal(
        image.get_fdata(dtype=np.float32).transpose(2, 1, 0, 3), found.tokens
    )
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    # Without geometry: the same grid, at the origin.
    bare = token_map(backbone, Scan(scan.voxels, scan.spacing_mm, "CT"))
    torch.testing.assert_close(bare.tokens, found.tokens)
    np.testing.assert_allclose(bare.affine, found.affine)


def test_timm_module(backbone: Backbone) -> None:
    model = TimmBackbone(backbone)
    volume = torch.rand(2, 1, 8, 15, 18) * 2 - 1  # H is no whole number of patches
    padded = functional.pad(volume, (0, 0, 0, 1), value=-1.0)
    output = backbone.vit(padded)
    features = model.forward_features(volume)
    assert features.shape == (2, 1 + 12, model.num_features)
    torch.testing.assert_close(features[:, 0], output.cls_token)
    torch.testing.assert_close(features[:, model.num_prefix_tokens :], output.patch_tokens)
    torch.testing.assert_close(model(volume), output.cls_token)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(volume), output.patch_tokens.mean(dim=1))
    model.reset_classifier(5)
    assert model(volume).shape == (2, 5)
    torch.testing.assert_close(
        model.forward_head(features, pre_logits=True), output.patch_tokens.mean(dim=1)
    )
    assert [info["reduction"] for info in model.feature_info] == [PATCH] * 3


def test_timm_intermediates_are_those_of_the_blocks(backbone: Backbone) -> None:
    model = TimmBackbone(backbone)
    volume = torch.rand(2, 1, 8, 16, 24) * 2 - 1
    final, maps = model.forward_intermediates(volume, norm=True)
    torch.testing.assert_close(final, model.forward_features(volume))
    crops = model._crops(volume, None)
    expected = backbone.vit.last_layers(crops, num=3)[::-1]
    for found, layer in zip(maps, expected, strict=True):
        assert found.shape == (2, WIDTH, 2, 2, 4)
        raster = found.permute(0, 2, 3, 4, 1).flatten(1, 3)
        torch.testing.assert_close(raster, layer.patch_tokens)
    plain, tokens = model.forward_intermediates(
        volume, indices=[0, -1], output_fmt="NLC", return_prefix_tokens=True
    )
    torch.testing.assert_close(plain, final)
    assert [part.shape for part in tokens[0]] == [(2, 16, WIDTH), (2, 1, WIDTH)]
    torch.testing.assert_close(backbone.vit.norm(tokens[1][0]), expected[2].patch_tokens)
    only = model.forward_intermediates(volume, indices=2, intermediates_only=True)
    assert len(only) == 2
    assert block_indices(None, depth=3) == [0, 1, 2]
    for wrong in ([3], 4, 0, []):
        with pytest.raises(InputError, match="blocks 0 to 2"):
            block_indices(wrong, depth=3)


def test_a_trainable_module_is_a_copy_and_a_frozen_one_stays_so(backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    model = TimmBackbone(backbone, num_classes=2, trainable=True).train()
    model.set_grad_checkpointing()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    volume = torch.rand(2, 1, *CROP) * 2 - 1
    functional.cross_entropy(model(volume), torch.tensor([0, 1])).backward()
    assert all(each.grad is not None for each in model.vit.parameters())
    optimiser.step()
    for name, value in backbone.vit.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    frozen = TimmBackbone(backbone, num_classes=2).train()
    assert frozen.training
    assert not frozen.vit.training
    functional.cross_entropy(frozen(volume), torch.tensor([0, 1])).backward()
    assert all(each.grad is None for each in frozen.vit.parameters())
    assert frozen.head.weight.grad is not None


def test_monai_decoder_takes_the_encoders_maps(backbone: Backbone) -> None:
    blocks = pytest.importorskip("monai.networks.blocks")
    encoder = MonaiEncoder(backbone, num_maps=3, trainable=True)
    volume = torch.rand(2, 1, 8, 13, 18) * 2 - 1
    maps = encoder(volume)
    assert encoder.channels == [WIDTH] * 3
    assert [each.shape for each in maps] == [(2, WIDTH, 2, 2, 3)] * 3
    last = backbone.vit(functional.pad(volume, (0, 0, 0, 3), value=-1.0)).patch_tokens
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), last)
    up = blocks.UnetrUpBlock(3, WIDTH, 8, 3, 2, "instance")
    skip = blocks.UnetrPrUpBlock(3, WIDTH, 8, 0, 3, 1, 2, "instance")
    out = up(maps[-1], skip(maps[0]))
    assert out.shape == (2, 8, 4, 4, 6)
    out.sum().backward()
    assert encoder.vit.patch_embed.weight.grad is not None
    assert MonaiEncoder(backbone, num_maps=2).indices == [0, 2]
    with pytest.raises(InputError, match="num_maps is 1 to 3"):
        MonaiEncoder(backbone)


def test_windowed_is_the_contracts_window() -> None:
    contract = Preprocessing(crop_shape=CROP, window_hu=(-100.0, 300.0))
    volume = torch.tensor([-200.0, 100.0, 200.0]).reshape(1, 1, 1, 1, 3)
    found = windowed(volume, modality="CT", preprocessing=contract)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 0.0, 0.5]))
