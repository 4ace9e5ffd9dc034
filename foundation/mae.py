"""Masked autoencoder (He et al. 2022) in 3D: rebuild the hidden patches from the visible ones."""

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from timm.layers import trunc_normal_
from torch import Tensor, nn

from foundation.masking import TokenMask, random_mask
from foundation.parameters import ParameterGroup, parameter_groups
from foundation.positions import sincos_positions
from foundation.preprocessing import Preprocessing, normalise_batch
from foundation.vit import (
    LayerNorm,
    Vit3d,
    build_blocks,
    initialise_linears,
    patchify,
    unpatchify,
)
from recipes.load import Section
from shards.streaming.batch import CropBatch

_EPSILON = 1e-6


class MaeConfig(Section):
    """The objective and its decoder; the decoder is thrown away after pretraining."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    norm_pix_loss: bool = Field(
        default=True, description="each patch's target has mean 0 and variance 1"
    )
    decoder_embed_dim: int = Field(default=384, ge=6)
    decoder_depth: int = Field(default=4, ge=1)
    decoder_num_heads: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "MaeConfig":
        width, heads = self.decoder_embed_dim, self.decoder_num_heads
        if width % 6 or width % heads:
            raise ValueError(
                f"decoder_embed_dim must be a multiple of 6 and of decoder_num_heads, "
                f"got {width} with {heads} heads"
            )
        return self


class Reconstruction(NamedTuple):
    """What a MAE makes of a batch, in the backbone's intensities; (B, C, D, H, W) each."""

    original: Tensor
    reconstruction: Tensor
    """the prediction where patches were hidden, the original elsewhere"""
    mask: Tensor
    """bool, True where patches were hidden"""


