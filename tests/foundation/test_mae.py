import numpy as np
import pytest
import torch

from foundation.mae import MaeConfig, build_mae
from foundation.network.patches import patchify
from foundation.objective.mae_loss import AIR_BELOW, masked_error, patch_statistics, voxel_weights
from foundation.objective.masking import random_mask
from foundation.preprocessing import Preprocessing, inside_mask, normalise_batch
from foundation.vit import VitConfig, build_vit
from recipes.load import RecipeError, parse
from shards.scan import MODALITIES
from shards.streaming.batch import CropBatch

PATCH = (2, 4, 3)
# A grid of 2 x 3 x 5 patches.
SHAPE = (4, 12, 15)
PREPROCESSING = Preprocessing(crop_shape=SHAPE, window_hu=(-300, 300))
POSITIONS = [0, 1, 2, 7]


def _mae(*, vit: dict | None = None, **objective):
    torch.manual_seed(0)
    decoder = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2}
    config = MaeConfig(**decoder, **objective)
    backbone = build_vit(VitConfig(size="toy", patch_size=PATCH, depth=2, **(vit or {})))
    return build_mae(config, vit=backbone, preprocessing=PREPROCESSING, total_steps=10, seed=3)


def _two_channels(crop_batch) -> CropBatch:
    """CT beside MR; the second subject lacks the MR."""
    one, two = (crop_batch(SHAPE, positions=[first, first + 1]) for first in (0, 7))
    both = {
        name: torch.cat([getattr(one, name), getattr(two, name)], dim=1)
        for name in ("volume", "slope", "intercept", "statistics")
    }
    modality = torch.tensor([[MODALITIES.index("CT"), MODALITIES.index("MR")]] * 2)
    present = torch.tensor([[True, True], [True, False]])
    return one._replace(**both, modality=modality, present=present)


def _reference_loss(volume, prediction, mask, inside, *, norm_pix_loss: bool) -> float:
    """Eq. of sec. 3 of the paper, voxel by voxel: no patchify, no reshaping."""
    losses = []
    for sample in range(len(volume)):
        total, count = 0.0, 0
        patch_index = 0
        for d in range(0, SHAPE[0], PATCH[0]):
            for h in range(0, SHAPE[1], PATCH[1]):
                for w in range(0, SHAPE[2], PATCH[2]):
                    box = (
                        slice(d, d + PATCH[0]),
                        slice(h, h + PATCH[1]),
                        slice(w, w + PATCH[2]),
                    )
                    voxels, valid = volume[sample, 0][box], inside[sample, 0][box]
                    if mask[sample, patch_index] and valid.any():
                        if norm_pix_loss:
                            deviation = np.sqrt(voxels[valid].var() + 1e-6)
                            voxels = (voxels - voxels[valid].mean()) / deviation
                        guess = prediction[sample, patch_index].reshape(PATCH)
                        total += ((voxels - guess)[valid] ** 2).sum()
                        count += valid.sum()
                    patch_index += 1
        losses.append(total / count)
    return float(np.mean(losses))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_equals_a_voxelwise_reference(crop_batch, norm_pix_loss: bool) -> None:
    mae = _mae(norm_pix_loss=norm_pix_loss)
    batch = crop_batch(SHAPE, positions=POSITIONS)
    view = normalise_batch(batch, preprocessing=PREPROCESSING)
    token_mask = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3)
    with torch.no_grad():
        loss, _ = mae(batch, 0)
        prediction = mae._predict(view, batch=batch, keep=token_mask.keep).double().numpy()
    volume, inside = view.volume.double().numpy(), view.inside.numpy()
    arguments = (volume, prediction, token_mask.mask.numpy(), inside)
    want = _reference_loss(*arguments, norm_pix_loss=norm_pix_loss)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    # The reference notices a swapped axis: it must not agree with one.
    swapped = np.ascontiguousarray(prediction.reshape(4, 2, 3, 5, -1).transpose(0, 1, 3, 2, 4))
    wrong = (arguments[0], swapped.reshape(4, 30, -1), *arguments[2:])
    assert _reference_loss(*wrong, norm_pix_loss=norm_pix_loss) != pytest.approx(want, rel=1e-5)


