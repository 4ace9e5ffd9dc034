"""Transformer blocks over crops of several sizes at once.

The tokens of all crops lie behind each other in one matrix: every linear layer and norm runs once
over it, and attention once for each crop size. The layers and their names are those of timm's
``Block``, so its weights load; what is ours is the packing, and the rotary positions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from timm.layers import LayerScale, Mlp, SwiGLUPacked, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from foundation.network.positions import Rope, rotate

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
MlpKind = Literal["gelu", "swiglu"]
_WIDTH_MULTIPLE = 8


class Segment(NamedTuple):
    """Samples of one crop size; their tokens lie behind each other, sample by sample."""

    num_samples: int
    num_tokens: int
    """of each sample, class token and registers included"""
    rope: Rope | None
    draws: Tensor | None = None
    """(num_samples, 2 L) in (0, 1] for the two branches of L blocks, which drop path goes by;
    None: torch's global generator"""

    @property
    def length(self) -> int:
        """Rows of the token matrix."""
        return self.num_samples * self.num_tokens


class Attention(nn.Module):
    """Multi-head self-attention within each sample."""

    def __init__(self, embed_dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, segments: Sequence[Segment]) -> Tensor:
        """(T, E) to (T, E); the segments' lengths add up to T."""
        parts = self.qkv(tokens).split([each.length for each in segments])
        mixed = [self._mix(part, each) for part, each in zip(parts, segments, strict=True)]
        out: Tensor = self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
        return out

    def _mix(self, qkv: Tensor, segment: Segment) -> Tensor:
        pattern = "(b n) (three h c) -> three b h n c"
        query, key, value = rearrange(
            qkv, pattern, three=3, b=segment.num_samples, h=self.num_heads
        ).unbind(0)
        if segment.rope is not None:
            query, key = rotate(query, segment.rope), rotate(key, segment.rope)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return rearrange(mixed, "b h n c -> (b n) (h c)")


class Block(nn.Module):
    """Pre-norm attention and MLP, with layer scale (Touvron et al. 2021) and drop path."""

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        mlp: MlpKind,
        layer_scale: float | None,
        drop_path_rate: float,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.index = index
        self.norm1 = LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads=num_heads)
        self.ls1 = _layer_scale(embed_dim, layer_scale)
        self.norm2 = LayerNorm(embed_dim)
        self.mlp = _build_mlp(embed_dim, mlp_ratio=mlp_ratio, kind=mlp)
        self.ls2 = _layer_scale(embed_dim, layer_scale)

    def forward(self, tokens: Tensor, segments: Sequence[Segment]) -> Tensor:
        """(T, E) to (T, E)."""
        attended = self.ls1(self.attn(self.norm1(tokens), segments))
        tokens = tokens + self._drop(attended, segments, branch=0)
        return tokens + self._drop(self.ls2(self.mlp(self.norm2(tokens))), segments, branch=1)

    def _drop(self, values: Tensor, segments: Sequence[Segment], *, branch: int) -> Tensor:
        """Leave the branch out for whole samples at random (Huang et al. 2016)."""
        if not self.training or self.drop_path_rate == 0:
            return values
        keep = 1 - self.drop_path_rate
        per_token = []
        for each in segments:
            if each.draws is None:
                drawn = torch.rand(each.num_samples, device=values.device)
            else:
                drawn = each.draws[:, 2 * self.index + branch]
            kept = (drawn <= keep).to(values.dtype).div(keep)[:, None]
            per_token.append(kept.expand(-1, each.num_tokens).reshape(-1, 1))
        return values * torch.cat(per_token)


def build_blocks(
    *,
    embed_dim: int,
    num_heads: int,
    mlp_ratio: float,
    mlp: MlpKind,
    layer_scale: float | None,
    drop_paths: Sequence[float],
) -> nn.ModuleList:
    """One block for each rate of ``drop_paths``, the same for encoders and decoders."""
    return nn.ModuleList(
        Block(
            embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            mlp=mlp,
            layer_scale=layer_scale,
            drop_path_rate=rate,
            index=index,
        )
        for index, rate in enumerate(drop_paths)
    )


def initialise_layers(module: nn.Module) -> None:
    """Truncated normal weights (std .02), zero biases, unit norms, first scales, everywhere below.

    As in timm's ViTs. Parameters that are no layer's (tokens, tables) are their owner's to fill.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm | LayerScale):
            layer.reset_parameters()


def _layer_scale(embed_dim: int, first: float | None) -> nn.Module:
    return nn.Identity() if first is None else LayerScale(embed_dim, init_values=first)


def _build_mlp(embed_dim: int, *, mlp_ratio: float, kind: MlpKind) -> nn.Module:
    if kind == "gelu":
        mlp: nn.Module = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        return mlp
    # Two thirds of the width, as a gate has three matrices instead of two (Shazeer 2020).
    width = -(-int(embed_dim * mlp_ratio * 2 / 3) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    gated: nn.Module = SwiGLUPacked(embed_dim, 2 * width)
    return gated
