"""Volumes cut into patches, and put together again."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

Shape = tuple[int, int, int]


def patch_grid(shape: Sequence[int], patch_size: Sequence[int]) -> Shape:
    """Patches per axis; a ValueError where the patches do not tile the volume."""
    if any(size % patch or not size for size, patch in zip(shape, patch_size, strict=True)):
        raise ValueError(
            f"a volume of {tuple(shape)} voxels is not a whole number of {tuple(patch_size)} "
            f"patches; choose a crop_shape that is a multiple of patch_size on every axis"
        )
    d, h, w = (size // patch for size, patch in zip(shape, patch_size, strict=True))
    return d, h, w


def patchify(volume: Tensor, *, patch_size: Sequence[int]) -> Tensor:
    """Cut volumes into patches.

    Args:
        volume: (B, C, D, H, W); D, H and W are multiples of ``patch_size``.
        patch_size: Edges of a patch in voxels, (d, h, w).

    Returns:
        (B, N, P): N patches in (D, H, W) raster order, P = C * d * h * w values each.
    """
    patch_grid(volume.shape[2:], patch_size)
    p, q, r = patch_size
    pattern = "b c (d p) (h q) (w r) -> b (d h w) (c p q r)"
    return rearrange(volume, pattern, p=p, q=q, r=r)


def unpatchify(patches: Tensor, *, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P) to (B, C, D, H, W)."""
    d, h, w = grid
    p, q, r = patch_size
    pattern = "b (d h w) (c p q r) -> b c (d p) (h q) (w r)"
    return rearrange(patches, pattern, d=d, h=h, w=w, p=p, q=q, r=r)


def rows_of(keep: Tensor, *, num_samples: int) -> Tensor:
    """The sample that each row of ``keep`` (B M, K) belongs to, M rows a sample: (B M,) int64."""
    return torch.arange(len(keep), device=keep.device) // max(len(keep) // num_samples, 1)
