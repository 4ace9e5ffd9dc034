"""A scan seen window by window: what a network says of each, pooled or laid out on one grid.

A window has the shape of the crops a network was trained on, so a scan of any size goes through it
with the memory of a few windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foundation.network.patches import Shape, patchify
from foundation.preprocessing import AIR, Preprocessing, normalise, window_starts
from shards.measure.intensity import intensity_statistics
from shards.scan import MODALITIES, Scan

_WINDOWS_AT_ONCE = 8
_SEED = 0


class Tokens(NamedTuple):
    """What one layer of a network says of a batch of windows."""

    cls_token: Tensor | None
    """(B, E); None where the network has none"""
    patch_tokens: Tensor
    """(B, N, E) in raster order; N is 0 where there are none"""


Layers = Sequence[Tokens]
"""Of the last blocks, the last one first."""


class Prepared(NamedTuple):
    """A scan as a network sees it, at least one window large."""

    volume: Tensor
    """(D, H, W) in [-1, 1]"""
    inside: Tensor
    """(D, H, W), 1 where it is not padding"""
    before: Shape
    """voxels of padding before the scan, along each axis"""


class Pooled(NamedTuple):
    """Features of a scan, float32; L layers, the last first, W windows, T patches."""

    cls: Tensor
    """(L, E) mean class token of the windows; the mean patch token where there is none"""
    mean: Tensor
    """(L, E) mean of the patch tokens that see any of the scan"""
    crop_cls: Tensor
    """(W, E) of the last layer"""
    crop_mean: Tensor
    """(W, E) of the last layer"""
    patch: Tensor
    """(T, E) of the last layer, a sample of the tokens that see any of the scan"""


def prepare(
    scan: Scan,
    *,
    preprocessing: Preprocessing,
    device: torch.device | str,
    patch_size: Shape = (1, 1, 1),
) -> Prepared:
    """Normalise a scan and pad it evenly to a window, and to a whole number of patches.

    Args:
        scan: Voxels in physical units, at the spacing the network shall see.
        preprocessing: The contract of the network's inputs; its spacing is not looked at.
        device: Where the network lives.
        patch_size: Voxels (d, h, w) that each axis shall be a multiple of.
    """
    voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels, dtype=np.float32)).to(device)
    statistics = intensity_statistics(scan.voxels)
    values = normalise(
        voxels[None, None],
        slope=torch.ones(1, device=device),
        intercept=torch.zeros(1, device=device),
        modality=torch.tensor([MODALITIES.index(scan.modality)], device=device),
        statistics=torch.tensor([tuple(statistics)], dtype=torch.float32, device=device),
        preprocessing=preprocessing,
    )[0, 0]
    missing = [
        -(-max(crop, size) // patch) * patch - size
        for crop, size, patch in zip(
            preprocessing.crop_shape, values.shape, patch_size, strict=True
        )
    ]
    before = (missing[0] // 2, missing[1] // 2, missing[2] // 2)
    # torch pads the last axis first; the scan sits in the middle, as in pretraining.
    pad = [edge for gap in reversed(missing) for edge in (gap // 2, gap - gap // 2)]
    inside = torch.ones_like(values)
    padded = functional.pad(values, pad, value=AIR)
    return Prepared(padded, functional.pad(inside, pad, value=0.0), before)


def pool_scan(
    network: Callable[[Tensor], Layers],
    prepared: Prepared,
    *,
    crop_shape: Shape,
    patch_size: Shape | None,
    most_patches: int = 0,
) -> Pooled:
    """Pool what a network says of the windows that cover a scan.

    Args:
        network: From (B, 1, d, h, w) windows.
        prepared: The scan.
        crop_shape: (d, h, w) of a window.
        patch_size: Of the network's patch tokens; None where it has none.
        most_patches: How many patch tokens to keep at most.
    """
    starts = window_starts(prepared.volume.shape, crop_shape)
    weight = torch.zeros(len(starts), 0)
    if patch_size is not None:
        parts = _windows(prepared.inside, starts, crop_shape)
        seen = [patchify(part, patch_size=patch_size).amax(dim=2) for part in parts]
        weight = torch.cat(seen)
    outputs = (network(part) for part in _windows(prepared.volume, starts, crop_shape))
    return pool_windows(outputs, weight=weight, most_patches=most_patches)


def pool_windows(outputs: Iterable[Layers], *, weight: Tensor, most_patches: int = 0) -> Pooled:
    """Pool over windows, batch by batch.

    Args:
        outputs: Of all W windows in their order, some at a time.
        weight: (W, N): 1 for patches that see any of the scan, 0 for padding.
        most_patches: How many patch tokens to keep at most.
    """
    kept = _sampled(weight, most=most_patches)
    classes, patches, crops, tokens, seen = [], [], [], [], []
    first = 0
    for layers in outputs:
        size = len(layers[0].patch_tokens)
        part = weight[first : first + size].double()
        by_window = [_of_windows(layer, part) for layer in layers]
        classes.append(torch.stack([each.cls.sum(dim=0) for each in by_window]))
        patches.append(torch.stack([each.patches for each in by_window]))
        crops.append((by_window[0].cls.float(), by_window[0].mean.float()))
        tokens.append(layers[0].patch_tokens[kept[first : first + size]])
        seen.append(part.sum())
        first += size
    assert first == len(weight), "one output for each window"
    cls = torch.stack(classes).sum(dim=0) / len(weight)
    mean = torch.stack(patches).sum(dim=0) / torch.stack(seen).sum() if weight.numel() else cls
    has_cls = layers[0].cls_token is not None
    crop_cls, crop_mean = (torch.cat(each) for each in zip(*crops, strict=True))
    return Pooled(
        cls=(cls if has_cls else mean).float(),
        mean=mean.float(),
        crop_cls=crop_cls,
        crop_mean=crop_mean,
        patch=torch.cat(tokens).float(),
    )


def merge_windows(
    network: Callable[[Tensor], Layers],
    prepared: Prepared,
    *,
    crop_shape: Shape,
    patch_size: Shape,
) -> Tensor:
    """Patch tokens of a whole scan on one grid, (d, h, w, E) float32 on the CPU.

    Windows begin on whole patches, and where several see a patch, their tokens are averaged.

    Args:
        network: From (B, 1, d, h, w) windows; its last layer is taken.
        prepared: The scan, padded to a whole number of patches.
        crop_shape: (d, h, w) of a window.
        patch_size: Of the patch tokens.
    """
    axes = range(3)
    grid = [prepared.volume.shape[axis] // patch_size[axis] for axis in axes]
    cells = [crop_shape[axis] // patch_size[axis] for axis in axes]
    places = window_starts(grid, cells)
    starts = [(a * patch_size[0], b * patch_size[1], c * patch_size[2]) for a, b, c in places]
    total, count = torch.zeros(0), torch.zeros(*grid, 1)
    done = 0
    for part in _windows(prepared.volume, starts, crop_shape):
        tokens = network(part)[0].patch_tokens.float().cpu()
        if not done:
            total = torch.zeros(*grid, tokens.shape[-1])
        for found, place in zip(tokens, places[done : done + len(part)], strict=True):
            box = tuple(slice(place[axis], place[axis] + cells[axis]) for axis in axes)
            total[box] += found.view(*cells, -1)
            count[box] += 1
        done += len(part)
    return total.div_(count)


class _OfWindows(NamedTuple):
    cls: Tensor
    """(B, E) double"""
    mean: Tensor
    """(B, E) double"""
    patches: Tensor
    """(E,) double, the sum of all windows' patch tokens that count"""


