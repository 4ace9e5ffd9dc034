"""DINO's loss (Caron et al. 2021, eq. 1) with a centre that moves once per applied update."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from foundation.schedule import linear


class DinoLoss(nn.Module):
    """Cross-entropy of the student's prototypes with the teacher's, centred and sharpened.

    Lightly's loss does the arithmetic and averages the centre over ranks. It also moves the centre
    in every forward, even for an update that is then skipped; here the centre waits for
    :meth:`update_center`, and takes the mean over the micro batches of the update.
    """

    _lightly: Any

    def __init__(
        self,
        *,
        num_prototypes: int,
        student_temp: float,
        teacher_temp: float,
        warmup_teacher_temp: float,
        warmup_teacher_temp_steps: int,
        center_momentum: float,
    ) -> None:
        from lightly.loss.dino_loss import DINOLoss

        super().__init__()
        self.final_teacher_temp = teacher_temp
        self.warmup_teacher_temp = warmup_teacher_temp
        self.warmup_teacher_temp_steps = warmup_teacher_temp_steps
        self._lightly = DINOLoss(
            output_dim=num_prototypes, student_temp=student_temp, center_momentum=center_momentum
        )
        self._pending: list[Tensor] = []
        self._pending_step = -1

    @property
    def center(self) -> Tensor:
        """(1, 1, K), part of ``state_dict``."""
        center: Tensor = self._lightly.center
        return center

    def teacher_temp(self, step: int) -> float:
        """Rises linearly, then stays."""
        return linear(
            step,
            total=self.warmup_teacher_temp_steps,
            start=self.warmup_teacher_temp,
            end=self.final_teacher_temp,
        )

    def forward(self, teacher: list[Tensor], student: list[Tensor], *, step: int) -> Tensor:
        """The mean over pairs of views of one scan, a view never with itself.

        Args:
            teacher: (B, K) logits of each global crop.
            student: (B, K) logits of each crop, the global crops first and in the same order.
            step: Updates done so far; the same for all micro batches of an update.
        """
        before = self.center.detach()
        # In float32 whatever the model computes in: the temperatures magnify rounding.
        with torch.autocast(before.device.type, enabled=False):
            loss: Tensor = self._lightly(
                [logits.float() for logits in teacher],
                [logits.float() for logits in student],
                teacher_temp=self.teacher_temp(step),
            )
        if step != self._pending_step:  # what a skipped update left behind
            self._pending, self._pending_step = [], step
        self._pending.append(self.center.detach())
        self.center.data = before
        return loss

    @torch.no_grad()
    def update_center(self) -> None:
        """Take the centre that the micro batches of this update ask for (eq. 4)."""
        self.center.copy_(torch.stack(self._pending).mean(dim=0))
        self._pending = []

    @torch.no_grad()
    def teacher_entropy(self, teacher: list[Tensor], *, step: int) -> Tensor:
        """Mean entropy of the teacher's outputs over ln K: 1 is uniform, 0 one prototype each."""
        logits = torch.cat(teacher).float()
        log_share = ((logits - self.center[0]) / self.teacher_temp(step)).log_softmax(dim=-1)
        entropy = -(log_share.exp() * log_share).sum(dim=-1).mean()
        return entropy / math.log(logits.shape[-1])
