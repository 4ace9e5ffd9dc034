"""The light transformer that a masked autoencoder rebuilds hidden patches with."""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from foundation.network.block import LayerNorm, Segment, build_blocks, initialise_layers
from foundation.network.positions import sincos_positions
from foundation.vit import Vit3d


class Decoder(nn.Module):
    """Puts mask tokens where patches are missing and predicts the voxels of every patch.

    Places enter as in the encoder; where that learns a table of them, fixed sines are added.
    """

    def __init__(self, vit: Vit3d, *, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.positions = vit.positions
        self.embed = nn.Linear(vit.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = build_blocks(
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=4.0,
            mlp="gelu",
            layer_scale=None,
            drop_paths=[0.0] * depth,
        )
        self.norm = LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vit.patch_embed.in_features)
        self.initialise()

    def initialise(self) -> None:
        """Draw every weight from torch's global generator."""
        initialise_layers(self)
        trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        cls_token: Tensor,
        visible: Tensor,
        *,
        keep: Tensor,
        grid: tuple[int, int, int],
        spacing_mm: Tensor | None,
    ) -> Tensor:
        """Predict all patches, the hidden and the visible ones.

        Args:
            cls_token: (B, E) of the encoder.
            visible: (B, K, E), its patch tokens.
            keep: (B, K) int64, the places of ``visible`` in the grid.
            grid: Patches per axis.
            spacing_mm: (B, 3), for positions in millimetres.

        Returns:
            (B, N, P) voxels.
        """
        num_tokens = grid[0] * grid[1] * grid[2]
        visible = self.embed(visible)
        masked = self.mask_token.to(visible.dtype).expand(len(visible), num_tokens, -1)
        tokens = masked.scatter(1, keep[..., None].expand_as(visible), visible)
        rope = self.positions.rope(
            grid,
            head_dim=self.embed_dim // self.num_heads,
            num_prefix=1,
            spacing_mm=spacing_mm,
            keep=None,
            device=tokens.device,
        )
        if rope is None:
            fixed = sincos_positions(grid, embed_dim=self.embed_dim, device=tokens.device)
            tokens = tokens + fixed
        tokens = torch.cat([self.embed(cls_token)[:, None].to(tokens.dtype), tokens], dim=1)
        segments = [Segment(len(tokens), num_tokens + 1, rope)]
        flat = tokens.flatten(0, 1)
        for block in self.blocks:
            flat = block(flat, segments)
        tokens = flat.view(len(tokens), num_tokens + 1, -1)[:, 1:]
        voxels: Tensor = self.head(self.norm(tokens))
        return voxels