def test_gradient_falls_exactly_on_hidden_voxels_inside_the_scan(crop_batch) -> None:
    mae = _mae()
    batch = crop_batch(SHAPE, positions=POSITIONS)
    seen: list[torch.Tensor] = []
    mae.decoder.register_forward_hook(
        lambda _module, _inputs, output: (output.retain_grad(), seen.append(output))[0]
    )
    loss, _ = mae(batch, 0)
    loss.backward()
    inside = inside_mask(batch.inside, SHAPE)
    mask = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3).mask
    counted = patchify(inside, patch_size=PATCH) & mask[..., None]
    assert counted.any()
    assert not counted.all()
    assert torch.equal(seen[0].grad != 0, counted)


def test_no_gradient_falls_under_the_face(crop_batch) -> None:
    """The face is not asked for, and not part of a patch's mean and spread."""
    mae = _mae()
    batch = crop_batch(SHAPE, positions=POSITIONS)
    face = torch.zeros(4, 1, *SHAPE, dtype=torch.uint8)
    face[:2, :, :, :5, 2:9] = 3
    batch = batch._replace(masks=face)
    seen: list[torch.Tensor] = []
    mae.decoder.register_forward_hook(
        lambda _module, _inputs, output: (output.retain_grad(), seen.append(output))[0]
    )
    loss, _ = mae(batch, 0)
    loss.backward()
    hidden = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3).mask[..., None]
    inside = patchify(inside_mask(batch.inside, SHAPE), patch_size=PATCH)
    under = patchify(face > 0, patch_size=PATCH)
    assert (hidden & inside & under).any()
    assert torch.equal(seen[0].grad != 0, hidden & inside & ~under)

    volume = batch.volume.clone()
    volume[face > 0] = 777
    changed = normalise_batch(batch._replace(volume=volume), preprocessing=PREPROCESSING)
    plain = normalise_batch(batch, preprocessing=PREPROCESSING)
    counted = patchify(plain.counted, patch_size=PATCH)
    statistics = [
        patch_statistics(patchify(each.volume, patch_size=PATCH), counted=counted)
        for each in (plain, changed)
    ]
    assert not torch.equal(plain.volume, changed.volume)
    for one, other in zip(*statistics, strict=True):
        torch.testing.assert_close(one, other)


def test_channels_that_are_absent_are_not_asked_for(crop_batch) -> None:
    mae = _mae(vit={"in_chans": 2})
    batch = _two_channels(crop_batch)
    seen: list[torch.Tensor] = []
    hook = mae.decoder.register_forward_hook(
        lambda _module, _inputs, output: (output.retain_grad(), seen.append(output))[0]
    )
    loss, _ = mae(batch, 0)
    loss.backward()
    hook.remove()
    hidden = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3).mask[..., None]
    wanted = inside_mask(batch.inside, SHAPE) & batch.present[..., None, None, None]
    assert torch.equal(seen[0].grad != 0, hidden & patchify(wanted, patch_size=PATCH))
    assert mae.reconstruct(batch).original.shape == (2, 2, *SHAPE)


def test_a_sample_made_of_padding_costs_nothing() -> None:
    prediction = torch.ones(2, 3, 4, requires_grad=True)
    weight = torch.zeros(2, 3, 4, dtype=torch.bool)
    weight[0, 1] = True
    loss = masked_error(prediction, target=torch.zeros(2, 3, 4), weight=weight)
    loss.backward()
    assert loss.item() == 0.5
    assert torch.equal(prediction.grad != 0, weight)


def test_statistics_leave_padding_out_and_survive_a_constant_patch() -> None:
    patches = torch.tensor([[[1.0, 3.0, -1.0], [2.0, 2.0, 2.0], [5.0, 5.0, 5.0]]])
    inside = torch.tensor([[[True, True, False], [True] * 3, [False] * 3]])
    mean, std = patch_statistics(patches, counted=inside)
    torch.testing.assert_close(mean.flatten(), torch.tensor([2.0, 2.0, 0.0]))
    torch.testing.assert_close(std.flatten(), torch.tensor([1.0, 1e-3, 1e-3]), atol=1e-6, rtol=0)


def test_hidden_voxels_never_reach_the_encoder(crop_batch) -> None:
    mae = _mae().eval()
    batch = crop_batch(SHAPE, positions=POSITIONS)
    view = normalise_batch(batch, preprocessing=PREPROCESSING)
    token_mask = random_mask(torch.tensor(POSITIONS), num_tokens=30, mask_ratio=0.75, seed=3)
    view.volume.requires_grad_()
    mae._predict(view, batch=batch, keep=token_mask.keep).square().sum().backward()
    assert view.volume.grad is not None
    touched = patchify(view.volume.grad, patch_size=PATCH).abs().sum(-1) > 0
    assert torch.equal(touched, ~token_mask.mask)


