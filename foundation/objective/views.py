"""Multi-crop (Caron et al. 2020): a few large and many small views of each scan."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from foundation.augment import AugmentConfig, CropScale, apply_view, draw_view
from foundation.network.channels import drop_channels
from foundation.preprocessing import NormalisedBatch, Preprocessing, normalise_batch
from foundation.vit import Crops
from recipes.load import Section
from shards.streaming.batch import CropBatch

NUM_GLOBAL_CROPS = 2


class LocalCrops(Section):
    """The small views, which only the student sees."""

    num_crops: int = Field(default=8, ge=0)
    shape: tuple[int, int, int] = Field(default=(48, 48, 48), description="voxels (d, h, w)")
    scale: CropScale = CropScale(in_plane=(0.16, 0.48), across=(0.2, 0.5))


class MultiCrop(NamedTuple):
    """How views are made of a batch; each follows from the seed and a sample's position."""

    preprocessing: Preprocessing
    global_scale: CropScale
    local_crops: LocalCrops
    augment: AugmentConfig
    channel_drop: float
    seed: int

    def __call__(self, batch: CropBatch) -> list[Crops]:
        """The global crops, and behind them the local ones where there are any.

        Returns:
            One or two entries; in each the B samples of the first view come first.
        """
        normalised = normalise_batch(batch, preprocessing=self.preprocessing)
        shape, local = self.preprocessing.crop_shape, self.local_crops
        plan = [(self.global_scale, shape)] * NUM_GLOBAL_CROPS
        plan += [(local.scale, local.shape)] * local.num_crops
        views = [
            self._view(batch, normalised, view=view, scale=scale, shape=view_shape)
            for view, (scale, view_shape) in enumerate(plan)
        ]
        parts = (views[:NUM_GLOBAL_CROPS], views[NUM_GLOBAL_CROPS:])
        return [_together(part) for part in parts if part]

    def _view(
        self,
        batch: CropBatch,
        normalised: NormalisedBatch,
        *,
        view: int,
        scale: CropScale,
        shape: tuple[int, int, int],
    ) -> Crops:
        parameters = draw_view(
            batch.position,
            seed=self.seed,
            view=view,
            scale=scale,
            augment=self.augment,
            modality=batch.modality,
            window_hu=self.preprocessing.window_hu,
        )
        present = drop_channels(
            batch.present,
            positions=batch.position,
            rate=self.channel_drop,
            seed=self.seed,
            purpose=f"view {view}",
        )
        made = apply_view(
            normalised.volume,
            parameters,
            shape=shape,
            spacing_mm=normalised.spacing_mm,
            inside=normalised.inside,
            present=present,
        )
        return Crops(made.volume, spacing_mm=made.spacing_mm, present=present)


def _together(views: list[Crops]) -> Crops:
    def joined(parts: list[Tensor | None]) -> Tensor:
        return torch.cat([part for part in parts if part is not None])

    return Crops(
        torch.cat([view.volume for view in views]),
        spacing_mm=joined([view.spacing_mm for view in views]),
        present=joined([view.present for view in views]),
    )
