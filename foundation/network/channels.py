"""Sequences that a backbone learns to do without."""

import torch
from torch import Tensor

from foundation.running.randomness import sample_generator


def drop_channels(
    present: Tensor, *, positions: Tensor, rate: float, seed: int, purpose: str
) -> Tensor:
    """Hide channels at random, as if the subject had been scanned without them.

    Args:
        present: (B, C) bool, the channels that are there.
        positions: (B,) int64, each sample's position in the stream.
        rate: Probability of each present channel to be hidden; where it would be the last of its
            sample, one that is drawn stays.
        seed: Of the run.
        purpose: What the input is for; different purposes are independent.

    Returns:
        (B, C) bool on the CPU, at least one True wherever ``present`` has one.
    """
    present = present.cpu()
    if rate == 0:
        return present
    kept = torch.zeros_like(present)
    for row, position in enumerate(positions.tolist()):
        generator = sample_generator(seed, position=position, purpose=f"channels {purpose}")
        draws = torch.rand(present.shape[1], generator=generator)
        draws[~present[row]] = -1
        kept[row] = (draws >= rate) | (draws == draws.max())
    return kept & present