def test_the_loss_is_a_function_of_batch_and_seed(crop_batch) -> None:
    mae = _mae()
    torch.manual_seed(1)
    first, _ = mae(crop_batch(SHAPE, positions=POSITIONS), 0)
    torch.manual_seed(2)
    again, _ = mae(crop_batch(SHAPE, positions=POSITIONS), 0)
    assert torch.equal(first, again)


def test_parts_of_a_batch_average_to_the_whole(crop_batch) -> None:
    mae = _mae()
    whole, _ = mae(crop_batch(SHAPE, positions=POSITIONS), 0)
    halves = [mae(crop_batch(SHAPE, positions=part), 0)[0] for part in ([0, 1], [2, 7])]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_reconstruction_shows_the_input_where_it_was_visible(crop_batch, norm_pix_loss) -> None:
    mae = _mae(norm_pix_loss=norm_pix_loss)
    batch = crop_batch(SHAPE, positions=POSITIONS)
    original, rebuilt, mask = mae.reconstruct(batch)
    assert rebuilt.shape == mask.shape == (4, 1, *SHAPE)
    assert mask.dtype == torch.bool
    assert torch.equal(rebuilt[~mask], original[~mask])
    inside = inside_mask(batch.inside, SHAPE)
    assert not inside.all()
    assert torch.equal(rebuilt[~inside], original[~inside])
    assert (rebuilt[mask & inside] != original[mask & inside]).float().mean() > 0.99
    patches = patchify(mask, patch_size=PATCH)
    assert torch.equal(patches.all(-1), patches.any(-1))


def test_a_perfect_prediction_reconstructs_the_scan(crop_batch) -> None:
    mae = _mae()
    batch = crop_batch(SHAPE, positions=POSITIONS)
    volume, inside = normalise_batch(batch, preprocessing=PREPROCESSING)[:2]
    patches = patchify(volume, patch_size=PATCH)
    mean, std = patch_statistics(patches, counted=patchify(inside, patch_size=PATCH))
    mae.decoder.register_forward_hook(lambda *_: (patches - mean) / std)
    assert mae(batch, 0)[0].item() < 1e-10
    original, rebuilt, _ = mae.reconstruct(batch)
    torch.testing.assert_close(rebuilt, original, atol=1e-5, rtol=0)


def test_every_parameter_learns_and_is_in_one_group(crop_batch) -> None:
    mae = _mae()
    loss, _ = mae(crop_batch(SHAPE, positions=POSITIONS), 0)
    loss.backward()
    silent = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    groups = mae.param_groups(0.05)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in mae.parameters())
    names = {id(p): name for name, p in mae.named_parameters()}
    free = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert {"backbone.cls_token", "backbone.registers", "decoder.mask_token"} < free
    assert not any(name.endswith("weight") and "norm" not in name for name in free)


