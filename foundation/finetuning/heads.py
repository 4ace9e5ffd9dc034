"""The head of a network that labels scans: from the features of a scan to logits."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.finetuning.target import Target
from foundation.network.block import initialise_layers
from foundation.running.randomness import sample_generator
from recipes.load import Section

Features = Literal["cls", "mean", "both"]

_LEAST_SPREAD = 0.01
"""Of the middle feature's spread."""


class HeadConfig(Section):
    """Dropout, and one linear layer or two."""

    features: Features = Field(
        default="both", description="the mean class token, the mean patch token, or both"
    )
    hidden_dim: int | None = Field(default=None, ge=1, description="null: one linear layer")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PooledHead(nn.Module):
    """Linear layers on features of mean 0 and spread 1.

    What tells scans apart is small beside what all have in common, so features are standardised:
    once, by the training scans as the network sees them before its first step, and not by each
    batch, which is another one on any number of ranks (He et al. 2022, app. A.1, take batch norm).
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        features: Features,
        hidden_dim: int | None,
        dropout: float,
        num_logits: int,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.parts = {"cls": [0], "mean": [1], "both": [0, 1]}[features]
        self.dropout = dropout
        width = embed_dim * len(self.parts)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.centre: Tensor
        self.scale: Tensor
        widths = [width, *([] if hidden_dim is None else [hidden_dim])]
        self.layers = nn.ModuleList(
            nn.Linear(width, out)
            for width, out in zip(widths, [*widths[1:], num_logits], strict=True)
        )
        self._widths = widths
        self.initialise()

    @property
    def num_draws(self) -> int:
        """Random numbers a scan that dropout takes, 0 where it leaves nothing out."""
        return sum(self._widths) if self.dropout else 0

    def initialise(self) -> None:
        """Draw the weights from torch's global generator, as those of the backbone are.

        Smaller ones, as He et al. (2022) take to fine-tune, learn later: the head's weights must
        grow before a gradient reaches the blocks.
        """
        initialise_layers(self)

    def forward(self, features: Tensor, draws: Tensor | None = None) -> Tensor:
        """Logits of B scans.

        Args:
            features: Mean class token and mean patch token, (B, 2 E).
            draws: (B, ``num_draws``) in (0, 1] that dropout goes by; None: torch's global
                generator.

        Returns:
            (B, ``num_logits``).
        """
        values = (self._read(features) - self.centre) / self.scale
        for index, layer in enumerate(self.layers):
            if index > 0:
                values = nn.functional.gelu(values)
            values = layer(self._drop(values, draws, layer=index))
        return values

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Give every feature mean 0 and spread 1 over these n scans, (n, 2 E).

        One that hardly differs between them keeps its scale: it would be made of noise.
        """
        values = self._read(features.to(self.centre.device).double())
        spread = values.std(dim=0, correction=0)
        least = _LEAST_SPREAD * spread.median()
        self.centre.copy_(values.mean(dim=0))
        self.scale.copy_(torch.where(spread > least, spread, 1.0))

    def _read(self, features: Tensor) -> Tensor:
        """(B, W) of the parts that are read."""
        return features.unflatten(1, (2, self.embed_dim))[:, self.parts].flatten(1)

    def _drop(self, values: Tensor, draws: Tensor | None, *, layer: int) -> Tensor:
        """Leave single values out at random (Srivastava et al. 2014)."""
        if not self.training or not self.dropout:
            return values
        if draws is None:
            return nn.functional.dropout(values, self.dropout)
        drawn = draws.to(values.device).split(self._widths, dim=1)[layer]
        keep = 1 - self.dropout
        return values * (drawn <= keep) / keep


def build_head(config: HeadConfig, *, embed_dim: int, target: Target) -> PooledHead:
    """A head for features (B, 2 E); its weights come from torch's global generator."""
    return PooledHead(
        embed_dim,
        features=config.features,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        num_logits=target.num_logits,
    )


def head_draws(seed: int, *, positions: Sequence[int], num_values: int) -> Tensor:
    """Uniform numbers for what dropout leaves out of each scan, whatever rank computes it.

    Args:
        seed: Of the run.
        positions: Of B scans in the stream.
        num_values: For each.

    Returns:
        (B, ``num_values``) float32 in (0, 1], on the CPU.
    """
    drawn = [
        torch.rand(
            num_values,
            generator=sample_generator(seed, position=position, purpose="dropout of the head"),
        )
        for position in positions
    ]
    return 1 - torch.stack(drawn)
