"""Features of a scan, a file or a batch of tensors, in Python.

    backbone = load_backbone("runs/demo_mae/backbone")
    features = embed(backbone, "scan.nii.gz", modality="CT")     # cls and mean, (E,) each
    features = embed(backbone, volumes, spacing_mm=(5, 1, 1))    # (B, E) each

Gradients flow wherever the caller lets them: nothing here switches them off, and a frozen backbone
takes none for its weights. For plain inference wrap the call in ``torch.inference_mode()``.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from foundation.network.patches import patchify
from foundation.preprocessing import AIR, Preprocessing, normalise, window_starts
from foundation.vit import Vit3d
from foundation.windows import Layers, Tokens, pool_scan, prepare
from shards.measure.intensity import intensity_statistics
from shards.scan import MODALITIES, Scan, read_scan, resample

if TYPE_CHECKING:  # which delegates to this
    from foundation.backbone import Backbone

Spacing = tuple[float, float, float]
_ROUNDING = 1e-3


class InputError(ValueError):
    """A scan or a tensor that this backbone cannot take as it is."""


class Features(NamedTuple):
    """Float32, on the backbone's device: (E,) of a scan, (B, E) of a batch."""

    cls: Tensor
    """mean class token of the windows"""
    mean: Tensor
    """mean of the patch tokens that see any of the scan; pure padding does not count"""


def embed(
    backbone: "Backbone",
    what: str | Path | Scan | Tensor,
    *,
    modality: str | None = None,
    spacing_mm: Spacing | Tensor | None = None,
) -> Features:
    """Features of whatever holds a scan.

    A file or a :class:`Scan` goes through the whole contract: LPS, the contract's spacing, its
    window of intensities, padding with air evenly on both sides up to one window of ``crop_shape``,
    and as many windows as cover it. A tensor is taken as it is, on its own grid: see
    :func:`embed_volumes`.

    Args:
        backbone: In evaluation mode.
        what: A file, a DICOM folder, a scan, or volumes (B, C, D, H, W) in LPS order.
        modality: Of an image file, which does not tell; of a tensor in physical units.
        spacing_mm: Of a tensor's voxels, (d, h, w) or (B, 3). Of a scan: resample to this instead
            of to the contract's spacing.

    Raises:
        ScanError: The file cannot be read, or not be resampled.
        InputError: The backbone cannot take this.
    """
    if isinstance(what, Tensor):
        return embed_volumes(backbone, what, modality=modality, spacing_mm=spacing_mm)
    if isinstance(spacing_mm, Tensor):
        raise InputError("spacing_mm of a scan is three numbers (d, h, w), got a tensor")
    scan = what if isinstance(what, Scan) else read_scan(os.fspath(what), modality=modality)
    return embed_scan(backbone, scan, spacing_mm=spacing_mm)


def embed_scan(backbone: "Backbone", scan: Scan, *, spacing_mm: Spacing | None = None) -> Features:
    """What :func:`embed` does with a scan.

    Raises:
        ScanError: The scan is thinner than a voxel of the spacing.
        InputError: The backbone takes several sequences at once.
    """
    scan = at_contract(backbone, scan, spacing_mm=spacing_mm)
    pooled = pool_scan(
        network_of(backbone.vit, scan.spacing_mm),
        prepare(scan, preprocessing=backbone.preprocessing, device=device_of(backbone)),
        crop_shape=backbone.preprocessing.crop_shape,
        patch_size=backbone.vit.patch_size,
    )
    return Features(pooled.cls[0], pooled.mean[0])


