"""DINO's loss (Caron et al. 2021, eq. 1) on class tokens, and what it tells of collapse."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.running.schedule import linear


class Temperatures(NamedTuple):
    """Of the two softmaxes; the teacher's is lower, which sharpens its targets."""

    student: float
    teacher: float
    warmup_teacher: float
    warmup_teacher_steps: int

    def teacher_at(self, step: int) -> float:
        """Rises linearly from ``warmup_teacher``, then stays."""
        return linear(
            step, total=self.warmup_teacher_steps, start=self.warmup_teacher, end=self.teacher
        )


def view_cross_entropy(shares: Tensor, student: Tensor, *, student_temp: float) -> Tensor:
    """The mean over pairs of views of one scan, a view never with itself.

    Every rank holds as many scans, so the mean over ranks is the loss of the joined batch.

    Args:
        shares: (G, B, K) float32, the teacher's targets for each global crop.
        student: (V, B, K) logits of each crop, the G global crops first and in the same order.
        student_temp: Of the student.
    """
    # In float32 whatever the model computes in: the temperatures magnify rounding.
    with torch.autocast(student.device.type, enabled=False):
        log_shares = (student.float() / student_temp).log_softmax(dim=-1)
        pairs = -torch.einsum("gbk,vbk->gv", shares, log_shares) / shares.shape[1]
        same = pairs[:, : len(shares)].diagonal()
        return (pairs.sum() - same.sum()) / (pairs.numel() - len(shares))


def teacher_entropy(shares: Tensor) -> Tensor:
    """Mean entropy of shares (..., K) over ln K: 1 is uniform, 0 one prototype each."""
    entropy = torch.special.entr(shares).sum(dim=-1).mean()
    return entropy / math.log(shares.shape[-1])


def ln_k_distance(loss: Tensor, *, num_prototypes: int) -> Tensor:
    """How far a cross-entropy is below ln K, as a share of it: 0 is uniform collapse."""
    return 1 - loss / math.log(num_prototypes)


def prototype_use(shares: Tensor) -> Tensor:
    """Prototypes that some scan of a view prefers, as a share of those that could be.

    Args:
        shares: (G, B, K); a scan's G views are to share a prototype, so each view counts alone.

    Returns:
        The mean over views, in (0, 1]: 1 where B scans prefer min(B, K) prototypes.
    """
    best = shares.argmax(dim=-1).sort(dim=-1).values
    used = 1 + (best[:, 1:] != best[:, :-1]).sum(dim=-1)
    return used.float().mean() / min(shares.shape[1:])
