"""Views of a crop, made for a whole batch at once on its device.

The numbers that describe a view are drawn on the CPU from the sample's position in the stream
(:func:`draw_view`); the work on voxels, noise included, happens where the volume lies
(:func:`apply_view`). A view is cut and turned, then degraded as by a scanner (bias field, thick
slices, blur, noise), then shown as by a reader (window, gamma, contrast, brightness).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from foundation.augmenting.artefacts import apply_bias_field, blur, cut_out, thicken
from foundation.augmenting.config import AugmentConfig, CropScale
from foundation.augmenting.draw import Appearance, ViewParameters, draw_view
from foundation.augmenting.intensity import add_noise, curve, rewindow, stretch
from foundation.augmenting.spatial import resample
from foundation.preprocessing import AIR

__all__ = ["AugmentConfig", "CropScale", "View", "ViewParameters", "apply_view", "draw_view"]


class View(NamedTuple):
    """One view of each sample, on the device of the crops."""

    volume: Tensor
    """(B, C, d, h, w) float32 in [-1, 1]; exactly -1 where not ``inside``"""
    spacing_mm: Tensor
    """(B, 3) of its voxels: how large the shown box is, by how many voxels show it"""
    inside: Tensor
    """(B, 1, d, h, w) bool, False on padding and outside the crop, where a turned view may look"""


@torch.no_grad()
def apply_view(
    volume: Tensor,
    parameters: ViewParameters,
    *,
    shape: Sequence[int],
    spacing_mm: Tensor,
    inside: Tensor | None = None,
    present: Tensor | None = None,
) -> View:
    """Make one view of each sample; the crops stay as they are.

    Args:
        volume: (B, C, D, H, W) float32 in [-1, 1].
        parameters: From :func:`draw_view`, on the CPU.
        shape: (d, h, w) of the view.
        spacing_mm: (B, 3) of the crop's voxels.
        inside: (B, 1, D, H, W) bool, False on padding, which stays air; None: there is no padding.
            Beside it a blur, a bias field or thick slices see air.
        present: (B, C) bool, False for channels that stay air; None: all are there.
    """
    geometry, appearance = parameters
    with torch.autocast(volume.device.type, enabled=False):
        seen = resample(volume, geometry, shape=shape, spacing_mm=spacing_mm, inside=inside)
        channels = rearrange(seen.volume, "b c d h w -> (b c) d h w")
        spacing = repeat(seen.spacing_mm, "b mm -> (b c) mm", c=volume.shape[1])
        per_channel = Appearance(*(value.flatten(0, 1) for value in appearance))
        channels = _degraded(channels, per_channel, spacing_mm=spacing)
        channels = _shown(channels, per_channel)
        made = channels.view_as(seen.volume)
        if geometry.boxes.any():
            made = cut_out(made, geometry.boxes.to(volume.device))
        filled = seen.inside
        if present is not None:
            filled = filled & present.to(volume.device)[..., None, None, None]
        return View(made.masked_fill(~filled, AIR), seen.spacing_mm, seen.inside)


def _degraded(volume: Tensor, appearance: Appearance, *, spacing_mm: Tensor) -> Tensor:
    """(N, d, h, w), N channels of samples, as a scanner would have made them; in place."""
    bias, thickness = appearance.bias, appearance.thickness
    sigma_mm, std = appearance.blur_mm, appearance.noise_std
    volume = _changed(volume, bias.any(dim=1), apply_bias_field, bias)
    for axis in range(3):
        across = (thickness > 1) & (appearance.thick_axis == axis)
        volume = _changed(volume, across, partial(thicken, axis=axis), thickness)
    volume = _changed(volume, sigma_mm > 0, blur, sigma_mm, spacing_mm)
    return _changed(volume, std > 0, add_noise, std, appearance.noise_seed)


def _shown(volume: Tensor, appearance: Appearance) -> Tensor:
    """(N, d, h, w), as a reader would look at them; in place."""
    window, gamma = appearance.window, appearance.gamma
    contrast, brightness = appearance.contrast, appearance.brightness
    narrower = (window != window.new_tensor([-1.0, 1.0])).any(dim=1)
    volume = _changed(volume, narrower, rewindow, window)
    volume = _changed(volume, gamma != 1, curve, gamma)
    return _changed(volume, (contrast != 1) | (brightness != 0), stretch, contrast, brightness)


def _changed(
    volume: Tensor, concerned: Tensor, change: Callable[..., Tensor], *values: Tensor
) -> Tensor:
    """Put the rows that are ``concerned`` (N,) through ``change``, with their ``values``.

    ``concerned`` is on the CPU, so that nothing waits for the device, and what few rows need costs
    little.
    """
    rows = concerned.nonzero()[:, 0]
    if len(rows) == 0:
        return volume
    index = rows.to(volume.device)
    chosen = [value.to(volume.device)[index] for value in values]
    return volume.index_copy_(0, index, change(volume[index], *chosen))
