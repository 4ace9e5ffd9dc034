import math

import pytest
import torch

from foundation.network.block import LayerNorm, Segment, build_blocks
from foundation.network.patches import patchify, unpatchify
from foundation.network.positions import (
    PositionScheme,
    rope_of,
    rotate,
    rotated_channels,
    sincos_positions,
)
from foundation.running.randomness import path_draws
from foundation.vit import SIZES, Crops, VitConfig, build_vit
from recipes.load import RecipeError, parse

PATCH = (2, 4, 3)
CONFIG = VitConfig(size="toy", patch_size=PATCH, depth=2, num_registers=3)
# A grid of 2 x 3 x 5 patches.
SHAPE = (4, 12, 15)


def test_patch_embedding_equals_a_strided_convolution() -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG)
    convolution = torch.nn.Conv3d(1, 96, kernel_size=PATCH, stride=PATCH)
    with torch.no_grad():
        convolution.weight.copy_(vit.patch_embed.weight.view(96, 1, *PATCH))
        convolution.bias.copy_(vit.patch_embed.bias)
    volume = torch.randn(2, 1, *SHAPE)
    want = convolution(volume).flatten(2).transpose(1, 2)
    got = vit.patch_embed(patchify(volume, patch_size=PATCH))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_patches_lie_in_raster_order_and_return() -> None:
    volume = torch.randn(2, 2, *SHAPE)
    patches = patchify(volume, patch_size=PATCH)
    assert patches.shape == (2, 30, 2 * math.prod(PATCH))
    # Patch (1, 2, 3) of the 2 x 3 x 5 grid.
    want = volume[:, :, 2:4, 8:12, 9:12].flatten(1)
    assert torch.equal(patches[:, 1 * 15 + 2 * 5 + 3], want)
    assert torch.equal(unpatchify(patches, grid=(2, 3, 5), patch_size=PATCH), volume)


def test_positions_match_a_loop_on_an_anisotropic_grid() -> None:
    width, grid = 24, (2, 3, 5)
    got = sincos_positions(grid, embed_dim=width)
    places = [(d, h, w) for d in range(2) for h in range(3) for w in range(5)]
    for row, place in enumerate(places):
        want = []
        for index in place:
            angles = [index / 10000 ** (k / 4) for k in range(4)]
            want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(got[row], torch.tensor(want), atol=1e-6, rtol=0)
    assert got.shape == (30, width)
    assert len(got.unique(dim=0)) == 30


def test_positions_refuse_an_uneven_width() -> None:
    with pytest.raises(ValueError, match="take 96 or 102"):
        sincos_positions((2, 3, 5), embed_dim=100)


def test_tokens_are_patches_plus_scaled_positions() -> None:
    vit = build_vit(CONFIG.model_copy(update={"position_scale": 0.25}))
    volume = torch.randn(2, 1, *SHAPE)
    content = vit.patch_embed(patchify(volume, patch_size=PATCH))
    want = content + 0.25 * sincos_positions((2, 3, 5), embed_dim=96)
    got = vit._embedded(Crops(volume), content, None)[:, vit.num_prefix :]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 1 channels \(in_chans\), the volume has 2"):
        build_vit(CONFIG)(torch.zeros(1, 2, *SHAPE))


def test_output_shapes_and_final_norm() -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG).eval()
    output = vit(torch.randn(2, 1, *SHAPE))
    assert output.cls_token.shape == (2, 96)
    assert output.patch_tokens.shape == (2, 30, 96)
    torch.testing.assert_close(output.patch_tokens.mean(-1), torch.zeros(2, 30), atol=1e-5, rtol=0)


def test_only_kept_patches_are_seen() -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG).eval()
    volume = torch.randn(2, 1, *SHAPE)
    keep = torch.tensor([[29, 4, 11], [7, 0, 18]])
    output = vit(volume, keep)
    assert output.patch_tokens.shape == (2, 3, 96)
    patches = patchify(volume, patch_size=PATCH)
    hidden = torch.ones(2, 30, 1).scatter_(1, keep[..., None], 0).bool()
    noisy = unpatchify(
        torch.where(hidden, torch.randn_like(patches), patches), grid=(2, 3, 5), patch_size=PATCH
    )
    torch.testing.assert_close(vit(noisy, keep), output, atol=0, rtol=0)
    # All patches in another order: the same tokens in that order.
    order = torch.randperm(30).expand(2, 30)
    shuffled = vit(volume, order).patch_tokens
    whole = vit(volume).patch_tokens.take_along_dim(order[..., None], dim=1)
    torch.testing.assert_close(shuffled, whole, atol=1e-5, rtol=0)


