"""Cut, flip, turn, deform and resize a batch of crops, in one resampling."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from foundation.augmenting.draw import Geometry

_WHOLLY_INSIDE = 0.999
"""Weights of an interpolation add up to 1 but for rounding."""


class Resampled(NamedTuple):
    """Before anything is done to intensities."""

    volume: Tensor
    """(B, C, d, h, w)"""
    inside: Tensor
    """(B, 1, d, h, w) bool, False on padding and where a view looks outside the crop"""
    spacing_mm: Tensor
    """(B, 3) of the view's voxels"""


def resample(
    volume: Tensor,
    geometry: Geometry,
    *,
    shape: Sequence[int],
    spacing_mm: Tensor,
    inside: Tensor | None,
) -> Resampled:
    """Look up each voxel of a view in its crop, trilinear.

    Voxels are cells: a box of the whole crop at the crop's own shape changes nothing. Between a
    crop's outermost centres and its edge the outermost value holds; beyond the edge nothing is
    visible. There is no smoothing before a box is shown with fewer voxels than it has.

    Args:
        volume: (B, C, D, H, W).
        geometry: Of the view; what is cut out is not this function's.
        shape: (d, h, w) of the view.
        spacing_mm: (B, 3) of the crop's voxels.
        inside: (B, 1, D, H, W) bool, False on padding. A voxel of the view in which padding had
            any part is padding.
    """
    device = volume.device
    size_mm = spacing_mm.to(device) * spacing_mm.new_tensor(volume.shape[2:], device=device)
    edges_mm = geometry.extent.to(device) * size_mm
    # From cells in [-1, 1] of the box to millimetres, to millimetres of the crop, to its cells.
    linear = geometry.linear.to(device) * edges_mm[:, None, :] / size_mm[:, :, None]
    middle = (2 * geometry.start + geometry.extent - 1).to(device)
    grid = _grid(linear, middle, shape=shape)
    visible = (grid.abs() <= 1).all(dim=-1)[:, None]
    if inside is not None:
        # As one more channel: a place is worked out once for all channels.
        volume = torch.cat([volume, inside.to(volume.dtype)], dim=1)
    seen = functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)
    if inside is not None:
        seen, share = seen[:, :-1], seen[:, -1:]
        visible &= share > _WHOLLY_INSIDE
    return Resampled(seen, visible, edges_mm / edges_mm.new_tensor(tuple(shape)))


def _grid(linear: Tensor, middle: Tensor, *, shape: Sequence[int]) -> Tensor:
    """(B, d, h, w, 3): where each voxel's centre lies in the crop, in cells, order W, H, D.

    Sums of products instead of ``affine_grid``, which is a matrix product and so may be cut to
    TF32 or bf16 by settings that are meant for the model.
    """
    linear, middle = linear.flip(1), middle.flip(1)  # grid_sample names the axes W, H, D
    grid = middle[:, None, None, None, :]
    for axis, size in enumerate(shape):
        centres = (2 * torch.arange(size, device=linear.device) + 1) / size - 1
        along = [1, 1, 1, 1, 1]
        along[1 + axis] = size
        grid = grid + linear[:, None, None, None, :, axis] * centres.view(along)
    return grid
