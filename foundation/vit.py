"""The backbone: a 3D vision transformer for volumes, patches and spacings of any shape.

Crops of several sizes go through it in one pass (``packed``): their tokens are concatenated for the
linear parts, and only attention looks at each size by itself.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from timm.layers import calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foundation.network.block import LayerNorm, MlpKind, Segment, build_blocks, initialise_layers
from foundation.network.patches import Shape, patch_grid, patchify, rows_of
from foundation.network.positions import Position, PositionScheme, sincos_positions
from recipes.load import Section

_SHORTEST_PATCHES, _LONGEST_PATCHES = 4, 64
_PERIODS_MM = (40.0, 1280.0)


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
    mlp: MlpKind = "gelu"
    layer_scale: float | None = Field(
        default=None, gt=0, description="first value of each branch's scale; null: no layer scale"
    )
    position: Position = Field(
        default="sincos",
        description="rope turns queries and keys by the distance in voxels, rope_mm by that in "
        "millimetres, so that scans of different spacing train together; learned needs a grid",
    )
    position_grid: Shape | None = Field(
        default=None, description="patches (d, h, w) of the learned table; resized for other grids"
    )
    position_scale: float = Field(
        default=1.0,
        gt=0,
        description="strength of sincos positions against content; a small backbone's class token "
        "hardly differs between scans at 1, which lets DINO collapse: take 0.1 there, 1 for MAE",
    )
    rope_periods: tuple[float, float] | None = Field(
        default=None,
        description="shortest and longest turn, in voxels or mm; null: 4 to 64 patches, or 40 to "
        "1280 mm",
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

    @property
    def periods(self) -> tuple[float, float]:
        """Of the rotations, in the unit of ``position``."""
        if self.rope_periods is not None:
            return self.rope_periods
        if self.position == "rope_mm":
            return _PERIODS_MM
        edge = max(self.patch_size)
        return float(_SHORTEST_PATCHES * edge), float(_LONGEST_PATCHES * edge)

    @model_validator(mode="after")
    def _check(self) -> "VitConfig":
        width, _, heads = self.resolved
        if min(self.patch_size) < 1:
            raise ValueError(f"patch_size must be positive, got {self.patch_size}")
        if self.position == "sincos" and width % 6:
            raise ValueError(
                f"embed_dim must be a multiple of 6 for sincos positions, got {width}; take rope"
            )
        if width % heads or width // heads % 8:
            raise ValueError(
                f"embed_dim / num_heads must be a multiple of 8 (fast attention), "
                f"got {width} / {heads}"
            )
        if (self.position == "learned") != (self.position_grid is not None):
            raise ValueError("position_grid is the grid of learned positions; give both or neither")
        if self.position_grid is not None and min(self.position_grid) < 1:
            raise ValueError(f"position_grid must be positive, got {self.position_grid}")
        if self.rope_periods is not None and not 0 < self.rope_periods[0] < self.rope_periods[1]:
            raise ValueError(f"rope_periods must be positive and rise, got {self.rope_periods}")
        return self


class Crops(NamedTuple):
    """Volumes of one shape, as :meth:`Vit3d.packed` takes them."""

    volume: Tensor
    """(B, C, D, H, W) in [-1, 1]; D, H and W are multiples of ``patch_size``"""
    spacing_mm: Tensor | None = None
    """(B, 3) of the voxels (d, h, w); needed where positions are ``rope_mm``"""
    present: Tensor | None = None
    """(B, C) bool, False where a sample lacks a channel; None: all are there"""
    keep: Tensor | None = None
    """(B M, K) int64 indices of the patches to see, M rows a sample; the others never enter"""
    hidden: Tensor | None = None
    """(B, N) bool, patches whose content gives way to the mask token"""
    draws: Tensor | None = None
    """(B M, ``num_draws``) in (0, 1], which drop path goes by; None: torch's global generator"""


