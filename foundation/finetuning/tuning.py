"""How much of a backbone a fine-tuning moves: all of it, its last blocks, adapters, or nothing."""

from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from foundation.finetuning.lora import LoraConfig, add_lora
from foundation.vit import Vit3d
from recipes.load import Section

Mode = Literal["full", "last_blocks", "lora", "head"]


class TuneConfig(Section):
    """What of the backbone is trained; a head or decoder always is."""

    mode: Mode = Field(
        default="full", description="head: the backbone stays as it is; lora: adapters in it learn"
    )
    num_blocks: int | None = Field(
        default=None, ge=1, description="of last_blocks: how many, with the final norm"
    )
    lora: LoraConfig | None = Field(default=None, description="null: of mode lora, its defaults")

    @model_validator(mode="after")
    def _check(self) -> "TuneConfig":
        if (self.mode == "last_blocks") != (self.num_blocks is not None):
            raise ValueError("mode last_blocks and num_blocks go together")
        if self.lora is not None and self.mode != "lora":
            raise ValueError(f"lora: belongs to mode lora, the mode is {self.mode}")
        return self


def set_tuning(vit: Vit3d, config: TuneConfig) -> None:
    """Choose what is trained, in place; adapters are drawn from torch's global generator.

    Raises:
        ValueError: More blocks than there are.
    """
    if config.mode == "lora":
        add_lora(vit, config.lora or LoraConfig())
        return
    vit.requires_grad_(config.mode == "full")
    if config.num_blocks is not None:
        depth = len(vit.blocks)
        if config.num_blocks > depth:
            raise ValueError(
                f"tune.num_blocks is {config.num_blocks}, the backbone has {depth} blocks; take at "
                f"most {depth}, or mode full"
            )
        for part in (*vit.blocks[depth - config.num_blocks :], vit.norm):
            part.requires_grad_(True)


def trainable_names(module: nn.Module) -> list[str]:
    """Names of the parameters that are trained."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def is_trained(module: nn.Module) -> bool:
    """Whether any of its parameters is."""
    return any(parameter.requires_grad for parameter in module.parameters())


def set_training(vit: Vit3d, *, mode: bool) -> None:
    """Training mode, but of what is frozen evaluation mode: drop path leaves none of it out."""
    vit.train(mode and is_trained(vit))
    for block in vit.blocks:
        block.train(mode and is_trained(block))
