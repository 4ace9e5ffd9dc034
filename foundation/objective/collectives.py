"""What the losses of several ranks must know of each other; one process alone needs nothing.

An engine averages gradients over ranks. So a rank returns its own share of a loss times the number
of ranks: the mean over ranks is then the loss of the joined batch, and so is its gradient.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Ranks of the job, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks; gradients flow back to the rank of a row.

    Args:
        rows: (B, ...), as many on each rank. Each rank calls this as often, and runs backward.

    Returns:
        (R B, ...) of R ranks.
    """
    if num_ranks() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of each value over ranks, without a gradient."""
    return _reduced(values, dist.ReduceOp.SUM)


@torch.no_grad()
def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of each value over ranks, without a gradient."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: Tensor, operation: Any) -> Tensor:
    if num_ranks() == 1:
        return values
    reduced = values.detach().clone().contiguous()
    dist.all_reduce(reduced, op=operation)
    return reduced


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(num_ranks())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.num_rows
        return total[start : start + ctx.num_rows]
