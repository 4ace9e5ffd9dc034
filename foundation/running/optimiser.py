"""AdamW's settings in a recipe, and their values at each update."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from foundation.running.parameters import LayerRates
from foundation.running.schedule import cosine
from recipes.load import Section

_BASE_BATCH = {"linear": 256, "sqrt": 1024}


class OptimiserConfig(Section):
    """AdamW with a linear warm-up and a cosine to ``min_lr``; weight decay may move as well."""

    lr: float | None = Field(default=None, gt=0)
    base_lr: float | None = Field(default=None, gt=0, description="of the batch of lr_scaling")
    lr_scaling: Literal["linear", "sqrt"] = Field(
        default="linear", description="of base_lr: by batch / 256, or by sqrt(batch / 1024)"
    )
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    weight_decay_end: float | None = Field(default=None, ge=0, description="null: no change")
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="factor of the learning rate from a block to the one below",
    )
    patch_embed_scale: float = Field(
        default=1.0, gt=0, le=1, description="share of it for the projection of patches, beside"
    )

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
        ratio = global_batch / _BASE_BATCH[self.lr_scaling]
        return self.base_lr * (math.sqrt(ratio) if self.lr_scaling == "sqrt" else ratio)

    @property
    def rates(self) -> LayerRates:
        """Of the backbone's layers."""
        return LayerRates(self.layer_decay or 1.0, self.patch_embed_scale)

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
        lr: Of which each group has its ``lr_scale``.
        weight_decay: For the groups that have any.
        freeze_last_layer: Hold the last layer by a learning rate of 0.
    """
    for group in groups:
        held = freeze_last_layer and group["last_layer"]
        group["lr"] = 0.0 if held else lr * group["lr_scale"]
        if group["name"] != "no_decay":
            group["weight_decay"] = weight_decay
