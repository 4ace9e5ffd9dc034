"""Where a token lies: 3D sine-cosine position embeddings for a grid of any shape."""

from collections.abc import Sequence

import torch
from torch import Tensor

_WAVELENGTH = 10_000.0


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
    axes = [_sincos_axis(size, embed_dim // 3, device) for size in grid]
    d, h, w = (torch.arange(size, device=device) for size in grid)
    index_d, index_h, index_w = torch.meshgrid(d, h, w, indexing="ij")
    per_axis = [
        table[index.flatten()]
        for table, index in zip(axes, (index_d, index_h, index_w), strict=True)
    ]
    return torch.cat(per_axis, dim=1)


def _sincos_axis(size: int, width: int, device: torch.device | None) -> Tensor:
    half = width // 2
    channel = torch.arange(half, dtype=torch.float64, device=device)
    angle = torch.arange(size, dtype=torch.float64, device=device)[:, None] * (
        _WAVELENGTH ** (-channel / half)
    )
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
