"""The executable contract between a scan's stored integers and what a backbone sees.

It is stored beside every backbone as ``preprocessing.json``: pretraining, evaluation and a lab's
own scans all go through these functions, so a feature never depends on who computed it.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from recipes.load import Section
from shards.measure.intensity import IntensityStatistics
from shards.scan import MODALITIES

if TYPE_CHECKING:  # the stream needs more libraries than embedding a scan does
    from shards.streaming.batch import CropBatch

Window = tuple[float, float]

AIR = -1.0
"""Value of everything outside a scan, after :func:`normalise`."""

_NUM = len(IntensityStatistics._fields)
_P00_5 = IntensityStatistics._fields.index("p00_5")
_P99_5 = IntensityStatistics._fields.index("p99_5")


class Preprocessing(Section):
    """How a scan becomes a model's input. An MR's window is its own p00_5 to p99_5."""

    orientation: Literal["LPS"] = "LPS"
    spacing_mm: tuple[float, float, float] | None = Field(
        default=None, description="resample to this spacing (d, h, w); null keeps each scan's own"
    )
    crop_shape: tuple[int, int, int] = Field(
        description="voxels (d, h, w) of the model's crop and of the window at inference"
    )
    window_hu: Window = Field(default=(-1000.0, 1000.0), description="CT")
    window_suv: Window = Field(default=(0.0, 10.0), description="PT")
    window_other: Window = Field(default=(0.0, 255.0), description="OT, such as shape masks")

    @model_validator(mode="after")
    def _check(self) -> "Preprocessing":
        if min(self.crop_shape) < 1:
            raise ValueError(f"crop_shape must be positive, got {self.crop_shape}")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")
        for name in ("window_hu", "window_suv", "window_other"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} must rise, got ({low}, {high})")
        return self


def normalise(
    volume: Tensor,
    *,
    slope: Tensor,
    intercept: Tensor,
    modality: Tensor,
    statistics: Tensor,
    preprocessing: Preprocessing,
) -> Tensor:
    """Window the physical intensities of a batch to [-1, 1], each volume by its own modality.

    Args:
        volume: Stored values, (B, C, D, H, W); physical = stored * slope + intercept.
        slope: (B, C); (B,) will do for one channel, here and below.
        intercept: (B, C).
        modality: (B, C) index into ``MODALITIES``.
        statistics: (B, C, 7) of the whole scan in physical units, order of
            ``IntensityStatistics``.
        preprocessing: Names the windows.

    Returns:
        (B, C, D, H, W) float32 on the volume's device; values beyond the window are clipped. A
        window without width (a constant MR) gives -1.
    """
    low, high = _windows(modality.reshape(-1), statistics.reshape(-1, _NUM), preprocessing)
    slope, intercept = slope.reshape(-1), intercept.reshape(-1)
    span = torch.where(high > low, high - low, 1.0)
    # (stored * slope + intercept - low) / span * 2 - 1, as one multiply and one add per voxel.
    scale = 2.0 * slope / span
    shift = 2.0 * (intercept - low) / span - 1.0
    per_channel = (*volume.shape[:2], 1, 1, 1)
    unit = torch.addcmul(shift.view(per_channel), volume.float(), scale.view(per_channel))
    return unit.clamp_(-1.0, 1.0)


class NormalisedBatch(NamedTuple):
    """A batch as a backbone sees it."""

    volume: Tensor
    """(B, C, D, H, W) float32 in [-1, 1]; padding and absent sequences are -1"""
    inside: Tensor
    """(B, 1, D, H, W) bool, False on padding"""
    counted: Tensor
    """(B, C, D, H, W) bool, what a loss may look at: inside the scan, of a sequence that is there,
    and under none of the batch's masks"""
    spacing_mm: Tensor
    """(B, 3) float32, of the voxels (d, h, w) of ``volume``"""


