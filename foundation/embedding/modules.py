"""A backbone as the modules that timm's and MONAI's users know.

    model = TimmBackbone(backbone, num_classes=2, trainable=True)
    encoder = MonaiEncoder(backbone, num_maps=4)

Both take volumes (B, C, D, H, W) in LPS order and in [-1, 1], as the contract's windows give them
(``foundation.embedding.features.windowed``), at the spacing the backbone was trained on; nothing is
resampled. A volume of any size goes through whole, without windows: behind its last voxel on each
axis it is padded with air to whole patches, and a feature map covers that padding too.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from foundation.embedding.features import InputError, Spacing, spacing_of
from foundation.preprocessing import AIR
from foundation.vit import Crops, Vit3d

if TYPE_CHECKING:  # which delegates to this
    from foundation.backbone import Backbone

Indices = int | Sequence[int] | None


def padded_to_patches(volume: Tensor, *, patch_size: Sequence[int]) -> Tensor:
    """Air behind the last voxel of each axis, up to a whole number of patches."""
    if volume.ndim != 5:
        raise InputError(f"a batch is (B, C, D, H, W), got {tuple(volume.shape)}")
    gaps = [-size % patch for size, patch in zip(volume.shape[2:], patch_size, strict=True)]
    if not any(gaps):
        return volume
    return functional.pad(volume, [edge for gap in reversed(gaps) for edge in (0, gap)], value=AIR)


class _Module(nn.Module):
    """The network of a backbone: shared and frozen, or a trainable copy.

    Attributes:
        vit: The network.
        spacing_mm: Of every volume, where the caller does not give it.
    """

    def __init__(
        self, backbone: "Backbone", *, trainable: bool, spacing_mm: Spacing | None
    ) -> None:
        super().__init__()
        vit = copy.deepcopy(backbone.vit).requires_grad_(True) if trainable else backbone.vit
        self.vit: Vit3d = vit
        self.spacing_mm = spacing_mm or backbone.preprocessing.spacing_mm
        self._trainable = trainable

    def train(self, mode: bool = True) -> "_Module":
        """A frozen network stays in evaluation mode."""
        super().train(mode)
        if not self._trainable:
            self.vit.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the blocks in the backward pass."""
        self.vit.checkpoint_blocks = enable

    def _crops(self, volume: Tensor, spacing_mm: Spacing | Tensor | None) -> Crops:
        volume = padded_to_patches(volume, patch_size=self.vit.patch_size)
        given = self.spacing_mm if spacing_mm is None else spacing_mm
        return Crops(volume, spacing_of(self.vit, given, batch=len(volume)))

    def _layers(
        self, crops: Crops, indices: Sequence[int], *, norm: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Class token (B, 1, E) and patch tokens (B, N, E) behind the blocks of ``indices``."""
        vit = self.vit
        found: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                found[index] = output

            return hook

        handles = [
            block.register_forward_hook(keep(index))
            for index, block in enumerate(vit.blocks)
            if index in indices
        ]
        try:
            vit.packed([crops])
        finally:
            for handle in handles:
                handle.remove()
        batch = len(crops.volume)
        layers = []
        for index in indices:
            tokens = vit.norm(found[index]) if norm else found[index]
            tokens = tokens.view(batch, -1, vit.embed_dim)
            layers.append((tokens[:, :1], tokens[:, vit.num_prefix :]))
        return layers

    def _map(self, tokens: Tensor, crops: Crops) -> Tensor:
        """(B, N, E) to (B, E, d, h, w)."""
        d, h, w = self.vit.grid(crops.volume.shape[2:])
        return rearrange(tokens, "b (d h w) e -> b e d h w", d=d, h=h, w=w)


class TimmBackbone(_Module):
    """The methods of a timm model, in 3D; ``forward`` gives features, or logits of a new head.

    Tokens are the class token and the patch tokens: registers stay inside. Differences from timm:
    volumes have five axes, and ``output_fmt`` is ``NCDHW`` or ``NLC``.

    Attributes:
        num_features: Width of ``forward_head(..., pre_logits=True)``.
        num_prefix_tokens: Tokens before the patches in ``forward_features``.
        feature_info: Of each block: its width, the reduction (d, h, w), its name.
    """

    def __init__(
        self,
        backbone: "Backbone",
        *,
        num_classes: int = 0,
        global_pool: Literal["token", "avg"] = "token",
        trainable: bool = False,
        spacing_mm: Spacing | None = None,
    ) -> None:
        super().__init__(backbone, trainable=trainable, spacing_mm=spacing_mm)
        self.num_features = self.head_hidden_size = self.embed_dim = self.vit.embed_dim
        self.num_prefix_tokens = 1
        self.feature_info = [
            {"num_chs": self.embed_dim, "reduction": self.vit.patch_size, "module": f"blocks.{i}"}
            for i in range(len(self.vit.blocks))
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(
        self, num_classes: int, global_pool: Literal["token", "avg"] | None = None
    ) -> None:
        """A new head of so many outputs; none gives the pooled features."""
        if global_pool is not None:
            if global_pool not in ("token", "avg"):
                raise InputError(f"global_pool is token or avg, got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        device = self.vit.cls_token.device
        self.head: nn.Module = (
            nn.Linear(self.num_features, num_classes, device=device)
            if num_classes
            else nn.Identity()
        )

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions."""
        names = ("cls_token", "registers", "position_table", "absent_embed")
        return {f"vit.{name}" for name in names if hasattr(self.vit, name)}

    def forward(self, x: Tensor, *, spacing_mm: Spacing | Tensor | None = None) -> Tensor:
        """(B, C, D, H, W) to logits, or to (B, E) without a head."""
        return self.forward_head(self.forward_features(x, spacing_mm=spacing_mm))

    def forward_features(self, x: Tensor, *, spacing_mm: Spacing | Tensor | None = None) -> Tensor:
        """(B, 1 + N, E) after the final norm: class token, then patches in raster order."""
        output = self.vit.packed([self._crops(x, spacing_mm)])[0]
        return torch.cat([output.cls_token[:, None], output.patch_tokens], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool what :meth:`forward_features` gives, and apply the head."""
        pooled = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(dim=1)
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: Literal["NCDHW", "NLC"] = "NCDHW",
        intermediates_only: bool = False,
        spacing_mm: Spacing | Tensor | None = None,
    ) -> Any:
        """What blocks give on the way.

        Args:
            x: (B, C, D, H, W).
            indices: Blocks from 0, negative from the end; a number n: the last n; None: all.
            return_prefix_tokens: Give (map, class token (B, 1, E)) for each.
            norm: Apply the final norm to each.
            output_fmt: Maps (B, E, d, h, w), or tokens (B, N, E).
            intermediates_only: Leave the final features out.
            spacing_mm: Of the voxels.

        Returns:
            A list, one for each block; or (final features, that list), as timm does.
        """
        if output_fmt not in ("NCDHW", "NLC"):
            raise InputError(f"output_fmt is NCDHW or NLC, got {output_fmt!r}")
        depth = len(self.vit.blocks)
        taken = block_indices(indices, depth=depth)
        crops = self._crops(x, spacing_mm)
        needed = sorted({*taken, depth - 1})
        layers = dict(zip(needed, self._layers(crops, needed, norm=norm), strict=True))
        found: list[Any] = []
        for index in taken:
            cls, patches = layers[index]
            shaped = patches if output_fmt == "NLC" else self._map(patches, crops)
            found.append((shaped, cls) if return_prefix_tokens else shaped)
        if intermediates_only:
            return found
        last = torch.cat(layers[depth - 1], dim=1)
        return (last if norm else self.vit.norm(last)), found


class MonaiEncoder(_Module):
    """Feature maps for MONAI's decoders: a list of (B, E, d, h, w), the last block's last.

    All maps have the reduction of a patch, as the hidden states that ``monai.networks.nets.UNETR``
    takes from its transformer; its ``UnetrPrUpBlock`` brings them to finer grids. The last map is
    after the final norm.

    Attributes:
        channels: E for each map.
        reduction: Voxels (d, h, w) of a patch.
    """

    def __init__(
        self,
        backbone: "Backbone",
        *,
        num_maps: int = 4,
        indices: Sequence[int] | None = None,
        trainable: bool = False,
        spacing_mm: Spacing | None = None,
    ) -> None:
        """Blocks ``indices``, or ``num_maps`` of them spread evenly up to the last."""
        super().__init__(backbone, trainable=trainable, spacing_mm=spacing_mm)
        depth = len(self.vit.blocks)
        if indices is None:
            if not 1 <= num_maps <= depth:
                raise InputError(f"num_maps is 1 to {depth}, the blocks there are; got {num_maps}")
            indices = [(number + 1) * depth // num_maps - 1 for number in range(num_maps)]
        self.indices = block_indices(indices, depth=depth)
        self.channels = [self.vit.embed_dim] * len(self.indices)
        self.reduction = self.vit.patch_size

    def forward(self, x: Tensor, *, spacing_mm: Spacing | Tensor | None = None) -> list[Tensor]:
        """(B, C, D, H, W) to the maps; D, H and W are padded to whole patches."""
        crops = self._crops(x, spacing_mm)
        layers = [patches for _, patches in self._layers(crops, self.indices, norm=False)]
        last = len(self.vit.blocks) - 1
        return [
            self._map(self.vit.norm(patches) if index == last else patches, crops)
            for index, patches in zip(self.indices, layers, strict=True)
        ]


def block_indices(indices: Indices, *, depth: int) -> list[int]:
    """Blocks from 0 in the order asked for.

    Raises:
        InputError: There is no such block.
    """
    if indices is None:
        return list(range(depth))
    asked = list(range(depth - indices, depth)) if isinstance(indices, int) else list(indices)
    wrong = not asked or any(not -depth <= index < depth for index in asked)
    if wrong or (isinstance(indices, int) and not 0 < indices <= depth):
        raise InputError(f"indices {indices}: the backbone has blocks 0 to {depth - 1}")
    return [index % depth for index in asked]
