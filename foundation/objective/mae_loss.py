"""What a masked autoencoder is asked for, and how its answer is measured (He et al. 2022)."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

AIR_BELOW = -0.95
"""In [-1, 1]: below it lies nothing but air (-950 HU of a window that starts at -1000)."""

_EPSILON = 1e-6


class Targets(NamedTuple):
    """Voxels to predict, with what turns a prediction back into intensities."""

    values: Tensor
    """(B, N, P)"""
    mean: Tensor
    """(B, N, P), 0 where targets are raw"""
    std: Tensor
    """(B, N, P), 1 where targets are raw"""


def patch_statistics(patches: Tensor, *, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis, over the voxels that count.

    Departs from the authors' code, whose images have no padding, in leaving padding out (and what a
    mask hides), and divides by the count, not by the count less one.

    Args:
        patches: (..., P).
        counted: (..., P) bool.

    Returns:
        (..., 1) each; a constant patch has the square root of a small number as its deviation.
    """
    count = counted.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (patches * counted).sum(dim=-1, keepdim=True) / count
    variance = ((patches - mean).square() * counted).sum(dim=-1, keepdim=True) / count
    return mean, (variance + _EPSILON).sqrt()


def targets_of(patches: Tensor, *, counted: Tensor, normalised: Tensor) -> Targets:
    """The voxels to predict, channel by channel normalised within each patch, or raw.

    Args:
        patches: (B, N, C p) intensities in [-1, 1], channels first within a patch.
        counted: (B, N, C p) bool.
        normalised: (B, C) bool.
    """
    channels = normalised.shape[1]
    split = "b n (c p) -> b n c p"
    mean, std = patch_statistics(
        rearrange(patches, split, c=channels), counted=rearrange(counted, split, c=channels)
    )
    asked = normalised.to(patches.device)[:, None, :, None]
    size = patches.shape[-1] // channels
    mean, std = (
        rearrange(each.expand(-1, -1, -1, size), "b n c p -> b n (c p)")
        for each in (torch.where(asked, mean, 0.0), torch.where(asked, std, 1.0))
    )
    return Targets((patches - mean) / std, mean, std)


def voxel_weights(
    patches: Tensor, *, counted: Tensor, hidden: Tensor, max_air_share: float
) -> Tensor:
    """How much each voxel's error counts: nothing, 1, or less for a patch of air.

    Air is easy and plenty. Where patches that hold nothing else make up more than their share of
    what is asked for, all their voxels weigh less, so that they make up just that.

    Args:
        patches: (B, N, P) intensities in [-1, 1].
        counted: (B, N, P) bool, what a loss may look at.
        hidden: (B, M, N) bool, for each of M masks of a sample.
        max_air_share: Of the weight of one sample under one mask; 1 sets no limit.

    Returns:
        (B, M, N, P) float32.
    """
    asked = hidden[..., None] & counted[:, None]
    if max_air_share == 1:
        return asked.float()
    is_air = ((patches < AIR_BELOW) | ~counted).all(dim=-1)[:, None, :, None]
    air = (asked & is_air).sum(dim=(2, 3), keepdim=True)
    rest = (asked & ~is_air).sum(dim=(2, 3), keepdim=True)
    allowed = max_air_share / (1 - max_air_share) * rest
    factor = (allowed / air.clamp(min=1)).clamp(max=1)
    return asked * torch.where(is_air, factor, 1.0)


def masked_error(prediction: Tensor, *, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error over each sample's weighed voxels, then the mean over samples.

    Every scan weighs the same however much of its crop is padding, so ranks that hold as many
    samples average to the loss of the whole batch.

    Args:
        prediction: (..., N, P).
        target: (..., N, P), broadcast.
        weight: (..., N, P), 0 where nothing is asked for.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.float() - target).square() * weight
        per_sample = error.sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp(min=1e-6)
        return per_sample.mean()