class Mae(nn.Module):
    """The encoder sees visible patches only; a light decoder predicts the hidden ones."""

    freeze_last_layer_steps = 0

    def __init__(
        self,
        vit: Vit3d,
        *,
        preprocessing: Preprocessing,
        mask_ratio: float,
        norm_pix_loss: bool,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        seed: int,
    ) -> None:
        super().__init__()
        vit.grid(preprocessing.crop_shape)
        self.backbone = vit
        self.preprocessing = preprocessing
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.seed = seed
        self.decoder = Decoder(
            vit,
            embed_dim=decoder_embed_dim,
            depth=decoder_depth,
            num_heads=decoder_num_heads,
        )

    def forward(self, batch: CropBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the hidden patches of a batch."""
        del step  # the mask follows from each sample's position
        volume, _, counted = normalise_batch(batch, preprocessing=self.preprocessing)
        token_mask = self._mask(batch)
        prediction = self._predict(volume, token_mask)
        patch_size = self.backbone.patch_size
        counted = patchify(counted, patch_size=patch_size)
        target = patchify(volume, patch_size=patch_size)
        if self.norm_pix_loss:
            mean, std = patch_statistics(target, counted=counted)
            target = (target - mean) / std
        weight = counted & token_mask.mask[..., None]
        loss = masked_error(prediction, target=target, weight=weight)
        return loss, {"loss": loss.detach()}

    def after_update(self, step: int) -> None:
        """Nothing moves beside the weights."""

    def param_groups(self, weight_decay: float) -> list[ParameterGroup]:
        """Every trainable parameter, for the optimiser."""
        return parameter_groups(self, weight_decay=weight_decay)

    @torch.no_grad()
    def reconstruct(self, batch: CropBatch) -> Reconstruction:
        """For pictures. With ``norm_pix_loss`` each patch gets back its own mean and spread."""
        volume, _, counted = normalise_batch(batch, preprocessing=self.preprocessing)
        token_mask = self._mask(batch)
        patch_size = self.backbone.patch_size
        patches = patchify(volume, patch_size=patch_size)
        prediction = self._predict(volume, token_mask).float()
        if self.norm_pix_loss:
            known = patchify(counted, patch_size=patch_size)
            mean, std = patch_statistics(patches, counted=known)
            prediction = prediction * std + mean
        hidden = token_mask.mask[..., None].expand_as(patches)
        grid = self.backbone.grid(volume.shape[2:])
        rebuilt, mask = (
            unpatchify(values, grid=grid, patch_size=patch_size)
            for values in (torch.where(hidden, prediction, patches), hidden)
        )
        # The loss never asked for what does not count, so nothing there is worth a look.
        return Reconstruction(volume, torch.where(counted, rebuilt, volume), mask)

    def _mask(self, batch: CropBatch) -> TokenMask:
        d, h, w = self.backbone.grid(self.preprocessing.crop_shape)
        token_mask = random_mask(
            batch.position, num_tokens=d * h * w, mask_ratio=self.mask_ratio, seed=self.seed
        )
        return token_mask.to(batch.volume.device)

    def _predict(self, volume: Tensor, token_mask: TokenMask) -> Tensor:
        """(B, N, P) for all patches, the hidden and the visible ones."""
        encoded = self.backbone(volume, token_mask.keep)
        grid = self.backbone.grid(volume.shape[2:])
        prediction: Tensor = self.decoder(
            encoded.cls_token, encoded.patch_tokens, keep=token_mask.keep, grid=grid
        )
        return prediction


class Decoder(nn.Module):
    """Puts mask tokens where patches are missing and predicts the voxels of every patch."""

    def __init__(self, vit: Vit3d, *, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embed = nn.Linear(vit.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = build_blocks(
            depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=4.0,
            drop_paths=[0.0] * depth,
        )
        self.norm = LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vit.patch_embed.in_features)
        initialise_linears(self)
        trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, cls_token: Tensor, visible: Tensor, *, keep: Tensor, grid: tuple[int, int, int]
    ) -> Tensor:
        """(B, E) and (B, K, E) at the places ``keep`` of a ``grid`` to voxels (B, N, P)."""
        batch, num_tokens = len(visible), grid[0] * grid[1] * grid[2]
        visible = self.embed(visible)
        masked = self.mask_token.to(visible.dtype).expand(batch, num_tokens, -1)
        tokens = masked.scatter(1, keep[..., None].expand_as(visible), visible)
        tokens = tokens + sincos_positions(grid, embed_dim=self.embed_dim, device=visible.device)
        tokens = torch.cat([self.embed(cls_token)[:, None].to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        voxels: Tensor = self.head(self.norm(tokens[:, 1:]))
        return voxels


def patch_statistics(patches: Tensor, *, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its voxels that count.

    Departs from the authors' code, whose images have no padding, in leaving padding out (and what a
    mask hides), and divides by the count, not by the count less one.

    Args:
        patches: (B, N, P).
        counted: (B, N, P) bool.

    Returns:
        (B, N, 1) each; a constant patch has the square root of a small number as its deviation.
    """
    count = counted.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = (patches * counted).sum(dim=-1, keepdim=True) / count
    variance = ((patches - mean).square() * counted).sum(dim=-1, keepdim=True) / count
    return mean, (variance + _EPSILON).sqrt()


def masked_error(prediction: Tensor, *, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error over each sample's counted voxels, then the mean over samples.

    Every scan weighs the same however much of its crop is padding, so ranks that hold as many
    samples average to the loss of the whole batch.

    Args:
        prediction: (B, N, P).
        target: (B, N, P).
        weight: (B, N, P) bool, the voxels that are asked for: hidden from the encoder, and counted.
    """
    error = (prediction.float() - target).square() * weight
    per_sample = error.sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1)
    return per_sample.mean()


def build_mae(
    config: MaeConfig, *, vit: Vit3d, preprocessing: Preprocessing, total_steps: int, seed: int
) -> Mae:
    """A MAE around ``vit``; decoder weights come from torch's global generator."""
    del total_steps  # MAE has no schedule of its own
    return Mae(
        vit,
        preprocessing=preprocessing,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        decoder_embed_dim=config.decoder_embed_dim,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_num_heads,
        seed=seed,
    )