def normalise_batch(batch: "CropBatch", *, preprocessing: Preprocessing) -> NormalisedBatch:
    """:func:`normalise` for a batch of the stream, on the device of its volume.

    Crops of other extents than ``crop_shape`` are resized to it. The batch's masks are those that
    the recipe ignores.
    """
    device, shape = batch.volume.device, preprocessing.crop_shape
    present = batch.present.to(device)[..., None, None, None]
    volume = normalise(
        batch.volume,
        slope=batch.slope.to(device),
        intercept=batch.intercept.to(device),
        modality=batch.modality.to(device),
        statistics=batch.statistics.to(device),
        preprocessing=preprocessing,
    )
    ignored = (batch.masks.to(device) > 0).any(dim=1, keepdim=True)
    scale = None
    spacing_mm = batch.spacing_mm.to(device)
    if volume.shape[2:] != shape or (batch.extent != batch.extent.new_tensor(shape)).any():
        extent = batch.extent.to(device)
        scale = extent / extent.new_tensor(shape)
        spacing_mm = spacing_mm * scale
        volume = resize_crops(volume, extent=extent, shape=shape)
        # Whatever voxel of a mask had a part in a resized one, hides that.
        ignored = resize_crops(ignored.float(), extent=extent, shape=shape) > 0
    inside = inside_mask(batch.inside.to(device), shape, scale=scale)
    volume = volume.masked_fill_(~(inside & present), AIR)
    return NormalisedBatch(volume, inside, inside & present & ~ignored, spacing_mm)


def resize_crops(volume: Tensor, *, extent: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring crops of different sizes to one, each by its own factors, trilinear.

    Voxels are cells: the first begins where the crop begins and the last ends where it ends. There
    is no smoothing before a crop is made smaller.

    Args:
        volume: (B, C, D, H, W) float; sample b's crop is its first ``extent[b]`` voxels.
        extent: (B, 3) integers.
        shape: (d, h, w) of the result.

    Returns:
        (B, C, d, h, w); nothing behind an extent has a part in it.
    """
    # grid_sample names the axes in the order W, H, D, and cells of the whole volume in [-1, 1].
    size = extent.new_tensor(volume.shape[2:]).flip(0)
    edge = extent.flip(1) / size
    theta = torch.cat([torch.diag_embed(edge), (edge - 1)[..., None]], dim=2)
    target = [len(volume), volume.shape[1], *shape]
    grid = functional.affine_grid(theta.to(volume.dtype), target, align_corners=False)
    # Beyond the outermost centres of a crop its last value holds.
    first, last = 1 / size - 1, 2 * edge - 1 / size - 1
    grid = grid.clamp(min=first).minimum(last[:, None, None, None])
    return functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)


def inside_mask(inside: Tensor, shape: Sequence[int], *, scale: Tensor | None = None) -> Tensor:
    """Which voxels of a crop lie inside its scan, by their centres.

    Args:
        inside: (B, 3, 2) integers, [start, stop) per axis.
        shape: (D, H, W) of the crop.
        scale: (B, 3), for a crop that was resized: voxels of before along one voxel of now.

    Returns:
        (B, 1, D, H, W) bool.
    """
    per_axis = []
    for axis, size in enumerate(shape):
        centre = torch.arange(size, device=inside.device)[None] + 0.5
        if scale is not None:
            centre = centre * scale[:, axis, None]
        start, stop = inside[:, axis, 0:1], inside[:, axis, 1:2]
        per_axis.append((centre >= start) & (centre < stop))
    depth, height, width = per_axis
    whole = depth[:, :, None, None] & height[:, None, :, None] & width[:, None, None, :]
    return whole[:, None]


def window_starts(shape: Sequence[int], crop_shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Evenly spaced windows that together cover a scan, with as few windows as can do it.

    Args:
        shape: (D, H, W) of the scan.
        crop_shape: (d, h, w) of a window.

    Returns:
        First voxel of each window in raster order. An axis shorter than the window starts at 0;
        the caller centres the scan in its padding there.
    """
    d, h, w = (_starts(size, crop) for size, crop in zip(shape, crop_shape, strict=True))
    return list(product(d, h, w))


def _starts(size: int, crop: int) -> list[int]:
    if size <= crop:
        return [0]
    gaps = math.ceil(size / crop) - 1
    return [round(index * (size - crop) / gaps) for index in range(gaps + 1)]


def _windows(
    modality: Tensor, statistics: Tensor, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor]:
    """Lower and upper physical bound of each volume, (N,) each."""
    own = statistics[:, [_P00_5, _P99_5]].float()
    fixed = {
        "CT": preprocessing.window_hu,
        "PT": preprocessing.window_suv,
        "OT": preprocessing.window_other,
    }
    windows = own
    for name, window in fixed.items():
        same = (modality == MODALITIES.index(name))[:, None]
        windows = torch.where(same, own.new_tensor(window), windows)
    return windows[:, 0], windows[:, 1]
