"""Which patches a masked objective hides."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.running.randomness import sample_generator

_MAX_BOXES = 64
_LARGEST_BOX = 0.5
_SMALLEST_BOX = 0.05
_STRETCH = 0.4


class TokenMask(NamedTuple):
    """The visible and the hidden patches of a batch; every sample hides as many."""

    keep: Tensor
    """(B, K) int64, indices of the visible patches, rising"""
    mask: Tensor
    """(B, N) bool, True where a patch is hidden"""

    def to(self, device: torch.device) -> "TokenMask":
        """The same mask on another device."""
        return TokenMask(self.keep.to(device), self.mask.to(device))


def random_mask(
    positions: Tensor, *, num_tokens: int, mask_ratio: float, seed: int, draw: int = 0
) -> TokenMask:
    """Hide the same share of patches in each sample, uniformly at random (He et al. 2022).

    Args:
        positions: (B,) int64, each sample's position in the stream; fixes the mask with ``seed``.
        num_tokens: N; at least one patch stays visible and one is hidden.
        mask_ratio: Share to hide; the count is exact, round(N * mask_ratio).
        seed: Of the run.
        draw: Which mask of the sample; they are independent.

    Returns:
        The mask, on the CPU.
    """
    num_hidden = hidden_count(num_tokens, mask_ratio=mask_ratio)
    kept = []
    for position in positions.tolist():
        order = torch.randperm(num_tokens, generator=_generator(seed, position, draw))
        kept.append(order[num_hidden:].sort().values)
    keep = torch.stack(kept)
    mask = torch.ones(len(keep), num_tokens, dtype=torch.bool).scatter_(1, keep, False)
    return TokenMask(keep, mask)


def block_mask(
    positions: Tensor, *, grid: Sequence[int], mask_ratio: float, seed: int, draw: int = 0
) -> TokenMask:
    """:func:`random_mask` in boxes, which cannot be filled in from the next patch."""
    num_tokens = math.prod(grid)
    num_hidden = hidden_count(num_tokens, mask_ratio=mask_ratio)
    mask = torch.stack(
        [
            boxes(grid, num_hidden=num_hidden, generator=_generator(seed, position, draw))
            for position in positions.tolist()
        ]
    )
    return TokenMask((~mask).nonzero()[:, 1].view(len(mask), num_tokens - num_hidden), mask)


def hidden_count(num_tokens: int, *, mask_ratio: float) -> int:
    """How many of the patches are hidden: at least one, and at least one stays visible."""
    if num_tokens < 2:
        raise ValueError(f"cannot mask {num_tokens} patch; make crop_shape larger than patch_size")
    return min(max(round(num_tokens * mask_ratio), 1), num_tokens - 1)


def boxes(grid: Sequence[int], *, num_hidden: int, generator: torch.Generator) -> Tensor:
    """A union of boxes with an exact number of patches: (N,) bool in raster order.

    A box is about as elongated as the grid itself, so that few thick slices are hidden as often as
    many thin ones. Of the last box only as many patches are hidden as are still missing.

    Args:
        grid: Patches per axis.
        num_hidden: From 0 to N.
        generator: On the CPU.
    """
    hidden = torch.zeros(*grid, dtype=torch.bool)
    for _ in range(_MAX_BOXES):
        missing = num_hidden - int(hidden.sum())
        if missing == 0:
            return hidden.flatten()
        box = _box(grid, share=missing / hidden.numel(), generator=generator)
        new = torch.zeros_like(hidden)
        new[box] = True
        _hide_some(hidden, new & ~hidden, most=missing, generator=generator)
    _hide_some(hidden, ~hidden, most=num_hidden - int(hidden.sum()), generator=generator)
    return hidden.flatten()


def _box(
    grid: Sequence[int], *, share: float, generator: torch.Generator
) -> tuple[slice, slice, slice]:
    draws = torch.rand(7, generator=generator).tolist()
    high = min(max(share, _SMALLEST_BOX), _LARGEST_BOX)
    volume = _SMALLEST_BOX + (high - _SMALLEST_BOX) * draws[0]
    found = []
    for axis, size in enumerate(grid):
        stretch = math.exp(_STRETCH * (2 * draws[1 + axis] - 1))
        edge = min(max(round(size * volume ** (1 / 3) * stretch), 1), size)
        start = int(draws[4 + axis] * (size - edge + 1))
        found.append(slice(start, start + edge))
    return found[0], found[1], found[2]


def _hide_some(hidden: Tensor, new: Tensor, *, most: int, generator: torch.Generator) -> None:
    """Hide up to ``most`` of the new patches, drawn evenly."""
    places = new.flatten().nonzero()[:, 0]
    chosen = places[torch.randperm(len(places), generator=generator)[:most]]
    hidden.view(-1)[chosen] = True


def _generator(seed: int, position: int, draw: int) -> torch.Generator:
    purpose = "mask" if draw == 0 else f"mask {draw}"
    return sample_generator(seed, position=position, purpose=purpose)
