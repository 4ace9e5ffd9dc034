"""AdamW's settings in a recipe, and their values at each update."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from foundation.schedule import cosine
from recipes.load import Section

_BASE_BATCH = 256


class OptimiserConfig(Section):
    """AdamW with a linear warm-up and a cosine to ``min_lr``; weight decay may move as well."""

    lr: float | None = Field(default=None, gt=0)
    base_lr: float | None = Field(default=None, gt=0, description="of 256 scans; scales")
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    weight_decay_end: float | None = Field(default=None, ge=0, description="null: no change")
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")

    @model_validator(mode="after")
    def _one_lr(self) -> "OptimiserConfig":
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError("give one of lr and base_lr")
        return self

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after the warm-up."""
        if self.lr is not None:
            return self.lr
        assert self.base_lr is not None
        return self.base_lr * global_batch / _BASE_BATCH

    def lr_at(self, step: int, *, total: int, global_batch: int) -> float:
        """The learning rate of update ``step``, from 0."""
        peak = self.peak_lr(global_batch)
        return cosine(step, total=total, start=peak, end=self.min_lr, warmup=self.warmup_steps)

    def weight_decay_at(self, step: int, *, total: int) -> float:
        """The weight decay of update ``step``, of the parameters that have any."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return cosine(step, total=total, start=self.weight_decay, end=end)


def set_groups(
    groups: Sequence[dict[str, Any]], *, lr: float, weight_decay: float, freeze_last_layer: bool
) -> None:
    """Write an update's values into an optimiser's ``param_groups``.

    Args:
        groups: Made by ``parameter_groups``.
        lr: For every group.
        weight_decay: For the groups that have any.
        freeze_last_layer: Hold the last layer by a learning rate of 0.
    """
    for group in groups:
        group["lr"] = 0.0 if freeze_last_layer and group["last_layer"] else lr
        if group["name"] != "no_decay":
            group["weight_decay"] = weight_decay
