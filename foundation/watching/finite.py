"""What all ranks agree on before an update: its numbers, and whether anyone asks to stop."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from foundation.running.ranks import gather_from_ranks, mean_over_ranks

_STOP = "asks to stop"


class MicroBatch(NamedTuple):
    """What is remembered of one forward until its update."""

    metrics: dict[str, torch.Tensor]
    """scalars; ``loss`` is one of them"""
    keys: list[str]
    read_s: float


class Agreed(NamedTuple):
    """The same on every rank."""

    means: dict[str, float]
    """of each metric, over an update's micro batches and over ranks"""
    stop: bool
    """some rank was signalled to stop"""


def agree(seen: Sequence[MicroBatch], *, stop: bool) -> Agreed:
    """One collective call for an update.

    Args:
        seen: The micro batches of the update, on this rank.
        stop: Whether this rank was signalled.
    """
    values = {
        name: torch.stack([micro.metrics[name].detach() for micro in seen]).mean()
        for name in seen[0].metrics
    }
    values[_STOP] = torch.full_like(values["loss"], float(stop))
    means = mean_over_ranks(values)
    return Agreed(means, stop=means.pop(_STOP) > 0)


def samples_of_ranks(seen: Sequence[MicroBatch], *, only_bad: bool) -> list[dict[str, object]]:
    """Loss and scans of each micro batch of an update, with its rank; a collective call.

    Args:
        seen: On this rank.
        only_bad: Leave out those whose loss is a number.
    """
    mine = [(float(micro.metrics["loss"]), micro.keys) for micro in seen]
    return [
        {"rank": rank, "loss": repr(loss), "scans": keys}
        for rank, words in enumerate(gather_from_ranks(mine))
        for loss, keys in words
        if not (only_bad and math.isfinite(loss))
    ]
