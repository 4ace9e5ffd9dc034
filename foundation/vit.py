"""The backbone: a 3D vision transformer on timm's blocks, for volumes and patches of any shape."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, model_validator
from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foundation.positions import sincos_positions
from recipes.load import Section

Shape = tuple[int, int, int]

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class VitSize(NamedTuple):
    """What a size's name stands for."""

    embed_dim: int
    depth: int
    num_heads: int


# A width of 24 per head and more keeps both 3D rotations and fast attention kernels possible.
SIZES = {
    "toy": VitSize(96, 4, 2),
    "tiny": VitSize(192, 8, 4),
    "small": VitSize(432, 12, 6),
    "base": VitSize(864, 12, 12),
    "large": VitSize(1152, 24, 16),
}


class VitConfig(Section):
    """A named size, whose numbers can be overridden one by one."""

    size: Literal["toy", "tiny", "small", "base", "large"] = "small"
    patch_size: Shape = Field(description="voxels (d, h, w)")
    in_chans: int = Field(default=1, ge=1)
    num_registers: int = Field(default=4, ge=0)
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    position_scale: float = Field(
        default=1.0,
        gt=0,
        description="strength of positions against content; a small backbone's class token hardly "
        "differs between scans at 1, which lets DINO collapse: take 0.1 there, 1 for MAE",
    )
    embed_dim: int | None = Field(default=None, ge=6)
    depth: int | None = Field(default=None, ge=1)
    num_heads: int | None = Field(default=None, ge=1)

    @property
    def resolved(self) -> VitSize:
        """The size's numbers after the overrides."""
        named = SIZES[self.size]
        return VitSize(
            self.embed_dim or named.embed_dim,
            self.depth or named.depth,
            self.num_heads or named.num_heads,
        )

    @model_validator(mode="after")
    def _check(self) -> "VitConfig":
        width, _, heads = self.resolved
        if min(self.patch_size) < 1:
            raise ValueError(f"patch_size must be positive, got {self.patch_size}")
        if width % 6:
            raise ValueError(f"embed_dim must be a multiple of 6 (3D positions), got {width}")
        if width % heads or width // heads % 8:
            raise ValueError(
                f"embed_dim / num_heads must be a multiple of 8 (fast attention), "
                f"got {width} / {heads}"
            )
        return self


class VitOutput(NamedTuple):
    """What a backbone tells of a batch, after the final norm."""

    cls_token: Tensor
    """(B, E)"""
    patch_tokens: Tensor
    """(B, N, E) in raster order, or (B, K, E) in the order of ``keep``"""


class Vit3d(nn.Module):
    """A pre-norm vision transformer with a class token and registers (Darcet et al. 2024)."""

    def __init__(
        self,
        *,
        patch_size: Shape,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_registers: int,
        drop_path_rate: float,
        position_scale: float,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.num_registers = num_registers
        self.position_scale = position_scale
        values = in_chans * patch_size[0] * patch_size[1] * patch_size[2]
        self.patch_embed = nn.Linear(values, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.registers = nn.Parameter(torch.empty(1, num_registers, embed_dim))
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = build_blocks(
            depth, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, drop_paths=rates
        )
        self.norm = LayerNorm(embed_dim)
        self.initialise()

    def initialise(self) -> None:
        """Draw every weight from torch's global generator, as timm does for its ViTs."""
        initialise_linears(self)
        nn.init.xavier_uniform_(self.patch_embed.weight)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.registers, std=0.02)

    def grid(self, shape: Sequence[int]) -> Shape:
        """Patches per axis of a volume of ``shape`` (D, H, W)."""
        return patch_grid(shape, self.patch_size)

    def tokens(self, volume: Tensor) -> Tensor:
        """Patch embeddings with their positions: (B, C, D, H, W) to (B, N, E) in raster order."""
        if volume.shape[1] != self.in_chans:
            raise ValueError(
                f"the backbone takes {self.in_chans} channels (in_chans), the volume has "
                f"{volume.shape[1]}"
            )
        grid = self.grid(volume.shape[2:])
        positions = sincos_positions(grid, embed_dim=self.embed_dim, device=volume.device)
        patches = self.patch_embed(patchify(volume, patch_size=self.patch_size))
        return patches + self.position_scale * positions

    def forward(self, volume: Tensor, keep: Tensor | None = None) -> VitOutput:
        """Embed a batch of volumes.

        Args:
            volume: (B, C, D, H, W) in [-1, 1]; D, H and W are multiples of ``patch_size``.
            keep: (B, K) int64 indices of the patches to see; the others never enter the blocks.

        Raises:
            ValueError: A volume that patches do not tile.
        """
        patches = self.tokens(volume)
        if keep is not None:
            patches = patches.take_along_dim(keep[..., None], dim=1)
        prefix = torch.cat([self.cls_token, self.registers], dim=1)
        tokens = torch.cat([prefix.expand(len(volume), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return VitOutput(tokens[:, 0], tokens[:, 1 + self.num_registers :])


def build_vit(config: VitConfig) -> Vit3d:
    """A freshly initialised backbone; its weights come from torch's global generator."""
    width, depth, heads = config.resolved
    return Vit3d(
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=config.mlp_ratio,
        num_registers=config.num_registers,
        drop_path_rate=config.drop_path_rate,
        position_scale=config.position_scale,
    )


def build_blocks(
    depth: int, *, embed_dim: int, num_heads: int, mlp_ratio: float, drop_paths: Sequence[float]
) -> nn.ModuleList:
    """``depth`` pre-norm transformer blocks, the same for encoders and decoders."""
    return nn.ModuleList(
        Block(
            embed_dim,
            num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            drop_path=drop_paths[index],
            norm_layer=LayerNorm,
        )
        for index in range(depth)
    )


def initialise_linears(module: nn.Module) -> None:
    """Truncated normal weights (std .02), zero biases, unit norms, in every layer below."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def patch_grid(shape: Sequence[int], patch_size: Sequence[int]) -> Shape:
    """Patches per axis; a ValueError where the patches do not tile the volume."""
    if any(size % patch or not size for size, patch in zip(shape, patch_size, strict=True)):
        raise ValueError(
            f"a volume of {tuple(shape)} voxels is not a whole number of {tuple(patch_size)} "
            f"patches; choose a crop_shape that is a multiple of patch_size on every axis"
        )
    d, h, w = (size // patch for size, patch in zip(shape, patch_size, strict=True))
    return d, h, w


def patchify(volume: Tensor, *, patch_size: Sequence[int]) -> Tensor:
    """Cut volumes into patches.

    Args:
        volume: (B, C, D, H, W); D, H and W are multiples of ``patch_size``.
        patch_size: Edges of a patch in voxels, (d, h, w).

    Returns:
        (B, N, P): N patches in (D, H, W) raster order, P = C * d * h * w values each.
    """
    patch_grid(volume.shape[2:], patch_size)
    p, q, r = patch_size
    pattern = "b c (d p) (h q) (w r) -> b (d h w) (c p q r)"
    return rearrange(volume, pattern, p=p, q=q, r=r)


def unpatchify(patches: Tensor, *, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P) to (B, C, D, H, W)."""
    d, h, w = grid
    p, q, r = patch_size
    pattern = "b (d h w) (c p q r) -> b c (d p) (h q) (w r)"
    return rearrange(patches, pattern, d=d, h=h, w=w, p=p, q=q, r=r)