def _of_windows(layer: Tokens, weight: Tensor) -> _OfWindows:
    if not weight.shape[1]:
        assert layer.cls_token is not None, "a class token or patch tokens"
        cls = layer.cls_token.double()
        return _OfWindows(cls, cls, cls.sum(dim=0))
    tokens = layer.patch_tokens.double()
    patches = torch.einsum("bn,bne->e", weight, tokens)
    mean = torch.einsum("bn,bne->be", weight, tokens) / weight.sum(dim=1, keepdim=True)
    return _OfWindows(mean if layer.cls_token is None else layer.cls_token.double(), mean, patches)


def _sampled(weight: Tensor, *, most: int) -> Tensor:
    """(W, N) bool: at most so many of the patches that count, one from each equal share of them.

    Shares follow the raster; the place within each is drawn, else the raster's period would show.
    """
    candidates = np.flatnonzero(weight.cpu().numpy())
    number = min(most, len(candidates))
    edges = np.arange(number + 1) * len(candidates) // max(1, number)
    places = np.random.default_rng(_SEED).integers(edges[:-1], edges[1:])
    kept = np.zeros(weight.numel(), dtype=np.bool_)
    kept[candidates[places]] = True
    return torch.from_numpy(kept.reshape(weight.shape)).to(weight.device)


def _windows(volume: Tensor, starts: Sequence[Shape], crop_shape: Shape) -> Iterator[Tensor]:
    """(B, 1, d, h, w) windows that begin at ``starts``, some at a time."""
    d, h, w = crop_shape
    for first in range(0, len(starts), _WINDOWS_AT_ONCE):
        some = starts[first : first + _WINDOWS_AT_ONCE]
        yield torch.stack([volume[a : a + d, b : b + h, c : c + w] for a, b, c in some])[:, None]