def test_it_learns_to_rebuild_a_batch(crop_batch) -> None:
    mae = _mae(norm_pix_loss=False)
    batch = crop_batch(SHAPE, positions=POSITIONS)
    optimiser = torch.optim.AdamW(mae.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        loss, _ = mae(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_crop_that_patches_do_not_tile_is_refused() -> None:
    vit = build_vit(VitConfig(size="toy", patch_size=PATCH, depth=1))
    preprocessing = Preprocessing(crop_shape=(4, 12, 16))
    with pytest.raises(ValueError, match="choose a crop_shape"):
        build_mae(MaeConfig(), vit=vit, preprocessing=preprocessing, total_steps=1, seed=0)


def test_a_decoder_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(RecipeError, match="decoder_embed_dim must be a multiple of 6"):
        parse({"decoder_embed_dim": 100}, MaeConfig, where="recipe")


def test_targets_are_normalised_by_modality_and_channel(crop_batch) -> None:
    """CT is asked for in its window, the MR beside it patch by patch, by its own statistics."""
    mae = _mae(vit={"in_chans": 2}, norm_pix_loss=("MR",))
    batch = _two_channels(crop_batch)
    view = normalise_batch(batch, preprocessing=PREPROCESSING)
    ct, mr = (patchify(view.volume[:, c : c + 1], patch_size=PATCH) for c in (0, 1))
    counted = patchify(view.counted[:, 1:], patch_size=PATCH)
    mean, std = patch_statistics(mr, counted=counted)
    perfect = torch.cat([ct, (mr - mean) / std], dim=-1)
    mae.decoder.register_forward_hook(lambda *_: perfect)
    assert mae(batch, 0)[0].item() < 1e-10
    torch.testing.assert_close(
        mae.reconstruct(batch).reconstruction, view.volume, atol=1e-5, rtol=0
    )


def test_several_masks_of_a_crop_cost_their_mean(crop_batch) -> None:
    """Two masks of one crop: the mean of the losses under each, and different masks."""
    mae = _mae(num_masks=2)
    batch = crop_batch(SHAPE, positions=POSITIONS)
    keep, mask = mae._masks(batch, num_masks=2)
    assert keep.shape == (8, 8)
    assert (mask[0::2] != mask[1::2]).any(dim=1).all()
    view = normalise_batch(batch, preprocessing=PREPROCESSING)
    patches, counted = (patchify(v, patch_size=PATCH) for v in (view.volume, view.counted))
    mean, std = patch_statistics(patches, counted=counted)
    losses = []
    for draw in (0, 1):
        one = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3, draw=draw)
        prediction = mae._predict(view, batch=batch, keep=one.keep)
        weight = counted & one.mask[..., None]
        losses.append(masked_error(prediction, target=(patches - mean) / std, weight=weight))
    torch.testing.assert_close(mae(batch, 0)[0], torch.stack(losses).mean(), rtol=1e-5, atol=0)


def test_air_makes_up_no_more_than_its_share() -> None:
    patches = torch.full((1, 6, 4), -1.0)
    patches[0, 4:] = 0.3
    patches[0, 3, 0] = AIR_BELOW + 0.1  # not nothing but air
    counted = torch.ones(1, 6, 4, dtype=torch.bool)
    counted[0, 5, 0] = False
    hidden = torch.tensor([[[True, True, True, False, True, True], [False] * 4 + [True] * 2]])
    weight = voxel_weights(patches, counted=counted, hidden=hidden, max_air_share=0.25)
    assert weight[0, 0, :3].sum() / weight[0, 0].sum() == pytest.approx(0.25)
    assert torch.equal(weight > 0, hidden[..., None] & counted[:, None])
    assert (weight[0, 1] == (hidden[0, 1][:, None] & counted[0]).float()).all()
    none = voxel_weights(patches, counted=counted, hidden=hidden, max_air_share=0.0)
    assert not none[0, 0, :3].any()
    plenty = voxel_weights(patches, counted=counted, hidden=hidden, max_air_share=0.9)
    assert torch.equal(plenty, (hidden[..., None] & counted[:, None]).float())


@pytest.mark.parametrize("masking", ["random", "block"])
def test_either_masking_trains_with_positions_in_mm(crop_batch, masking: str) -> None:
    mae = _mae(vit={"position": "rope_mm"}, masking=masking, channel_drop=0.5)
    batch = crop_batch(SHAPE, positions=POSITIONS)
    loss, _ = mae(batch, 0)
    loss.backward()
    silent = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    stretched = batch._replace(spacing_mm=batch.spacing_mm * torch.tensor([1.0, 4.0, 1.0]))
    assert mae(stretched, 0)[0] != loss


def test_hidden_sequences_are_still_asked_for(crop_batch) -> None:
    """What the encoder does not get to see of a sequence, the loss goes on asking for."""
    mae = _mae(vit={"in_chans": 2}, channel_drop=0.99)
    batch = _two_channels(crop_batch)
    seen: list[torch.Tensor] = []
    mae.decoder.register_forward_hook(
        lambda _module, _inputs, output: (output.retain_grad(), seen.append(output))[0]
    )
    mae(batch, 0)[0].backward()
    hidden = random_mask(batch.position, num_tokens=30, mask_ratio=0.75, seed=3).mask[..., None]
    wanted = inside_mask(batch.inside, SHAPE) & batch.present[..., None, None, None]
    assert torch.equal(seen[0].grad != 0, hidden & patchify(wanted, patch_size=PATCH))


def test_a_modality_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RecipeError, match="norm_pix_loss names MRI; modalities are"):
        parse({"norm_pix_loss": ["MRI"]}, MaeConfig, where="mae")
