"""Which patches a masked objective hides."""

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.randomness import sample_generator


class TokenMask(NamedTuple):
    """The visible and the hidden patches of a batch; every sample hides as many."""

    keep: Tensor
    """(B, K) int64, indices of the visible patches, rising"""
    mask: Tensor
    """(B, N) bool, True where a patch is hidden"""

    def to(self, device: torch.device) -> "TokenMask":
        """The same mask on another device."""
        return TokenMask(self.keep.to(device), self.mask.to(device))


def random_mask(positions: Tensor, *, num_tokens: int, mask_ratio: float, seed: int) -> TokenMask:
    """Hide the same share of patches in each sample, uniformly at random (He et al. 2022).

    Args:
        positions: (B,) int64, each sample's position in the stream; fixes the mask with ``seed``.
        num_tokens: N; at least one patch stays visible and one is hidden.
        mask_ratio: Share to hide; the count is exact, round(N * mask_ratio).
        seed: Of the run.

    Returns:
        The mask, on the CPU.
    """
    if num_tokens < 2:
        raise ValueError(f"cannot mask {num_tokens} patch; make crop_shape larger than patch_size")
    num_hidden = min(max(round(num_tokens * mask_ratio), 1), num_tokens - 1)
    kept = []
    for position in positions.tolist():
        generator = sample_generator(seed, position=position, purpose="mask")
        order = torch.randperm(num_tokens, generator=generator)
        kept.append(order[num_hidden:].sort().values)
    keep = torch.stack(kept)
    mask = torch.ones(len(keep), num_tokens, dtype=torch.bool).scatter_(1, keep, False)
    return TokenMask(keep, mask)
