"""Where a token lies: fixed sine-cosine embeddings, and rotations by its place in voxels or mm."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from foundation.network.patches import Shape, rows_of

Position = Literal["sincos", "learned", "rope", "rope_mm"]

_WAVELENGTH = 10_000.0
_AXES = 3
_ROTATED_MULTIPLE = 2 * _AXES


class Rope(NamedTuple):
    """Rotations of queries and keys, by token; a prefix token (class, registers) is not turned."""

    cos: Tensor
    """(B, 1, N, R / 2) float32; B may be 1"""
    sin: Tensor
    """the same shape"""


def sincos_positions(
    grid: Sequence[int], *, embed_dim: int, device: torch.device | None = None
) -> Tensor:
    """Fixed position embeddings (Vaswani et al. 2017, sec. 3.5), a third of the width per axis.

    Args:
        grid: Tokens per axis, (d, h, w).
        embed_dim: Width; a multiple of 6, so each axis has as many sines as cosines.
        device: Where the result lies.

    Returns:
        (N, embed_dim) float32 in (D, H, W) raster order; the first third tells the position along
        D, the second along H, the last along W; sines first within each third.
    """
    if embed_dim % 6:
        raise ValueError(
            f"embed_dim {embed_dim} is not a multiple of 6: three axes, each with sines and "
            f"cosines; take {embed_dim // 6 * 6} or {(embed_dim // 6 + 1) * 6}"
        )
    axes = [sincos_axis(size, width=embed_dim // 3, device=device) for size in grid]
    d, h, w = (torch.arange(size, device=device) for size in grid)
    index_d, index_h, index_w = torch.meshgrid(d, h, w, indexing="ij")
    per_axis = [
        table[index.flatten()]
        for table, index in zip(axes, (index_d, index_h, index_w), strict=True)
    ]
    return torch.cat(per_axis, dim=1)


def sincos_axis(size: int, *, width: int, device: torch.device | None = None) -> Tensor:
    """Of one axis, (size, width) float32: the sines of all frequencies, then their cosines."""
    half = width // 2
    channel = torch.arange(half, dtype=torch.float64, device=device)
    angle = torch.arange(size, dtype=torch.float64, device=device)[:, None] * (
        _WAVELENGTH ** (-channel / half)
    )
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def token_coordinates(
    grid: Sequence[int], *, patch_size: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """Centre of each patch in voxels, (N, 3) float32 in (D, H, W) raster order."""
    axes = [
        (torch.arange(size, device=device) + 0.5) * patch
        for size, patch in zip(grid, patch_size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotated_channels(head_dim: int) -> int:
    """Channels of a head that positions turn: the largest multiple of 6; the rest pass as is."""
    return head_dim // _ROTATED_MULTIPLE * _ROTATED_MULTIPLE


def rope_of(
    coordinates: Tensor, *, head_dim: int, periods: tuple[float, float], num_prefix: int
) -> Rope:
    """Axial rotary positions (Su et al. 2021, eq. 34, one third of the pairs for each axis).

    A logit between two tokens then depends on their distance along D, H and W alone.

    Args:
        coordinates: (B, N, 3) of the tokens along D, H, W, in voxels or mm; B may be 1.
        head_dim: Of the attention.
        periods: Shortest and longest full turn, in the coordinates' unit; the frequencies between
            them are spaced evenly on a logarithmic scale.
        num_prefix: Tokens before these that have no place.

    Returns:
        Rotations of ``num_prefix + N`` tokens.
    """
    num_frequencies = rotated_channels(head_dim) // _ROTATED_MULTIPLE
    shortest, longest = periods
    step = torch.arange(num_frequencies, device=coordinates.device) / max(num_frequencies - 1, 1)
    frequency = 2 * math.pi / (shortest * (longest / shortest) ** step)
    with torch.autocast(coordinates.device.type, enabled=False):
        angle = rearrange(coordinates.float()[..., None] * frequency, "b n a f -> b 1 n (a f)")
        angle = torch.nn.functional.pad(angle, (0, 0, num_prefix, 0))
        return Rope(angle.cos(), angle.sin())


def rotate(tokens: Tensor, rope: Rope) -> Tensor:
    """Turn queries or keys, (B, heads, N, head_dim); what lies behind the turned channels passes.

    Channel i of the first half of the turned ones makes a pair with channel i of the second half.
    """
    half = rope.cos.shape[-1]
    first, second = tokens[..., :half], tokens[..., half : 2 * half]
    turned = (first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin)
    return torch.cat([*(each.to(tokens.dtype) for each in turned), tokens[..., 2 * half :]], dim=-1)


class PositionScheme(NamedTuple):
    """How places enter a transformer; an encoder's decoder follows it."""

    kind: Position
    patch_size: Shape
    periods: tuple[float, float]
    """of rotations, in voxels or mm"""
    scale: float
    """of what is added to tokens"""

    def rope(
        self,
        grid: Sequence[int],
        *,
        head_dim: int,
        num_prefix: int,
        spacing_mm: Tensor | None,
        keep: Tensor | None,
        device: torch.device,
    ) -> Rope | None:
        """Rotations of the prefix and of all or the kept patches; None where places are added.

        Raises:
            ValueError: Millimetres are asked for and the spacing is not known.
        """
        if self.kind not in ("rope", "rope_mm"):
            return None
        places = token_coordinates(grid, patch_size=self.patch_size, device=device)[None]
        if self.kind == "rope_mm":
            if spacing_mm is None:
                raise ValueError("position is rope_mm, which needs spacing_mm of each volume")
            places = places * spacing_mm.to(device)[:, None]
        if keep is not None:
            rows = rows_of(keep, num_samples=len(places))
            places = places[rows[:, None], keep]
        return rope_of(places, head_dim=head_dim, periods=self.periods, num_prefix=num_prefix)
