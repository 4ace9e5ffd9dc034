"""The tuned network: its pooling is the one that embeds scans, its maps are those of the blocks."""

import pytest
import torch
from torch import Tensor, nn

from foundation.finetuning.heads import HeadConfig, build_head, head_draws
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.finetuning.tuning import TuneConfig, set_tuning
from foundation.network.patches import Shape
from foundation.preprocessing import window_starts
from foundation.running.randomness import path_draws
from foundation.vit import Crops, Vit3d, VitConfig, build_vit
from foundation.windows import Layers, Prepared, Tokens, pool_scan

PATCH, CROP = (2, 3, 4), (4, 6, 12)
SPACING_MM = (3.0, 1.0, 1.5)
LABELS = Target(task="t", kind="multiclass", outputs=("a", "b", "c"))
MASKS = Target(task="t", kind="segmentation", outputs=("a", "b"), mask_values={"a": 1, "b": 2})


class Weighing(nn.Module):
    """A decoder of the simplest kind: each map's first channels, repeated over their patches."""

    indices = (2, 0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0, 3.0]))

    def forward(self, volume: Tensor, maps: list[Tensor]) -> Tensor:
        voxels = [
            each[:, :3]
            .repeat_interleave(PATCH[0], 2)
            .repeat_interleave(PATCH[1], 3)
            .repeat_interleave(PATCH[2], 4)
            for each in maps
        ]
        first, second, third = self.weight
        return first * voxels[0] + second * voxels[1] + third * volume[:, :1]


def vit_of(**changes: object) -> Vit3d:
    torch.manual_seed(5)
    config = VitConfig(size="toy", embed_dim=48, patch_size=PATCH, depth=3, position="rope_mm")
    return build_vit(config.model_copy(update=changes))


def labeller(
    tune: TuneConfig | None = None, *, head: HeadConfig | None = None, **changes: object
) -> TunedNetwork:
    vit = vit_of(**changes)
    set_tuning(vit, tune or TuneConfig())
    built = build_head(head or HeadConfig(), embed_dim=48, target=LABELS)
    nn.init.normal_(built.layers[-1].weight, std=0.2)
    return TunedNetwork(vit, built, LABELS)


def prepared_of(shape: Shape, *, padding: Shape, seed: int) -> Prepared:
    """Noise, with so much padding behind the scan on each axis."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    inside = torch.ones(shape)
    for axis, gap in enumerate(padding):
        inside.narrow(axis, shape[axis] - gap, gap).zero_()
    return Prepared(noise, inside, (0, 0, 0))


def windows_of(prepared: Prepared) -> tuple[Tensor, Tensor]:
    boxes = [
        tuple(slice(start, start + edge) for start, edge in zip(place, CROP, strict=True))
        for place in window_starts(prepared.volume.shape, CROP)
    ]
    volume, inside = (
        torch.stack([values[box] for box in boxes])[:, None]
        for values in (prepared.volume, prepared.inside)
    )
    return volume, inside > 0


def crops_of(num: int, *, draws: Tensor | None = None) -> tuple[Crops, Tensor]:
    noise = torch.Generator().manual_seed(2)
    volume = torch.rand(num, 1, *CROP, generator=noise) * 2 - 1
    inside = torch.ones(num, 1, *CROP, dtype=torch.bool)
    inside[1, :, :, :, 5:] = False
    return Crops(volume, torch.tensor([SPACING_MM]).expand(num, -1), draws=draws), inside


@torch.inference_mode()
def test_pooled_is_what_embedding_pools_and_the_head_behind_it() -> None:
    network = labeller().eval()
    scans = [prepared_of((7, 6, 20), padding=(1, 2, 9), seed=0),
             prepared_of((4, 11, 15), padding=(0, 5, 0), seed=1)]  # fmt: skip
    volumes, insides = zip(*(windows_of(scan) for scan in scans), strict=True)
    assert [len(volume) for volume in volumes] == [4, 4]
    volume, inside = torch.cat(volumes), torch.cat(insides)
    crops = Crops(volume, torch.tensor([SPACING_MM]).expand(8, -1))

    def embed(windows: Tensor) -> Layers:
        spacing = torch.tensor([SPACING_MM]).expand(len(windows), -1)
        output = network.vit(windows, spacing_mm=spacing)
        return [Tokens(output.cls_token, output.patch_tokens)]

    pooled = [pool_scan(embed, scan, crop_shape=CROP, patch_size=PATCH) for scan in scans]
    want = torch.stack([torch.cat([each.cls[0], each.mean[0]]) for each in pooled])
    got = network.features(crops, inside=inside, bag_size=4)
    assert got.shape == (2, network.features_dim)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    logits = network.pooled(crops, inside=inside, bag_size=4)
    torch.testing.assert_close(logits, network.head(want), atol=1e-5, rtol=0)
    # Padding counts for something here, or the test could not tell.
    everywhere = network.features(crops, inside=torch.ones_like(inside), bag_size=4)
    assert (everywhere - want).abs().max() > 1e-3


def test_two_ranks_leave_out_what_one_does() -> None:
    head = HeadConfig(dropout=0.3)
    network = labeller(head=head, drop_path_rate=0.5).train()
    num = network.vit.num_draws
    draws = path_draws(0, positions=[4, 5, 6, 7], num_views=1, num_values=num)
    of_head = head_draws(0, positions=[2, 3], num_values=network.head.num_draws)
    crops, inside = crops_of(4, draws=draws)
    whole = network.pooled(crops, inside=inside, bag_size=2, head_draws=of_head)
    for rank in range(2):
        rows = slice(2 * rank, 2 * rank + 2)
        part = Crops(crops.volume[rows], crops.spacing_mm[rows], draws=draws[rows])
        got = network.pooled(
            part, inside=inside[rows], bag_size=2, head_draws=of_head[rank : rank + 1]
        )
        torch.testing.assert_close(got, whole[rank : rank + 1], atol=1e-5, rtol=0)
    without = network.eval().pooled(crops, inside=inside, bag_size=2)
    assert (without - whole).abs().max() > 1e-2


def test_a_patch_of_padding_gets_no_gradient_through_the_mean() -> None:
    """Without blocks a patch token hangs on its own patch alone."""
    network = labeller(position="sincos")
    network.vit.blocks = nn.ModuleList()
    crops, inside = crops_of(2)
    volume = crops.volume.requires_grad_()
    network.features(Crops(volume), inside=inside)[:, 48:].square().sum().backward()
    assert volume.grad is not None
    # Patches are 4 voxels wide: of the second crop those from 8 on see nothing of the scan.
    assert (volume.grad[0] != 0).all()
    assert (volume.grad[1, ..., :8] != 0).all()
    assert (volume.grad[1, ..., 8:] == 0).all()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_recomputed_activations_give_the_same_gradients(mode: str) -> None:
    found = []
    for recompute in (False, True):
        network = labeller(TuneConfig(mode=mode), drop_path_rate=0.4).train()
        network.vit.checkpoint_blocks = recompute
        draws = path_draws(1, positions=[1, 2], num_views=1, num_values=network.vit.num_draws)
        crops, inside = crops_of(2, draws=draws)
        network.pooled(crops, inside=inside).square().sum().backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_half_precision_sums_in_whole() -> None:
    network = labeller().eval()
    crops, inside = crops_of(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.features(crops, inside=inside)
        output = network.vit(crops.volume, spacing_mm=crops.spacing_mm)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features[0, 48:], output.patch_tokens[0].double().mean(dim=0).float(), atol=1e-5, rtol=0
    )


def segmenter(**changes: object) -> TunedNetwork:
    vit = vit_of(**changes)
    return TunedNetwork(vit, Weighing(), MASKS)


def hooked(vit: Vit3d, crops: Crops) -> list[Tensor]:
    """(B, 1 + R + N, E) tokens behind each block, before the final norm."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for block in vit.blocks
    ]
    vit.packed([crops])
    for handle in handles:
        handle.remove()
    return [tokens.view(len(crops.volume), -1, 48) for tokens in seen]


@torch.no_grad()
def test_dense_gives_the_decoder_the_maps_it_asks_for() -> None:
    network = segmenter().eval()
    crops, _ = crops_of(2)
    logits = network.dense(crops)
    assert logits.shape == (2, 3, *CROP)
    first, _, last = (each[:, network.vit.num_prefix :] for each in hooked(network.vit, crops))
    last = network.vit.norm(last)
    for voxel in ((0, 0, 0), (3, 1, 7), (1, 4, 11), (2, 5, 4)):
        d, h, w = (at // edge for at, edge in zip(voxel, PATCH, strict=True))
        patch = (d * 2 + h) * 3 + w
        brightness = crops.volume[(slice(None), slice(None), *voxel)]
        want = 2 * last[:, patch, :3] - first[:, patch, :3] + 3 * brightness
        torch.testing.assert_close(logits[(slice(None), slice(None), *voxel)], want)


def test_dense_trains_through_recomputed_blocks() -> None:
    found = []
    for recompute in (False, True):
        network = segmenter().train()
        network.vit.checkpoint_blocks = recompute
        network.dense(crops_of(2)[0]).square().sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
        assert all(gradient is not None for gradient in found[-1].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_beneath_a_decoder_or_a_head_a_frozen_backbone_keeps_no_graph() -> None:
    network = segmenter()
    set_tuning(network.vit, TuneConfig(mode="head"))
    crops, inside = crops_of(2)
    network.train().dense(crops).sum().backward()
    assert network.head.weight.grad is not None
    crops.volume.requires_grad_()
    assert not labeller(TuneConfig(mode="head")).features(crops, inside=inside).requires_grad
    assert labeller().features(crops, inside=inside).requires_grad
    with torch.no_grad():
        assert not labeller().features(crops, inside=inside).requires_grad


def test_an_absent_channel_is_nothing_to_decoder_and_backbone() -> None:
    network = segmenter(in_chans=2).eval()
    present = torch.tensor([[True, False], [False, True]])
    volume = torch.rand(2, 2, *CROP)
    spacing = torch.tensor([SPACING_MM]).expand(2, -1)
    other = torch.where(present[..., None, None, None], volume, 0.7)
    with torch.no_grad():
        one, two = (network.dense(Crops(each, spacing, present)) for each in (volume, other))
    assert torch.equal(one, two)


def test_labels_and_masks_are_not_taken_for_each_other() -> None:
    crops, inside = crops_of(2)
    with pytest.raises(AssertionError, match="decoder"):
        segmenter().pooled(crops, inside=inside)
    with pytest.raises(AssertionError, match="head"):
        labeller().dense(crops)
