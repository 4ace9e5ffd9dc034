"""Numbers that are not numbers stop a run on all ranks at once, before they reach a checkpoint."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from foundation.engine import gradient_norm
from foundation.running.ranks import gather_from_ranks, mean_over_ranks, stop_all


class NotFinite(ValueError):
    """A loss or gradient that is not a number; the run stops and keeps its last checkpoint."""


class MicroBatch(NamedTuple):
    """What is remembered of one forward until its update."""

    metrics: dict[str, torch.Tensor]
    """scalars; ``loss`` is one of them"""
    keys: list[str]
    read_s: float


def finite_means(seen: Sequence[MicroBatch], *, done: int) -> dict[str, float]:
    """Mean of each metric over an update's micro batches and over ranks; a collective call.

    Args:
        seen: The micro batches of the update, on this rank.
        done: Updates done before it.

    Raises:
        NotFinite: On rank 0, with ranks and samples named, if any rank's loss is not finite.
    """
    names = seen[0].metrics
    means = mean_over_ranks(
        {
            name: torch.stack([micro.metrics[name].detach() for micro in seen]).mean()
            for name in names
        }
    )
    if math.isfinite(means["loss"]):
        return means
    mine = [
        f"{loss} for {', '.join(micro.keys)}"
        for micro in seen
        if not math.isfinite(loss := float(micro.metrics["loss"]))
    ]
    told = [
        f"on rank {rank} {word}"
        for rank, words in enumerate(gather_from_ranks(mine))
        for word in words
    ]
    return stop_all(
        NotFinite(
            f"after {done} steps the loss is not finite ({'; '.join(told)}); no weight was changed "
            f"and the last checkpoint is kept: lower the learning rate, clip, or leave these "
            f"scans out"
        )
    )


def finite_norm(engine: Any, *, done: int) -> float:
    """Norm of the gradient just applied.

    Raises:
        NotFinite: On rank 0, if the update was skipped or its gradient is not finite.
    """
    norm = gradient_norm(engine)
    if engine.was_step_applied() and math.isfinite(norm):
        return norm
    return stop_all(
        NotFinite(
            f"after {done} steps the gradient is not finite (norm {norm}) though the loss is; the "
            f"last checkpoint is kept: lower the learning rate, or compute in fp32"
        )
    )
