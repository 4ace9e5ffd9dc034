"""Masked autoencoder (He et al. 2022) in 3D: rebuild the hidden patches from the visible ones."""

from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from foundation.network.channels import drop_channels
from foundation.network.decoder import Decoder
from foundation.network.patches import patchify, unpatchify
from foundation.objective.mae_loss import masked_error, targets_of, voxel_weights
from foundation.objective.masking import TokenMask, block_mask, random_mask
from foundation.objective.preparation import Preparation
from foundation.preprocessing import NormalisedBatch, Preprocessing, normalise_batch
from foundation.running.parameters import UNIFORM, LayerRates, ParameterGroup, parameter_groups
from foundation.running.randomness import path_draws
from foundation.vit import Vit3d
from recipes.load import Section
from shards.scan import MODALITIES
from shards.streaming.batch import CropBatch


class MaeConfig(Section):
    """The objective and its decoder; the decoder is thrown away after pretraining."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    masking: Literal["random", "block"] = Field(
        default="random", description="patches one by one, or in boxes"
    )
    num_masks: int = Field(default=1, ge=1, description="of each crop that is read")
    norm_pix_loss: bool | tuple[str, ...] = Field(
        default=True,
        description="each patch's target has mean 0 and variance 1: of every scan, of none, or of "
        "the modalities named; the others' targets are intensities of their window in [-1, 1]",
    )
    max_air_share: float = Field(
        default=1.0, ge=0, le=1, description="of the loss, for patches of nothing but air"
    )
    channel_drop: float = Field(
        default=0.0, ge=0, lt=1, description="probability of hiding a sequence from the encoder"
    )
    decoder_embed_dim: int = Field(default=384, ge=6)
    decoder_depth: int = Field(default=4, ge=1)
    decoder_num_heads: int = Field(default=8, ge=1)

    @property
    def normalised(self) -> tuple[str, ...]:
        """Modalities whose targets are normalised patch by patch."""
        if isinstance(self.norm_pix_loss, bool):
            return tuple(MODALITIES) if self.norm_pix_loss else ()
        return self.norm_pix_loss

    @model_validator(mode="after")
    def _check(self) -> "MaeConfig":
        width, heads = self.decoder_embed_dim, self.decoder_num_heads
        if width % 6 or width % heads:
            raise ValueError(
                f"decoder_embed_dim must be a multiple of 6 and of decoder_num_heads, "
                f"got {width} with {heads} heads"
            )
        if unknown := set(self.normalised) - set(MODALITIES):
            raise ValueError(
                f"norm_pix_loss names {', '.join(sorted(unknown))}; modalities are "
                f"{', '.join(MODALITIES)}"
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
        decoder: Decoder,
        preprocessing: Preprocessing,
        mask_ratio: float,
        masking: Literal["random", "block"],
        num_masks: int,
        normalised: tuple[str, ...],
        max_air_share: float,
        channel_drop: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.grid = vit.grid(preprocessing.crop_shape)
        self.backbone = vit
        self.decoder = decoder
        self.preprocessing = preprocessing
        self.prepare = Preparation(partial(normalise_batch, preprocessing=preprocessing))
        self.mask_ratio = mask_ratio
        self.masking = masking
        self.num_masks = num_masks
        self.max_air_share = max_air_share
        self.channel_drop = channel_drop
        self.seed = seed
        is_normalised = torch.tensor([name in normalised for name in MODALITIES])
        self.register_buffer("_is_normalised", is_normalised, persistent=False)
        self._is_normalised: Tensor

    def forward(self, batch: CropBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the hidden patches of a batch."""
        del step  # masks follow from each sample's position
        view = self.prepare(batch)
        patch_size = self.backbone.patch_size
        patches = patchify(view.volume, patch_size=patch_size)
        counted = patchify(view.counted, patch_size=patch_size)
        token_mask = self._masks(batch, num_masks=self.num_masks)
        prediction = self._predict(view, batch=batch, keep=token_mask.keep)
        samples = (len(patches), self.num_masks)
        targets = targets_of(patches, counted=counted, normalised=self._normalised(batch))
        weight = voxel_weights(
            patches,
            counted=counted,
            hidden=token_mask.mask.unflatten(0, samples),
            max_air_share=self.max_air_share,
        )
        loss = masked_error(
            prediction.unflatten(0, samples), target=targets.values[:, None], weight=weight
        )
        return loss, {"loss": loss.detach()}

    def after_update(self, step: int) -> None:
        """Nothing moves beside the weights."""

    def param_groups(
        self, weight_decay: float, *, rates: LayerRates = UNIFORM
    ) -> list[ParameterGroup]:
        """Every trainable parameter, for the optimiser."""
        return parameter_groups(
            self, weight_decay=weight_decay, rates=rates, backbone=self.backbone
        )

    @torch.no_grad()
    def reconstruct(self, batch: CropBatch) -> Reconstruction:
        """For pictures, under the first mask; normalised patches get back their mean and spread."""
        view = normalise_batch(batch, preprocessing=self.preprocessing)
        patch_size = self.backbone.patch_size
        patches = patchify(view.volume, patch_size=patch_size)
        counted = patchify(view.counted, patch_size=patch_size)
        token_mask = self._masks(batch, num_masks=1)
        prediction = self._predict(view, batch=batch, keep=token_mask.keep).float()
        targets = targets_of(patches, counted=counted, normalised=self._normalised(batch))
        prediction = prediction * targets.std + targets.mean
        hidden = token_mask.mask[..., None].expand_as(patches)
        rebuilt, mask = (
            unpatchify(values, grid=self.grid, patch_size=patch_size)
            for values in (torch.where(hidden, prediction, patches), hidden)
        )
        # The loss never asked for what does not count, so nothing there is worth a look.
        shown = torch.where(view.counted, rebuilt, view.volume)
        return Reconstruction(view.volume, shown, mask)

    def _masks(self, batch: CropBatch, *, num_masks: int) -> TokenMask:
        """(B M, ...): the masks of a sample lie behind each other."""
        drawn = [
            block_mask(
                batch.position,
                grid=self.grid,
                mask_ratio=self.mask_ratio,
                seed=self.seed,
                draw=draw,
            )
            if self.masking == "block"
            else random_mask(
                batch.position,
                num_tokens=self.grid[0] * self.grid[1] * self.grid[2],
                mask_ratio=self.mask_ratio,
                seed=self.seed,
                draw=draw,
            )
            for draw in range(num_masks)
        ]
        keep, mask = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(*drawn, strict=True))
        return TokenMask(keep, mask).to(batch.volume.device)

    def _path_draws(self, batch: CropBatch, *, num_masks: int) -> Tensor | None:
        """(B M, R): what drop path takes, in the order of the masks."""
        if not self.backbone.num_draws:
            return None
        draws = path_draws(
            self.seed,
            positions=batch.position.tolist(),
            num_views=num_masks,
            num_values=self.backbone.num_draws,
        )
        return rearrange(draws, "(m b) r -> (b m) r", m=num_masks)

    def _normalised(self, batch: CropBatch) -> Tensor:
        """(B, C) bool: which channels' targets are normalised patch by patch."""
        return self._is_normalised[batch.modality.to(self._is_normalised.device)]

    def _predict(self, view: NormalisedBatch, *, batch: CropBatch, keep: Tensor) -> Tensor:
        """(B M, N, P) for all patches, the hidden and the visible ones."""
        present = drop_channels(
            batch.present,
            positions=batch.position,
            rate=self.channel_drop,
            seed=self.seed,
            purpose="mae",
        )
        copies = len(keep) // len(view.volume)
        encoded = self.backbone(
            view.volume,
            keep,
            spacing_mm=view.spacing_mm,
            present=present,
            draws=self._path_draws(batch, num_masks=copies),
        )
        prediction: Tensor = self.decoder(
            encoded.cls_token,
            encoded.patch_tokens,
            keep=keep,
            grid=self.grid,
            spacing_mm=view.spacing_mm.repeat_interleave(copies, dim=0),
        )
        return prediction


def build_mae(
    config: MaeConfig, *, vit: Vit3d, preprocessing: Preprocessing, total_steps: int, seed: int
) -> Mae:
    """A MAE around ``vit``; decoder weights come from torch's global generator."""
    del total_steps  # MAE has no schedule of its own
    decoder = Decoder(
        vit,
        embed_dim=config.decoder_embed_dim,
        depth=config.decoder_depth,
        num_heads=config.decoder_num_heads,
    )
    return Mae(
        vit,
        decoder=decoder,
        preprocessing=preprocessing,
        mask_ratio=config.mask_ratio,
        masking=config.masking,
        num_masks=config.num_masks,
        normalised=config.normalised,
        max_air_share=config.max_air_share,
        channel_drop=config.channel_drop,
        seed=seed,
    )