def test_any_grid_goes_through_one_backbone() -> None:
    vit = build_vit(CONFIG).eval()
    for shape in ((4, 12, 15), (8, 4, 3), (2, 20, 9)):
        assert vit(torch.zeros(1, 1, *shape)).patch_tokens.shape[1] == math.prod(vit.grid(shape))


def test_a_volume_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 12, 14\) voxels .* \(2, 4, 3\) patches"):
        build_vit(CONFIG)(torch.zeros(1, 1, 4, 12, 14))


def test_initialisation_reaches_every_weight() -> None:
    vit = build_vit(CONFIG)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(math.nan)
    vit.initialise()
    assert all(parameter.isfinite().all() for parameter in vit.parameters())


def test_every_parameter_receives_a_gradient() -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG)
    output = vit(torch.randn(2, 1, *SHAPE))
    (output.cls_token.square().mul(torch.randn(96)).sum() + output.patch_tokens[0, 0, 0]).backward()
    silent = [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_keep_their_heads_divisible_by_24(size: str) -> None:
    width, _, heads = VitConfig(size=size, patch_size=(8, 8, 8)).resolved
    assert width % heads == 0
    assert width // heads % 24 == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"embed_dim": 100}, "multiple of 6"),
        ({"num_heads": 5}, "multiple of 8"),
        ({"patch_size": [0, 8, 8]}, "patch_size must be positive"),
        ({"patchsize": [8, 8, 8]}, "did you mean 'patch_size'"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused(override, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse({"size": "toy", "patch_size": [8, 8, 8]} | override, VitConfig, where="recipe")


VARIANTS = {
    "plain": {},
    "rope": {"position": "rope"},
    "rope_mm": {"position": "rope_mm", "layer_scale": 0.1, "mlp": "swiglu"},
    "learned": {"position": "learned", "position_grid": (2, 2, 4), "in_chans": 2},
}


def _variant(name: str, **more):
    torch.manual_seed(0)
    return build_vit(CONFIG.model_copy(update=VARIANTS[name] | more))


def _crops(vit, shape=SHAPE, *, batch: int = 2, **more) -> Crops:
    spacing_mm = torch.tensor([[5.0, 1.0, 1.5], [2.0, 0.5, 3.0], [1.0, 1.0, 1.0]])[:batch]
    return Crops(torch.randn(batch, vit.in_chans, *shape), spacing_mm, **more)


@pytest.mark.parametrize("name", ["plain", "swiglu"])
def test_a_block_is_timms_block(name: str) -> None:
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import Block as Theirs

    torch.manual_seed(0)
    gated = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 16 / 3, "act_layer": torch.nn.SiLU}
    mlp = gated if name == "swiglu" else {}
    theirs = Theirs(96, 2, qkv_bias=True, init_values=0.3, norm_layer=LayerNorm, **mlp)
    ours = build_blocks(
        embed_dim=96,
        num_heads=2,
        mlp_ratio=4.0,
        mlp="swiglu" if mlp else "gelu",
        layer_scale=0.3,
        drop_paths=[0.0],
    )[0]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(3, 7, 96)
    got = ours(tokens.flatten(0, 1), [Segment(3, 7, None)]).view(3, 7, 96)
    torch.testing.assert_close(got, theirs(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_pass_equals_a_pass_for_each_size(name: str) -> None:
    vit = _variant(name)
    mask_token = torch.randn(1, 1, 96)
    crops = [
        _crops(vit, hidden=torch.rand(2, 30) < 0.4),
        _crops(vit, (2, 8, 9), batch=3),
        _crops(vit, keep=torch.tensor([[29, 4, 11], [7, 0, 18]])),
    ]
    together = vit.packed(crops, mask_token=mask_token)
    for each, output in zip(crops, together, strict=True):
        alone = vit.packed([each], mask_token=mask_token)[0]
        torch.testing.assert_close(output, alone, atol=1e-5, rtol=0)
    # So are the gradients.
    weights = list(vit.parameters())
    total = sum(o.cls_token.square().sum() + o.patch_tokens[:, 0].sum() for o in together)
    want = [torch.zeros_like(p) for p in weights]
    for each in crops:
        o = vit.packed([each], mask_token=mask_token)[0]
        loss = o.cls_token.square().sum() + o.patch_tokens[:, 0].sum()
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        want = [a if b is None else a + b for a, b in zip(want, parts, strict=True)]
    got = torch.autograd.grad(total, weights)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_initialised_learn_and_take_any_grid(name: str) -> None:
    vit = _variant(name)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(math.nan)
    vit.initialise()
    assert all(parameter.isfinite().all() for parameter in vit.parameters())
    present = torch.tensor([[True] * vit.in_chans, [True] + [False] * (vit.in_chans - 1)])
    output = vit.packed([_crops(vit, present=present), _crops(vit, (8, 4, 12))])
    (output[0].cls_token * torch.randn(96)).sum().backward()
    silent = [n for n, p in vit.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert output[1].patch_tokens.shape == (2, 16, 96)


def test_an_absent_channel_is_not_looked_at() -> None:
    vit = _variant("learned").eval()
    volume = torch.randn(2, 2, *SHAPE)
    present = torch.tensor([[True, False], [True, True]])
    changed = volume.clone()
    changed[:, 1] += 1
    one, other = vit(volume, present=present), vit(changed, present=present)
    assert torch.equal(one.cls_token[0], other.cls_token[0])
    assert not torch.equal(one.cls_token[1], other.cls_token[1])
    assert not torch.equal(one.cls_token[0], vit(volume).cls_token[0])
    # A channel of zeros that is there is another thing than one that is absent.
    volume[0, 1] = 0
    assert not torch.equal(vit(volume).cls_token[0], one.cls_token[0])


@pytest.mark.parametrize("head_dim", [64, 72, 48, 8])
def test_rotations_turn_the_largest_multiple_of_six_channels(head_dim: int) -> None:
    turned = {64: 60, 72: 72, 48: 48, 8: 6}[head_dim]
    assert rotated_channels(head_dim) == turned
    places = torch.tensor([[[1.0, 2, 3], [4, 0, 9]]])
    rope = rope_of(places, head_dim=head_dim, periods=(8.0, 128.0), num_prefix=1)
    tokens = torch.randn(1, 2, 3, head_dim)
    got = rotate(tokens, rope)
    assert torch.equal(got[:, :, 0], tokens[:, :, 0])
    assert torch.equal(got[..., turned:], tokens[..., turned:])
    # Pair by pair, as complex numbers.
    count = turned // 6
    for token, place in enumerate(places[0].tolist(), start=1):
        for pair in range(turned // 2):
            axis, k = divmod(pair, count)
            period = 8.0 * 16.0 ** (k / max(count - 1, 1))
            number = torch.complex(tokens[..., token, pair], tokens[..., token, pair + turned // 2])
            want = number * torch.exp(torch.tensor(2j * math.pi * place[axis] / period))
            torch.testing.assert_close(got[..., token, pair], want.real, atol=1e-4, rtol=0)
            there = got[..., token, pair + turned // 2]
            torch.testing.assert_close(there, want.imag, atol=1e-4, rtol=0)


def _logits(grid, spacing_mm, *, content: torch.Tensor, places: list[tuple[int, int, int]]):
    """Of tokens with given contents at given places of a grid, by the backbone's own rotations."""
    scheme = PositionScheme("rope_mm", PATCH, (40.0, 1280.0), 1.0)
    keep = torch.tensor([[(d * grid[1] + h) * grid[2] + w for d, h, w in places]])
    rope = scheme.rope(
        grid,
        head_dim=content.shape[-1],
        num_prefix=0,
        spacing_mm=torch.tensor([spacing_mm]),
        keep=keep,
        device=torch.device("cpu"),
    )
    query, key = rotate(content[0], rope), rotate(content[1], rope)
    return query @ key.transpose(-2, -1)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_millimetres_decide_whatever_the_spacing(head_dim: int) -> None:
    """The same contents at the same distances in mm, in voxels of (4, 1, 2) and of (2, 3, 1) mm."""
    content = torch.randn(2, 1, 3, 4, head_dim)
    # Patches of 2 x 4 x 3 voxels: steps of (8, 4, 6) mm, and of (4, 12, 3) mm.
    coarse = [(0, 0, 0), (1, 3, 1), (2, 0, 2), (1, 6, 0)]
    fine = [(0, 0, 0), (2, 1, 2), (4, 0, 4), (2, 2, 0)]
    one = _logits((3, 7, 3), (4.0, 1.0, 2.0), content=content, places=coarse)
    other = _logits((5, 3, 5), (2.0, 3.0, 1.0), content=content, places=fine)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    wrong = _logits((5, 3, 5), (2.0, 1.0, 3.0), content=content, places=fine)
    assert (wrong - one).abs().max() > 0.1


def test_positions_in_mm_need_a_spacing() -> None:
    with pytest.raises(ValueError, match="needs spacing_mm"):
        _variant("rope_mm")(torch.zeros(1, 1, *SHAPE))


def test_learned_positions_follow_the_grid() -> None:
    vit = _variant("learned")
    table = vit.position_table
    assert torch.equal(
        vit._added((2, 2, 4), device=table.device)[1 * 8 + 0 * 4 + 3], table[0, :, 1, 0, 3]
    )
    wider = vit._added((2, 2, 8), device=table.device).T.view(96, 2, 2, 8)
    torch.testing.assert_close(wider[..., 0], table[0, :, :, :, 0])
    torch.testing.assert_close(wider[..., 1], 0.75 * table[0, ..., 0] + 0.25 * table[0, ..., 1])


def test_drop_path_leaves_whole_samples_out() -> None:
    torch.manual_seed(0)
    block = build_blocks(
        embed_dim=24,
        num_heads=1,
        mlp_ratio=1.0,
        mlp="gelu",
        layer_scale=None,
        drop_paths=[0.5],
    )[0]
    segments = [Segment(64, 3, None), Segment(32, 2, None)]
    dropped = block._drop(torch.ones(256, 24), segments, branch=0)
    parts = [
        part.view(each.num_samples, -1)
        for part, each in zip(dropped.split([192, 64]), segments, strict=True)
    ]
    for part in parts:
        assert torch.equal(part, part[:, :1].expand_as(part))
        assert set(part[:, 0].tolist()) == {0.0, 2.0}
    kept = block.eval()._drop(torch.ones(256, 24), segments, branch=0)
    assert torch.equal(kept, torch.ones(256, 24))


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    vit = _variant("rope", drop_path_rate=0.3)
    volume = torch.randn(2, 1, *SHAPE)
    found = []
    for vit.checkpoint_blocks in (False, True):
        torch.manual_seed(5)
        vit.zero_grad()
        vit(volume).cls_token.square().sum().backward()
        found.append([p.grad.clone() for p in vit.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_a_block_compiles_in_one_piece_and_computes_the_same(checkpoint_blocks: bool) -> None:
    """Dynamo's own part alone, without generating code: a graph break is an error."""
    vit = _variant("rope_mm")
    crops = [_crops(vit), _crops(vit, (2, 8, 9), batch=3)]
    plain = vit.packed(crops)
    names = set(vit.state_dict())
    vit.checkpoint_blocks = checkpoint_blocks
    vit.compile_blocks(backend="eager")
    compiled = vit.packed(crops)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)
    compiled[0].cls_token.sum().backward()
    assert vit.patch_embed.weight.grad is not None
    assert set(vit.state_dict()) == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"position": "learned"}, "position_grid is the grid of learned positions"),
        ({"position": "rope", "rope_periods": [9, 4]}, "rope_periods must be positive and rise"),
        ({"position": "rope", "embed_dim": 92, "num_heads": 2}, "multiple of 8"),
    ],
)
def test_positions_that_cannot_be_built_are_refused(override, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse({"size": "toy", "patch_size": [8, 8, 8]} | override, VitConfig, where="recipe")


def test_drop_path_follows_the_samples_however_they_are_batched() -> None:
    """By the numbers of each sample, two for each block; without any, torch's generator decides."""
    vit = _variant("rope", drop_path_rate=0.6).train()
    assert _variant("rope").num_draws == 0
    assert vit.num_draws == 2 * len(vit.blocks)
    volume = torch.randn(6, 1, 4, 12, 15, generator=torch.Generator().manual_seed(1))
    draws = path_draws(5, positions=range(6), num_views=1, num_values=vit.num_draws)
    whole = vit(volume, draws=draws)
    parts = [vit(volume[rows], draws=draws[rows]) for rows in (slice(0, 1), slice(1, 6))]
    for name in ("cls_token", "patch_tokens"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-5, atol=1e-5)
    # The last block leaves a branch out of a sample whose number is above what it keeps.
    last = vit.blocks[-1]
    values = torch.ones(6 * 2, vit.embed_dim)
    for branch in (0, 1):
        dropped = last._drop(values, [Segment(6, 2, None, draws)], branch=branch)
        kept = draws[:, 2 * last.index + branch] <= 1 - last.drop_path_rate
        assert 0 < kept.sum() < 6
        want = (kept.float() / (1 - last.drop_path_rate)).repeat_interleave(2)
        torch.testing.assert_close(dropped[:, 0], want)
