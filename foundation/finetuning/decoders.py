"""Decoders from patch tokens to voxels, of MONAI's blocks: UNETR-type and a light one.

Both double the grid of the patches step by step, and each step only along the axes that still need
it: patches of (4, 16, 16) become voxels by (2, 2, 2), (2, 2, 2), (1, 2, 2) and (1, 2, 2). Instance
norms look at each sample by itself, so ranks need not agree on anything.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from foundation.network.patches import Shape
from foundation.vit import Vit3d
from recipes.load import Section

# With a scale and a shift to learn, as nnU-Net's.
_NORM = ("instance", {"affine": True})
_LIGHT_WIDTH = 4
"""Channels of the light decoder's coarsest grid, in ``features``."""


class DecoderConfig(Section):
    """What stands on the backbone for masks."""

    kind: Literal["unetr", "light"] = Field(
        default="unetr",
        description="unetr: maps of several blocks and the volume itself, as in UNETR; light: the "
        "last map alone, a tenth of the weights",
    )
    features: int = Field(default=16, ge=1, description="channels at the volume's own resolution")
    overlap: float = Field(
        default=0.5,
        ge=0,
        le=0.9,
        description="of neighbouring windows, along each axis, at inference",
    )


class UnetrDecoder(nn.Module):
    """UNETR's decoder (Hatamizadeh et al. 2022, fig. 2), for any patch of powers of 2.

    It has as many steps as doublings make a voxel of a patch. The last block's map goes up step by
    step; at each it is joined by an earlier block's map that transposed convolutions brought to the
    same grid, the earliest at the finest, and at the end by the volume. With patches of 16 and 12
    blocks these are UNETR's own blocks, 3, 6, 9 and 12.

    Attributes:
        indices: Blocks from 0 whose maps it takes, the last block's last.
    """

    def __init__(
        self,
        *,
        strides: Sequence[Shape],
        in_chans: int,
        embed_dim: int,
        depth: int,
        features: int,
        num_logits: int,
    ) -> None:
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        num = len(strides)
        widths = [features * 2 ** (num - 1 - step) for step in range(num)]
        self._blocks = _spread(depth, num=num)
        self.indices = tuple(dict.fromkeys(self._blocks))
        self.skips = nn.ModuleList(
            _raise(embed_dim, width, strides[: step + 1]) for step, width in enumerate(widths[:-1])
        )
        self.of_volume = UnetrBasicBlock(
            3, in_chans, features, kernel_size=3, stride=1, norm_name=_NORM, res_block=True
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(
                3,
                before,
                width,
                kernel_size=3,
                upsample_kernel_size=stride,
                norm_name=_NORM,
                res_block=True,
            )
            for before, width, stride in zip(
                [embed_dim, *widths[:-1]], widths, strides, strict=True
            )
        )
        self.out = UnetOutBlock(3, features, num_logits)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits of each voxel.

        Args:
            volume: (B, C, D, H, W).
            maps: (B, E, d, h, w) for each of ``indices``, the last after the final norm.

        Returns:
            (B, num_logits, D, H, W).
        """
        by_block = dict(zip(self.indices, maps, strict=True))
        *earlier, last = (by_block[block] for block in self._blocks)
        joined = [
            *(skip(each) for skip, each in zip(self.skips, reversed(earlier), strict=True)),
            self.of_volume(volume),
        ]
        for up, other in zip(self.ups, joined, strict=True):
            last = up(last, other)
        logits: Tensor = self.out(last)
        return logits


class LightDecoder(nn.Module):
    """The last map through a few narrow transposed convolutions that overlap; no skips.

    Attributes:
        indices: The last block alone.
    """

    def __init__(
        self,
        *,
        strides: Sequence[Shape],
        embed_dim: int,
        depth: int,
        features: int,
        num_logits: int,
    ) -> None:
        from monai.networks.blocks import UnetOutBlock

        super().__init__()
        num = len(strides)
        self.indices = (depth - 1,)
        widths = [max(features, features * _LIGHT_WIDTH // 2**step) for step in range(num + 1)]
        widths[-1] = features
        self.narrow = nn.Conv3d(embed_dim, widths[0], kernel_size=1)
        self.ups = nn.Sequential(
            *(
                _overlapping_step(before, after, stride)
                for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            )
        )
        self.out = UnetOutBlock(3, features, num_logits)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits of each voxel, see :meth:`UnetrDecoder.forward`; the volume is not looked at."""
        del volume
        (last,) = maps
        logits: Tensor = self.out(self.ups(self.narrow(last)))
        return logits


Decoder = UnetrDecoder | LightDecoder


def build_decoder(config: DecoderConfig, *, vit: Vit3d, num_logits: int) -> Decoder:
    """A decoder for a backbone; its weights come from torch's global generator.

    Raises:
        ValueError: The edges of the backbone's patches are no powers of 2.
    """
    strides = upsampling_strides(vit.patch_size)
    if config.kind == "light":
        return LightDecoder(
            strides=strides,
            embed_dim=vit.embed_dim,
            depth=len(vit.blocks),
            features=config.features,
            num_logits=num_logits,
        )
    return UnetrDecoder(
        strides=strides,
        in_chans=vit.in_chans,
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        features=config.features,
        num_logits=num_logits,
    )


def upsampling_strides(patch_size: Shape) -> list[Shape]:
    """What each step multiplies the grid by, from patches to voxels, (d, h, w).

    Raises:
        ValueError: An edge is no power of 2, or a patch is one voxel.
    """
    doublings = [edge.bit_length() - 1 for edge in patch_size]
    if max(doublings) < 1 or math.prod(patch_size) != 2 ** sum(doublings):
        raise ValueError(
            f"patch_size {tuple(patch_size)}: a decoder doubles the grid step by step, so each "
            f"edge is a power of 2 and one is at least 2; take a backbone with such patches"
        )
    d, h, w = doublings
    return [(1 + (step < d), 1 + (step < h), 1 + (step < w)) for step in range(max(doublings))]


def _spread(depth: int, *, num: int) -> list[int]:
    """``num`` blocks evenly up to the last; a network of fewer gives some of them twice."""
    return [math.ceil((number + 1) * depth / num) - 1 for number in range(num)]


def _raise(in_channels: int, out_channels: int, strides: Sequence[Shape]) -> nn.Sequential:
    """UNETR's projection of a map to a finer grid; MONAI's own has one stride for all steps."""
    from monai.networks.blocks.dynunet_block import UnetResBlock

    first, *others = strides
    steps: list[Any] = [_doubling(in_channels, out_channels, first)]
    for stride in others:
        steps += [
            _doubling(out_channels, out_channels, stride),
            UnetResBlock(3, out_channels, out_channels, kernel_size=3, stride=1, norm_name=_NORM),
        ]
    return nn.Sequential(*steps)


def _doubling(in_channels: int, out_channels: int, stride: Shape) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(in_channels, out_channels, stride, stride=stride, bias=False)


def _overlapping_step(in_channels: int, out_channels: int, stride: Shape) -> nn.Sequential:
    """Kernels of three voxels reach beyond a patch, else its borders would show in a mask."""
    from monai.networks.blocks import UpSample

    return nn.Sequential(
        UpSample(3, in_channels, out_channels, scale_factor=stride, kernel_size=3, mode="deconv"),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )
