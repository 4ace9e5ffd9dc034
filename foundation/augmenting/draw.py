"""The numbers that describe a view, drawn on the CPU from the sample's position in the stream."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from foundation.augmenting.artefacts import NUM_BIAS_TERMS
from foundation.augmenting.config import (
    Affine,
    AugmentConfig,
    BiasField,
    CropScale,
    Cutout,
    LowResolution,
    Range,
    Rotation,
    WindowJitter,
)
from foundation.preprocessing import Window
from foundation.running.randomness import sample_generator
from shards.scan import MODALITIES


class Geometry(NamedTuple):
    """What one view of each of B samples shows."""

    start: Tensor
    """(B, 3), first edge of the shown box per axis (D, H, W), as a share of the crop"""
    extent: Tensor
    """(B, 3), edges of the box, as shares"""
    linear: Tensor
    """(B, 3, 3), a place in the view to one in the crop, millimetres from the middle of the box"""
    boxes: Tensor
    """(B, K, 3, 2), [start, stop) of what is cut out, as shares of the view; empty if nothing"""


class Appearance(NamedTuple):
    """How it shows it, each of its C channels by its own numbers.

    A change that a channel is spared has the value that changes nothing.
    """

    bias: Tensor
    """(B, C, 20), coefficients of the bias field's polynomial"""
    thickness: Tensor
    """(B, C), of simulated slices, in voxels"""
    thick_axis: Tensor
    """(B, C) int64, the axis across them"""
    blur_mm: Tensor
    """(B, C), sigma"""
    noise_std: Tensor
    """(B, C)"""
    noise_seed: Tensor
    """(B, C) int64"""
    window: Tensor
    """(B, C, 2), what becomes -1 and 1"""
    gamma: Tensor
    """(B, C)"""
    contrast: Tensor
    """(B, C)"""
    brightness: Tensor
    """(B, C)"""


class ViewParameters(NamedTuple):
    """One view of each sample; all on the CPU."""

    geometry: Geometry
    appearance: Appearance


class _Draws:
    """Columns of uniform numbers, each handed out once."""

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms
        self.taken = 0

    def take(self, num: int) -> Tensor:
        """(..., num)."""
        self.taken += num
        columns = self.uniforms[..., self.taken - num : self.taken]
        assert columns.shape[-1] == num
        return columns

    def one(self) -> Tensor:
        """(...)."""
        return self.take(1)[..., 0]

    def happens(self, probability: float) -> Tensor:
        """(...) bool."""
        return self.one() < probability


_NUM_OF_VIEW = 3 + 3 + 3 + (1 + 3) + (1 + 6) + 1
_NUM_OF_BOX = 6
_NUM_OF_CHANNEL = (1 + NUM_BIAS_TERMS) + 3 + 2 + 2 + 3 + 2 + 2 + 2


def draw_view(
    positions: Tensor,
    *,
    seed: int,
    view: int,
    scale: CropScale,
    augment: AugmentConfig,
    modality: Tensor,
    window_hu: Window,
) -> ViewParameters:
    """The numbers of one view of each sample.

    Args:
        positions: (B,) int64, each sample's position in the stream.
        seed: Of the run.
        view: Which view of the sample; views are independent.
        scale: How much of the crop it shows.
        augment: Probabilities and ranges.
        modality: (B, C) index into ``MODALITIES``.
        window_hu: The window of the preprocessing, which a jittered one lies in.
    """
    num_channels = modality.shape[1]
    num_of_view = _NUM_OF_VIEW + augment.cutout.num_boxes * _NUM_OF_BOX
    uniforms, noise_seeds = [], []
    for position in positions.tolist():
        generator = sample_generator(seed, position=position, purpose=f"view {view}")
        num = num_of_view + num_channels * _NUM_OF_CHANNEL
        uniforms.append(torch.rand(num, generator=generator))
        noise_seeds.append(torch.randint(2**62, (num_channels,), generator=generator))
    of_view, of_channels = torch.stack(uniforms).tensor_split([num_of_view], dim=1)
    of_channels = rearrange(of_channels, "b (c n) -> b c n", c=num_channels)
    appearance = _appearance(
        _Draws(of_channels),
        augment,
        modality=modality.cpu(),
        noise_seed=torch.stack(noise_seeds),
        window_hu=window_hu,
    )
    with torch.autocast("cpu", enabled=False):  # else angles would be rounded to bf16
        geometry = _geometry(_Draws(of_view), augment, scale=scale)
    return ViewParameters(geometry, appearance)


def _geometry(draws: _Draws, augment: AugmentConfig, *, scale: CropScale) -> Geometry:
    extent = _extent(draws.take(3), scale)
    start = draws.take(3) * (1 - extent)
    flip = torch.where(draws.take(3) < extent.new_tensor(augment.flip), -1.0, 1.0)
    turn = _rotation(draws, augment.rotation)
    linear = turn @ _affine(draws, augment.affine) @ torch.diag_embed(flip)
    return Geometry(start, extent, linear, _boxes(draws, augment.cutout))


def _appearance(
    draws: _Draws,
    augment: AugmentConfig,
    *,
    modality: Tensor,
    noise_seed: Tensor,
    window_hu: Window,
) -> Appearance:
    """Bias fields and thick slices are for MR alone, another window for CT."""
    is_mr = modality == MODALITIES.index("MR")
    is_ct = modality == MODALITIES.index("CT")
    blur, noise, gamma = augment.blur, augment.noise, augment.gamma
    contrast, brightness = augment.contrast, augment.brightness
    return Appearance(
        bias=_bias(draws, augment.bias_field, allowed=is_mr),
        thickness=_thickness(draws, augment.low_resolution, allowed=is_mr),
        thick_axis=(draws.one() * 3).long(),
        blur_mm=_value(draws, blur.probability, blur.sigma_mm, neutral=0),
        noise_std=_value(draws, noise.probability, noise.std, neutral=0),
        noise_seed=noise_seed,
        window=_window(draws, augment.window, allowed=is_ct, window_hu=window_hu),
        gamma=_value(draws, gamma.probability, gamma.exponent, neutral=1),
        contrast=_value(draws, contrast.probability, contrast.factor, neutral=1),
        brightness=_value(draws, brightness.probability, brightness.shift, neutral=0),
    )


def _extent(draws: Tensor, scale: CropScale) -> Tensor:
    """(B, 3) uniform numbers to the edges (D, H, W) of a box, as shares of the crop."""
    across = _between(draws[:, 0], scale.across)
    area = _between(draws[:, 1], scale.in_plane)
    aspect = _between(draws[:, 2], (math.log(scale.aspect[0]), math.log(scale.aspect[1]))).exp()
    height = (area * aspect).sqrt().clamp(max=1)
    width = (area / aspect).sqrt().clamp(max=1)
    return torch.stack([across, height, width], dim=1)


def _rotation(draws: _Draws, config: Rotation) -> Tensor:
    """(B, 3, 3), about D, then H, then W."""
    happens = draws.happens(config.probability)[:, None]
    degrees = (2 * draws.take(3) - 1) * draws.uniforms.new_tensor(config.degrees)
    return rotation_matrix(torch.where(happens, degrees, 0.0))


def rotation_matrix(degrees: Tensor) -> Tensor:
    """(B, 3) angles about D, H and W to (B, 3, 3): R_W R_H R_D.

    A positive angle about an axis turns the next axis towards the one after it, in the cycle
    D, H, W.
    """
    cosine, sine = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    whole = torch.eye(3).expand(len(degrees), 3, 3)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3).repeat(len(degrees), 1, 1)
        turn[:, one, one] = turn[:, two, two] = cosine[:, axis]
        turn[:, two, one] = sine[:, axis]
        turn[:, one, two] = -sine[:, axis]
        whole = turn @ whole
    return whole


def _affine(draws: _Draws, config: Affine) -> Tensor:
    """(B, 3, 3); what is made larger in the view is looked up nearer to the middle."""
    happens = draws.happens(config.probability)[:, None]
    scale = torch.where(happens, _between(draws.take(3), config.scale), 1.0)
    shear = torch.where(happens, (2 * draws.take(3) - 1) * config.shear, 0.0)
    matrix = torch.diag_embed(1 / scale)
    for column, (row, other) in enumerate(((0, 1), (0, 2), (1, 2))):
        matrix[:, row, other] = shear[:, column]
    return matrix


def _boxes(draws: _Draws, config: Cutout) -> Tensor:
    """(B, K, 3, 2)."""
    happens = draws.happens(config.probability)
    uniforms = rearrange(
        draws.take(config.num_boxes * _NUM_OF_BOX), "b (k n) -> b k n", k=config.num_boxes
    )
    edge = _between(uniforms[..., :3], config.edge)
    start = uniforms[..., 3:] * (1 - edge)
    boxes = torch.stack([start, start + edge], dim=-1)
    return torch.where(happens[:, None, None, None], boxes, 0.0)


def _bias(draws: _Draws, config: BiasField, *, allowed: Tensor) -> Tensor:
    """(B, C, 20)."""
    happens = draws.happens(config.probability) & allowed
    coefficients = (2 * draws.take(NUM_BIAS_TERMS) - 1) * config.coefficient
    return torch.where(happens[..., None], coefficients, 0.0)


def _thickness(draws: _Draws, config: LowResolution, *, allowed: Tensor) -> Tensor:
    """(B, C)."""
    happens = draws.happens(config.probability) & allowed
    return torch.where(happens, _between(draws.one(), config.factor), 1.0)


def _window(draws: _Draws, config: WindowJitter, *, allowed: Tensor, window_hu: Window) -> Tensor:
    """(B, C, 2), within the whole window from -1 to 1."""
    happens = draws.happens(config.probability) & allowed
    width = _between(draws.one(), config.width)
    level = _between(draws.one(), config.level_hu) * 2 / (window_hu[1] - window_hu[0])
    level = level.clamp(min=width - 1, max=1 - width)
    window = torch.stack([level - width, level + width], dim=-1)
    return torch.where(happens[..., None], window, window.new_tensor([-1.0, 1.0]))


def _value(draws: _Draws, probability: float, bounds: Range, *, neutral: float) -> Tensor:
    """(B, C)."""
    happens = draws.happens(probability)
    return torch.where(happens, _between(draws.one(), bounds), neutral)


def _between(draws: Tensor, bounds: Range) -> Tensor:
    low, high = bounds
    return low + (high - low) * draws