def embed_volumes(
    backbone: "Backbone",
    volume: Tensor,
    *,
    modality: str | None = None,
    spacing_mm: Spacing | Tensor | None = None,
    present: Tensor | None = None,
) -> Features:
    """Features of a batch on one grid, which is not resampled.

    An axis that is shorter than the contract's crop is padded with air evenly on both sides, and
    a longer one is covered by windows, as those of a scan. Gradients reach ``volume``.

    Args:
        backbone: In evaluation mode.
        volume: (B, C, D, H, W) in LPS order: in [-1, 1] as the contract's windows give it, or in
            physical units with ``modality``.
        modality: Windows physical units by the contract; without it they are taken as windowed.
        spacing_mm: (d, h, w) of all or (B, 3); a backbone with positions in mm needs it.
        present: (B, C) bool, False where a sample lacks a sequence.

    Raises:
        InputError: Another number of axes or channels, values that are not windowed, no spacing.
    """
    vit, contract = backbone.vit, backbone.preprocessing
    volume = volume.to(device_of(backbone))
    volume = volume.to(vit.cls_token.dtype) if not volume.is_floating_point() else volume
    _check_volume(vit, volume)
    spacing = spacing_of(vit, spacing_mm, batch=len(volume))
    volume = windowed(volume, modality=modality, preprocessing=contract)
    missing = [
        max(crop - size, 0)
        for crop, size in zip(contract.crop_shape, volume.shape[2:], strict=True)
    ]
    pad = [edge for gap in reversed(missing) for edge in (gap // 2, gap - gap // 2)]
    inside = functional.pad(torch.ones_like(volume[:1, :1].detach()), pad)
    volume = functional.pad(volume, pad, value=AIR)
    classes, sums, counts = [], [], []
    for place in _places(volume.shape[2:], contract.crop_shape):
        seen = patchify(inside[place], patch_size=vit.patch_size)[0].amax(dim=1).double()
        output = vit(volume[place], spacing_mm=spacing, present=present)
        classes.append(output.cls_token.double())
        sums.append(torch.einsum("n,bne->be", seen, output.patch_tokens.double()))
        counts.append(seen.sum())
    mean = torch.stack(sums).sum(dim=0) / torch.stack(counts).sum()
    return Features(torch.stack(classes).mean(dim=0).float(), mean.float())


def windowed(volume: Tensor, *, modality: str | None, preprocessing: Preprocessing) -> Tensor:
    """(B, C, D, H, W) in [-1, 1], whichever of the two units it comes in.

    Raises:
        InputError: Physical units without a modality, or no such modality.
    """
    if modality is None:
        low, high = volume.detach().aminmax() if volume.numel() else (volume.new_zeros(()),) * 2
        if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):
            raise InputError(
                f"a volume with values from {low:g} to {high:g}: the contract's windows give "
                f"[-1, 1]; give modality= for physical units (Hounsfield units for CT)"
            )
        return volume
    if modality not in MODALITIES:
        raise InputError(f"modality {modality!r}: expected one of {', '.join(MODALITIES)}")
    many = len(volume) * volume.shape[1]
    flat = volume.detach().flatten(0, 1).float().cpu().numpy()
    statistics = torch.tensor([tuple(intensity_statistics(each)) for each in flat])
    return normalise(
        volume,
        slope=torch.ones(many, device=volume.device),
        intercept=torch.zeros(many, device=volume.device),
        modality=torch.full((many,), MODALITIES.index(modality), device=volume.device),
        statistics=statistics.to(volume.device, torch.float32),
        preprocessing=preprocessing,
    )


def at_contract(backbone: "Backbone", scan: Scan, *, spacing_mm: Spacing | None = None) -> Scan:
    """The scan at ``spacing_mm``, or at the contract's spacing, or at its own.

    Raises:
        ScanError: It is thinner than a voxel there.
        InputError: The backbone takes several sequences at once.
    """
    check_takes_scans(backbone)
    target = spacing_mm or backbone.preprocessing.spacing_mm
    return resample(scan, target) if target else scan


def check_takes_scans(backbone: "Backbone") -> None:
    """Raises InputError for a backbone of several sequences at once: a scan is one."""
    channels = backbone.vit.in_chans
    if channels != 1:
        raise InputError(
            f"the backbone takes {channels} sequences at once (in_chans), a scan is one; stack "
            f"them on one grid and embed a tensor (B, {channels}, D, H, W)"
        )


def network_of(vit: Vit3d, spacing_mm: Spacing) -> Callable[[Tensor], Layers]:
    """From (B, 1, d, h, w) windows of one scan to the tokens of the last block."""
    spacing = torch.tensor([spacing_mm], device=vit.cls_token.device)
    return lambda windows: [Tokens(*vit(windows, spacing_mm=spacing.expand(len(windows), -1)))]


def device_of(backbone: "Backbone") -> torch.device:
    """Where the network lives."""
    return backbone.vit.cls_token.device


def spacing_of(
    vit: Vit3d, spacing_mm: Spacing | Sequence[float] | Tensor | None, *, batch: int
) -> Tensor | None:
    """(B, 3) on the network's device.

    Raises:
        InputError: It is missing where positions are in mm, or has another shape.
    """
    if spacing_mm is None:
        if vit.positions.kind == "rope_mm":
            raise InputError("this backbone's positions are in mm: give spacing_mm=(d, h, w)")
        return None
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float32, device=vit.cls_token.device)
    if spacing.shape not in ((3,), (1, 3), (batch, 3)):
        raise InputError(f"spacing_mm is (3,) or ({batch}, 3), got {tuple(spacing.shape)}")
    return spacing.expand(batch, 3)


def _check_volume(vit: Vit3d, volume: Tensor) -> None:
    if volume.ndim != 5 or volume.shape[1] != vit.in_chans or not len(volume):
        raise InputError(f"a batch is (B, {vit.in_chans}, D, H, W), got {tuple(volume.shape)}")


def _places(shape: Sequence[int], crop_shape: Sequence[int]) -> Iterable[tuple[slice, ...]]:
    every = slice(None)
    for start in window_starts(shape, crop_shape):
        box = (slice(a, a + crop) for a, crop in zip(start, crop_shape, strict=True))
        yield (every, every, *box)
