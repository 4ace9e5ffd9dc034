import math

import pytest
import torch

from foundation.positions import sincos_positions
from foundation.vit import SIZES, VitConfig, build_vit, patchify, unpatchify
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
    torch.testing.assert_close(vit.tokens(volume), want, atol=1e-6, rtol=0)


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