class VitOutput(NamedTuple):
    """What a backbone tells of a batch; after the final norm, where nothing else is said."""

    cls_token: Tensor
    """(B, E)"""
    patch_tokens: Tensor
    """(B, N, E) in raster order, or (B M, K, E) in the order of ``keep``"""


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
        mlp: MlpKind,
        layer_scale: float | None,
        num_registers: int,
        drop_path_rate: float,
        positions: PositionScheme,
        position_grid: Shape | None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_registers = num_registers
        self.positions = positions
        self.checkpoint_blocks = False
        self.patch_embed = nn.Linear(in_chans * math.prod(patch_size), embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.registers = nn.Parameter(torch.empty(1, num_registers, embed_dim))
        if in_chans > 1:
            self.absent_embed = nn.Parameter(torch.empty(in_chans, embed_dim))
        if position_grid is not None:
            self.position_table = nn.Parameter(torch.empty(1, embed_dim, *position_grid))
        self.blocks = build_blocks(
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            mlp=mlp,
            layer_scale=layer_scale,
            drop_paths=calculate_drop_path_rates(drop_path_rate, depth),
        )
        self.norm = LayerNorm(embed_dim)
        self.initialise()

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.num_registers

    @property
    def num_draws(self) -> int:
        """Random numbers a sample that drop path takes, 0 where it has nothing to leave out."""
        rates = [block.drop_path_rate for block in self.blocks]
        return 2 * len(rates) if any(rates) else 0

    def initialise(self) -> None:
        """Draw every weight from torch's global generator, as timm does for its ViTs."""
        initialise_layers(self)
        nn.init.xavier_uniform_(self.patch_embed.weight)
        for parameter in self.parameters(recurse=False):
            trunc_normal_(parameter, std=0.02)

    def compile_blocks(self, *, backend: str = "inductor") -> None:
        """Compile each block by itself and whole, in place: names and state stay as they are."""
        for block in self.blocks:
            block.compile(fullgraph=True, backend=backend)

    def grid(self, shape: Sequence[int]) -> Shape:
        """Patches per axis of a volume of ``shape`` (D, H, W)."""
        return patch_grid(shape, self.patch_size)

    def forward(
        self,
        volume: Tensor,
        keep: Tensor | None = None,
        *,
        spacing_mm: Tensor | None = None,
        present: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> VitOutput:
        """Embed volumes of one shape; the arguments are those of :class:`Crops`."""
        return self.packed([Crops(volume, spacing_mm, present, keep, draws=draws)])[0]

    def packed(
        self, crops: Sequence[Crops], *, mask_token: Tensor | None = None
    ) -> list[VitOutput]:
        """Embed crops of several shapes in one pass.

        Args:
            crops: Each with volumes of one shape.
            mask_token: (1, 1, E), instead of the content of ``hidden`` patches.

        Returns:
            One output for each of ``crops``: what a pass of its own would give, to rounding.

        Raises:
            ValueError: A volume that patches do not tile, or with another number of channels.
        """
        segments, tokens = self._entering(crops, mask_token=mask_token)
        for block in self.blocks:
            tokens = self._through(block, tokens, segments)
        return self._leaving(self.norm(tokens), segments)

    def last_layers(self, crops: Crops, *, num: int) -> list[VitOutput]:
        """What each of the last ``num`` blocks gives, the last first, each after the final norm.

        A network of fewer blocks gives all of its own.
        """
        first, depth = max(0, len(self.blocks) - num), len(self.blocks)
        return self.layers(crops, indices=range(first, depth), norm_all=True)[::-1]

    def layers(
        self, crops: Crops, *, indices: Sequence[int], norm_all: bool = False
    ) -> list[VitOutput]:
        """What the blocks of ``indices``, from 0, give; the last block after the final norm."""
        segments, tokens = self._entering([crops])
        found: dict[int, VitOutput] = {}
        for index, block in enumerate(self.blocks):
            tokens = self._through(block, tokens, segments)
            if index in indices:
                is_normed = norm_all or index == len(self.blocks) - 1
                left = self.norm(tokens) if is_normed else tokens
                found[index] = self._leaving(left, segments)[0]
        return [found[index] for index in indices]

    def _through(self, block: nn.Module, tokens: Tensor, segments: list[Segment]) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, tokens, segments, use_reentrant=False)
        return block(tokens, segments)

    def _entering(
        self, crops: Sequence[Crops], *, mask_token: Tensor | None = None
    ) -> tuple[list[Segment], Tensor]:
        """The crops as (T, E) tokens behind each other, and which of them are whose."""
        contents = self._contents(crops)
        embedded = [
            self._embedded(each, content, mask_token)
            for each, content in zip(crops, contents, strict=True)
        ]
        segments = [
            self._segment(each, tokens) for each, tokens in zip(crops, embedded, strict=True)
        ]
        return segments, torch.cat([each.flatten(0, 1) for each in embedded])

    def _leaving(self, tokens: Tensor, segments: Sequence[Segment]) -> list[VitOutput]:
        """(T, E) tokens crop by crop."""
        parts = tokens.split([each.length for each in segments])
        outputs = []
        for part, each in zip(parts, segments, strict=True):
            part = part.view(each.num_samples, each.num_tokens, -1)
            outputs.append(VitOutput(part[:, 0], part[:, self.num_prefix :]))
        return outputs

    def _contents(self, crops: Sequence[Crops]) -> list[Tensor]:
        """(B M, K, E) for each: what is in the patches that are seen, by one call of the layer."""
        patches = [self._seen(each) for each in crops]
        flat = self.patch_embed(torch.cat([each.flatten(0, 1) for each in patches]))
        parts = flat.split([each.shape[0] * each.shape[1] for each in patches])
        return [part.view(*each.shape[:2], -1) for part, each in zip(parts, patches, strict=True)]

    def _seen(self, crops: Crops) -> Tensor:
        """(B M, K, P): the values of the patches that are seen, 0 in absent channels."""
        volume = crops.volume
        if volume.shape[1] != self.in_chans:
            raise ValueError(
                f"the backbone takes {self.in_chans} channels (in_chans), the volume has "
                f"{volume.shape[1]}"
            )
        if self.in_chans > 1:
            volume = volume * self._present(crops)[..., None, None, None]
        patches = patchify(volume, patch_size=self.patch_size)
        if crops.keep is None:
            return patches
        return patches[rows_of(crops.keep, num_samples=len(volume))[:, None], crops.keep]

    def _embedded(self, crops: Crops, content: Tensor, mask_token: Tensor | None) -> Tensor:
        """(B M, 1 + R + K, E): class token, registers, and patches with their places."""
        if self.in_chans > 1:
            absent = (~self._present(crops)).to(self.absent_embed.dtype) @ self.absent_embed
            copies = len(content) // len(absent)
            content = content + absent.repeat_interleave(copies, dim=0)[:, None]
        if crops.hidden is not None:
            assert mask_token is not None, "hidden patches need a mask token"
            content = torch.where(crops.hidden[..., None], mask_token.to(content.dtype), content)
        added = self._added(self.grid(crops.volume.shape[2:]), device=content.device)
        if added is not None:
            content = content + (added if crops.keep is None else added[crops.keep])
        prefix = torch.cat([self.cls_token, self.registers], dim=1)
        return torch.cat([prefix.expand(len(content), -1, -1), content], dim=1)

    def _present(self, crops: Crops) -> Tensor:
        """(B, C) bool on the volume's device."""
        if crops.present is None:
            return crops.volume.new_ones(crops.volume.shape[:2], dtype=torch.bool)
        return crops.present.to(crops.volume.device)

    def _added(self, grid: Shape, *, device: torch.device) -> Tensor | None:
        """(N, E) positions to add, or None where queries and keys are turned instead."""
        if self.positions.kind == "sincos":
            fixed = sincos_positions(grid, embed_dim=self.embed_dim, device=device)
            return self.positions.scale * fixed
        if self.positions.kind == "learned":
            table: Tensor = self.position_table
            if table.shape[2:] != grid:
                table = functional.interpolate(table, grid, mode="trilinear", align_corners=False)
            return table[0].flatten(1).T
        return None

    def _segment(self, crops: Crops, tokens: Tensor) -> Segment:
        rope = self.positions.rope(
            self.grid(crops.volume.shape[2:]),
            head_dim=self.embed_dim // self.num_heads,
            num_prefix=self.num_prefix,
            spacing_mm=crops.spacing_mm,
            keep=crops.keep,
            device=tokens.device,
        )
        draws = None if crops.draws is None else crops.draws.to(tokens.device)
        return Segment(len(tokens), tokens.shape[1], rope, draws)


def set_execution(module: nn.Module, *, compile_blocks: bool, checkpoint_blocks: bool) -> None:
    """How every backbone below ``module`` computes; what it computes stays the same."""
    for vit in module.modules():
        if isinstance(vit, Vit3d):
            vit.checkpoint_blocks = checkpoint_blocks
            if compile_blocks:
                vit.compile_blocks()


def build_vit(config: VitConfig) -> Vit3d:
    """A freshly initialised backbone; its weights come from torch's global generator."""
    width, depth, heads = config.resolved
    positions = PositionScheme(
        config.position, config.patch_size, config.periods, config.position_scale
    )
    return Vit3d(
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=config.mlp_ratio,
        mlp=config.mlp,
        layer_scale=config.layer_scale,
        num_registers=config.num_registers,
        drop_path_rate=config.drop_path_rate,
        positions=positions,
        position_grid=config.position_grid,
    )
