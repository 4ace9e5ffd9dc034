"""Decoders: shapes of any patch of powers of 2, what each map and the volume reach, cost."""

import pytest
import torch
from torch import Tensor, nn

from foundation.finetuning.decoders import (
    Decoder,
    DecoderConfig,
    LightDecoder,
    UnetrDecoder,
    build_decoder,
    upsampling_strides,
)
from foundation.vit import Vit3d, VitConfig, build_vit

PATCH, GRID, WIDTH = (2, 8, 4), (3, 1, 2), 48
KINDS = ("unetr", "light")


def backbone(
    patch: tuple[int, int, int] = PATCH, *, depth: int = 5, in_chans: int = 1, width: int = WIDTH
) -> Vit3d:
    config = VitConfig(
        size="toy", embed_dim=width, depth=depth, patch_size=patch, in_chans=in_chans
    )
    return build_vit(config)


def decoder(kind: str, vit: Vit3d, *, num_logits: int = 3, features: int = 4) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig.model_validate({"kind": kind, "features": features})
    return build_decoder(config, vit=vit, num_logits=num_logits)


def inputs(
    vit: Vit3d, number: int, *, grid: tuple[int, int, int] = GRID
) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = [cells * edge for cells, edge in zip(grid, vit.patch_size, strict=True)]
    volume = torch.randn(2, vit.in_chans, *shape, generator=generator)
    maps = [torch.randn(2, vit.embed_dim, *grid, generator=generator) for _ in range(number)]
    return volume, maps


def num_weights(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 16, 8), [(2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 1)]),
        ((4, 16, 1), [(2, 2, 1), (2, 2, 1), (1, 2, 1), (1, 2, 1)]),
        ((1, 2, 1), [(1, 2, 1)]),
    ],
)
def test_each_step_doubles_the_axes_that_still_need_it(
    patch: tuple[int, int, int], strides: list[tuple[int, int, int]]
) -> None:
    assert upsampling_strides(patch) == strides


@pytest.mark.parametrize("patch", [(8, 6, 8), (1, 1, 1), (2, 3, 4), (8, 8, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_patches_that_are_no_powers_of_two_are_refused(
    kind: str, patch: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match=r"patch_size \(.*each edge is a power of 2"):
        decoder(kind, backbone(patch, depth=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("patch", "grid"), [(PATCH, GRID), ((1, 2, 1), (2, 3, 4)), ((16, 4, 1), (1, 2, 3))]
)
def test_there_is_a_logit_for_each_voxel_and_class(
    kind: str, patch: tuple[int, int, int], grid: tuple[int, int, int]
) -> None:
    vit = backbone(patch, in_chans=2)
    made = decoder(kind, vit)
    volume, maps = inputs(vit, len(made.indices), grid=grid)
    assert made(volume, maps).shape == (2, 3, *volume.shape[2:])


@pytest.mark.parametrize(
    ("patch", "depth", "indices"),
    [
        ((16, 16, 16), 12, (2, 5, 8, 11)),  # UNETR's own: z3, z6, z9, z12
        ((2, 8, 4), 5, (1, 3, 4)),
        ((8, 8, 8), 2, (0, 1)),  # the first of both is taken once and serves twice
        ((16, 4, 8), 1, (0,)),
        ((2, 2, 1), 4, (3,)),
    ],
)
def test_unetr_takes_blocks_spread_up_to_the_last(
    patch: tuple[int, int, int], depth: int, indices: tuple[int, ...]
) -> None:
    vit = backbone(patch, depth=depth)
    made = decoder("unetr", vit)
    assert made.indices == indices
    volume, maps = inputs(vit, len(indices))
    assert made(volume, maps).shape[2:] == volume.shape[2:]
    assert decoder("light", vit).indices == (depth - 1,)


@pytest.mark.parametrize("kind", KINDS)
def test_every_map_and_weight_is_used(kind: str) -> None:
    vit = backbone()
    made = decoder(kind, vit)
    volume, maps = inputs(vit, len(made.indices))
    volume.requires_grad_(True)
    for each in maps:
        each.requires_grad_(True)
    made(volume, maps).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in maps)
    unused = [
        name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()
    ]
    assert not unused
    assert (volume.grad is not None) == (kind == "unetr")


def test_earlier_maps_join_where_the_grid_is_finer() -> None:
    """The earliest block's map goes through most steps, the last but one's through one."""
    made = decoder("unetr", backbone((8, 8, 2), depth=6))
    assert isinstance(made, UnetrDecoder)
    assert made.indices == (1, 3, 5)
    seen: dict[int, tuple[int, ...]] = {}
    for number, skip in enumerate(made.skips):
        skip.register_forward_hook(
            lambda _module, given, out, number=number: seen.update(
                {number: (int(given[0][0, 0, 0, 0, 0]), *out.shape[1:])}
            )
        )
    volume = torch.randn(1, 1, 8, 16, 6)
    maps = [torch.full((1, WIDTH, 1, 2, 3), float(index)) for index in made.indices]
    maps[-1] = torch.randn(1, WIDTH, 1, 2, 3)
    made(volume, maps)
    assert seen == {0: (3, 16, 2, 4, 6), 1: (1, 8, 4, 8, 6)}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_see_each_other(kind: str) -> None:
    vit = backbone()
    made = decoder(kind, vit).train()
    volume, maps = inputs(vit, len(made.indices))
    both = made(volume, maps)
    one = made(volume[1:], [each[1:] for each in maps])
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
    assert not [
        each for each in made.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)
    ]
    assert not [each for each in made.modules() if isinstance(each, nn.Dropout | nn.Dropout3d)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_moves_with_its_token(kind: str) -> None:
    """The light decoder's logits are those of tokens around a voxel, on the right axis each."""
    vit = backbone((4, 2, 8))
    made = decoder(kind, vit).eval()
    volume, maps = inputs(vit, len(made.indices), grid=(3, 4, 2))
    changed = [each.clone() for each in maps]
    changed[-1][0, :, 2, 1, 0] += 100.0
    # Norms look at whole maps, so look at what changes most.
    difference = (made(volume, changed) - made(volume, maps))[0].abs().sum(dim=0)
    by_token = difference.unfold(0, 4, 4).unfold(1, 2, 2).unfold(2, 8, 8).sum(dim=(3, 4, 5))
    assert by_token.flatten().argmax() == (2 * 4 + 1) * 2 + 0


def test_light_is_clearly_cheaper() -> None:
    vit = backbone((8, 16, 16), depth=12, width=432)
    light, unetr = (decoder(kind, vit, features=16) for kind in ("light", "unetr"))
    assert isinstance(light, LightDecoder)
    assert num_weights(light) < 150_000
    assert num_weights(light) * 10 < num_weights(unetr)


def test_weights_come_from_the_global_generator() -> None:
    vit = backbone()
    one, other = decoder("unetr", vit), decoder("unetr", vit)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
