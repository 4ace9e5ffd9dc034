"""Views of a crop, made for a whole batch at once on its device.

The numbers that describe a view are drawn on the CPU from the sample's position in the stream; the
work on voxels, noise included, happens where the volume lies.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from foundation.randomness import normal_field, sample_generator
from recipes.load import Section

Range = tuple[float, float]


class CropScale(Section):
    """How much of the read crop a view shows; in the slice and across slices apart (3DINO)."""

    in_plane: Range = Field(description="share of the area of a slice, H x W")
    across: Range = Field(description="share of the length across slices, D")
    aspect: Range = Field(
        default=(0.75, 4 / 3), description="edge along H by edge along W, as shares"
    )

    @model_validator(mode="after")
    def _check(self) -> "CropScale":
        for name, (low, high) in (("in_plane", self.in_plane), ("across", self.across)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is a range within (0, 1], got ({low}, {high})")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is a range of positive ratios, got {self.aspect}")
        return self


class AugmentConfig(Section):
    """What is done to a view's intensities in [-1, 1], and whether left and right may swap."""

    flip_w: float = Field(
        default=0.0, ge=0, le=1, description="probability; hearts and livers have a side"
    )
    gamma: Range = Field(default=(0.7, 1.5), description="exponent on intensities in [0, 1]")
    contrast: Range = Field(
        default=(0.8, 1.2), description="factor, about the middle of the window"
    )
    brightness: Range = Field(default=(-0.1, 0.1), description="added")
    noise_std: Range = Field(default=(0.0, 0.1), description="of Gaussian noise")

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        for name in ("gamma", "contrast", "brightness", "noise_std"):
            low, high = getattr(self, name)
            if low > high or (low < 0 and name != "brightness"):
                raise ValueError(f"{name} is a rising range that makes sense, got ({low}, {high})")
        return self


class ViewParameters(NamedTuple):
    """One view of each sample."""

    start: Tensor
    """(B, 3), first edge of the shown box per axis (D, H, W), as a share of the crop"""
    extent: Tensor
    """(B, 3), edges of the box, as shares"""
    flip_w: Tensor
    """(B,) bool"""
    gamma: Tensor
    """(B,)"""
    contrast: Tensor
    """(B,)"""
    brightness: Tensor
    """(B,)"""
    noise_std: Tensor
    """(B,)"""
    noise_seed: Tensor
    """(B,) int64"""

    def to(self, device: torch.device) -> "ViewParameters":
        """The same view on another device."""
        return ViewParameters(*(value.to(device) for value in self))


def draw_view(
    positions: Tensor, *, seed: int, view: int, scale: CropScale, augment: AugmentConfig
) -> ViewParameters:
    """The numbers of one view, on the CPU.

    Args:
        positions: (B,) int64, each sample's position in the stream.
        seed: Of the run.
        view: Which view of the sample; views are independent.
        scale: How much of the crop it shows.
        augment: Ranges of the intensity changes.
    """
    uniforms, noise_seeds = [], []
    for position in positions.tolist():
        generator = sample_generator(seed, position=position, purpose=f"view {view}")
        uniforms.append(torch.rand(11, generator=generator))
        noise_seeds.append(torch.randint(2**62, (), generator=generator))
    draws = torch.stack(uniforms)
    extent = _extent(draws[:, 0:3], scale)
    return ViewParameters(
        start=draws[:, 3:6] * (1 - extent),
        extent=extent,
        flip_w=draws[:, 6] < augment.flip_w,
        gamma=_between(draws[:, 7], augment.gamma),
        contrast=_between(draws[:, 8], augment.contrast),
        brightness=_between(draws[:, 9], augment.brightness),
        noise_std=_between(draws[:, 10], augment.noise_std),
        noise_seed=torch.stack(noise_seeds),
    )


def apply_view(volume: Tensor, parameters: ViewParameters, *, shape: Sequence[int]) -> Tensor:
    """Make one view of each sample: (B, 1, D, H, W) in [-1, 1] to (B, 1, d, h, w) in [-1, 1]."""
    parameters = parameters.to(volume.device)
    return jitter(resized_crop(volume, parameters, shape=shape), parameters)


def resized_crop(volume: Tensor, parameters: ViewParameters, *, shape: Sequence[int]) -> Tensor:
    """Cut each sample's box and resample it to ``shape`` (d, h, w), trilinear, flipped or not.

    Voxels are cells: a box of the whole crop at the crop's own shape changes nothing. Beyond the
    outermost centres the last value holds.
    """
    # Cells in [-1, 1]: the box's middle, and half its edge.
    middle = 2 * parameters.start + parameters.extent - 1
    half_edge = parameters.extent.clone()
    half_edge[:, 2] *= torch.where(parameters.flip_w, -1.0, 1.0)
    # grid_sample names the axes in the order W, H, D.
    theta = torch.cat([torch.diag_embed(half_edge.flip(1)), middle.flip(1)[..., None]], dim=2)
    size = [len(volume), volume.shape[1], *shape]
    grid = functional.affine_grid(theta, size, align_corners=False)
    return functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)


def jitter(volume: Tensor, parameters: ViewParameters) -> Tensor:
    """Gamma, contrast, brightness and noise, each sample by its own numbers, clipped to [-1, 1]."""
    gamma, contrast, brightness, noise_std = (
        value[:, None, None, None, None]
        for value in (
            parameters.gamma,
            parameters.contrast,
            parameters.brightness,
            parameters.noise_std,
        )
    )
    unit = ((volume + 1) / 2).clamp(0, 1)
    curved = 2 * unit**gamma - 1
    noise = normal_field(parameters.noise_seed, num_values=volume[0].numel()).view_as(volume)
    return (curved * contrast + brightness + noise_std * noise).clamp(-1, 1)


def _extent(draws: Tensor, scale: CropScale) -> Tensor:
    """(B, 3) uniform numbers to the edges (D, H, W) of a box, as shares of the crop."""
    across = _between(draws[:, 0], scale.across)
    area = _between(draws[:, 1], scale.in_plane)
    aspect = _between(draws[:, 2], (math.log(scale.aspect[0]), math.log(scale.aspect[1]))).exp()
    height = (area * aspect).sqrt().clamp(max=1)
    width = (area / aspect).sqrt().clamp(max=1)
    return torch.stack([across, height, width], dim=1)


def _between(draws: Tensor, bounds: Range) -> Tensor:
    low, high = bounds
    return low + (high - low) * draws
