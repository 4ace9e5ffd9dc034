"""A regulariser that spreads features evenly (Sablayrolles et al. 2019, KoLeo)."""

import torch
from torch import Tensor
from torch.nn import functional

from foundation.objective.collectives import gather_rows, num_ranks, sum_over_ranks

_EPSILON = 1e-6


def koleo_loss(features: Tensor, *, subject: Tensor) -> Tensor:
    """Minus the mean log distance of each row to its nearest neighbour on the unit sphere (sec. 3).

    Neighbours are looked for on all ranks. Departs from the paper in that two rows of one subject
    are no neighbours: they show the same body and shall not be torn apart. A row without any
    neighbour has no part in the mean.

    Args:
        features: (B, E), as many rows on each rank.
        subject: (B,) int64.

    Returns:
        A scalar whose mean over ranks is the loss of the joined batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = functional.normalize(features.float(), dim=-1)
        everyone = gather_rows(unit)
        other = subject[:, None] != gather_rows(subject)[None]
        nearest = _nearest(unit, everyone=everyone, eligible=other)
        distance = torch.linalg.vector_norm(unit - everyone[nearest], dim=-1)
        counted = other.any(dim=1)
        spread = torch.where(counted, -(distance + _EPSILON).log(), 0.0)
        count = sum_over_ranks(counted.sum())
        return num_ranks() * spread.sum() / count.clamp(min=1)


@torch.no_grad()
def _nearest(unit: Tensor, *, everyone: Tensor, eligible: Tensor) -> Tensor:
    """(B,) index of the closest eligible row of ``everyone``."""
    cosine = unit @ everyone.T
    return cosine.masked_fill(~eligible, -2.0).argmax(dim=1)
