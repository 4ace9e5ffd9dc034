"""What a teacher's prototype logits ask of the student: shares that use all prototypes.

Without one of these, one prototype could answer for every scan. Both count tokens over all ranks,
however unequal their numbers.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from foundation.objective.collectives import max_over_ranks, sum_over_ranks

TargetKind = Literal["sinkhorn", "centring"]

_ITERATIONS = 3
_SMALLEST = 1e-30


class Centring(nn.Module):
    """Sharpened softmax about a moving mean of the logits (Caron et al. 2021, sec. 3.1, eq. 4).

    The centre is part of ``state_dict``. It moves in :meth:`after_update` alone, by the mean over
    all tokens that the update's micro batches and ranks have seen, so an update that was skipped
    leaves it where it was.
    """

    def __init__(self, num_prototypes: int, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))
        self.center: Tensor
        self._seen: list[Tensor] = []
        self._step = -1

    @torch.no_grad()
    def forward(self, logits: Tensor, *, temp: float, step: int) -> Tensor:
        """(N, K) logits to (N, K) float32 shares; N may be 0.

        Args:
            logits: Of this rank's tokens.
            temp: Of the teacher.
            step: Updates done so far; the same for all micro batches of an update.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if step != self._step:  # what a skipped update left behind
                self._seen, self._step = [], step
            count = logits.new_full((1,), len(logits), dtype=torch.float64)
            self._seen.append(torch.cat([logits.sum(dim=0, dtype=torch.float64), count]))
            return ((logits - self.center) / temp).softmax(dim=-1)

    @torch.no_grad()
    def after_update(self) -> None:
        """Move the centre (eq. 4); all ranks call it."""
        assert self._seen, "the update had no forward"
        total = sum_over_ranks(torch.stack(self._seen).sum(dim=0))
        self._seen = []
        mean = (total[:-1] / total[-1].clamp(min=1)).float()
        moved = torch.lerp(mean, self.center, self.momentum)
        self.center.copy_(torch.where(total[-1] > 0, moved, self.center))


class SinkhornKnopp(nn.Module):
    """Shares in which every prototype has the same total (Caron et al. 2020, SwAV, sec. 3.2).

    Three iterations towards eq. 5 on a micro batch's tokens of all ranks. Departs from the authors'
    code in scaling two vectors instead of the matrix, which is the same, for less memory.
    """

    @torch.no_grad()
    def forward(self, logits: Tensor, *, temp: float, step: int) -> Tensor:
        """(N, K) logits to (N, K) float32 shares; N may be 0 and differ between ranks."""
        del step  # nothing is remembered
        with torch.autocast(logits.device.type, enabled=False):
            scaled = logits.float() / temp
            count = sum_over_ranks(scaled.new_tensor(float(len(scaled))))
            highest = scaled.max() if len(scaled) else scaled.new_tensor(float("-inf"))
            matrix = (scaled - max_over_ranks(highest)).exp()
            num_prototypes = matrix.shape[1]
            of_token = matrix.new_ones(len(matrix))
            for _ in range(_ITERATIONS):
                mass = sum_over_ranks(of_token @ matrix).clamp(min=_SMALLEST)
                of_prototype = 1 / (num_prototypes * mass)
                of_token = 1 / (count * (matrix @ of_prototype).clamp(min=_SMALLEST))
            return matrix * of_prototype * (count * of_token)[:, None]

    def after_update(self) -> None:
        """Nothing moves."""


def build_targets(
    kind: TargetKind, *, num_prototypes: int, center_momentum: float
) -> Centring | SinkhornKnopp:
    """The way that a recipe names; ``center_momentum`` is of centring alone."""
    if kind == "centring":
        return Centring(num_prototypes, momentum=center_momentum)
    return SinkhornKnopp()
