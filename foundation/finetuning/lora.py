"""Low-rank adapters (Hu et al. 2022, LoRA): a frozen linear layer learns by a small addition."""

import copy
import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from foundation.vit import Vit3d
from recipes.load import Section

_ATTENTION = ("attn.qkv", "attn.proj")
_MLP = ("mlp.fc1", "mlp.fc2")


class LoraConfig(Section):
    """Of every block's attention; ``alpha / rank`` scales what is added."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    mlp: bool = Field(default=False, description="the two layers of each MLP as well")


class LoraLinear(nn.Module):
    """A linear layer under its own names, and ``scale * lora_b @ lora_a`` on top of its weight.

    Weights of a plain network load into it, and without ``lora_a`` and ``lora_b`` it is one again.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        # As the authors' code does; the addition begins at 0, as lora_b does.
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        added = functional.linear(functional.linear(values, self.lora_a), self.lora_b)
        return functional.linear(values, self.weight, self.bias) + self.scale * added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that computes the same."""
        out_features, in_features = self.weight.shape
        linear = nn.utils.skip_init(
            nn.Linear,
            in_features,
            out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        product = self.lora_b.double() @ self.lora_a.double()
        linear.weight.copy_(self.weight + self.scale * product)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear


def add_lora(vit: Vit3d, config: LoraConfig) -> None:
    """Put adapters into every block, in place, and let nothing but them be trained.

    Their first weights come from torch's global generator.
    """
    assert not has_lora(vit), "adapters are added once"
    vit.requires_grad_(False)
    for block in vit.blocks:
        for name in _ATTENTION + (_MLP if config.mlp else ()):
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            adapted = LoraLinear(linear, rank=config.rank, alpha=config.alpha)
            block.set_submodule(name, adapted)


def has_lora(vit: nn.Module) -> bool:
    """Whether any of its layers has an adapter."""
    return any(isinstance(module, LoraLinear) for module in vit.modules())


def merge_lora(vit: Vit3d) -> Vit3d:
    """A copy without adapters: equal outputs up to rounding, plain names, nothing frozen."""
    plain = copy.deepcopy(vit)
    adapted = [name for name, each in plain.named_modules() if isinstance(each, LoraLinear)]
    for name in adapted:
        layer = plain.get_submodule(name)
        assert isinstance(layer, LoraLinear)
        plain.set_submodule(name, layer.merged())
    return plain.requires_grad_(True)
