"""Views of a whole batch at once, against MONAI's transforms, which take one volume at a time.

Both crop and resize, turn and deform, and degrade as often and as much as ``AugmentConfig`` says by
default, on the same device. The volumes are MR, to which all but the window's jitter may happen.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foundation.augment import AugmentConfig, CropScale, apply_view, draw_view
from foundation.bench.cases import Case, Extent, synthetic_batch
from foundation.bench.clock import Ground
from foundation.bench.results import Ratio, compared
from foundation.dino import DinoConfig
from foundation.network.patches import Shape
from foundation.preprocessing import NormalisedBatch, Preprocessing, normalise_batch
from shards.bench.timing import quietly, take_turns
from shards.streaming.batch import CropBatch


def augmentation_ratio(case: Case, *, ground: Ground, extent: Extent) -> Ratio:
    """One global view of each volume of a batch, by turns."""
    preprocessing = Preprocessing(crop_shape=case.crop_shape)
    crops = synthetic_batch(case.crop_shape, size=case.micro_batch, modality="MR")
    batch = crops.to(ground.device)
    normalised = normalise_batch(batch, preprocessing=preprocessing)
    contenders = {
        "batched": _ours(batch, normalised, preprocessing=preprocessing, ground=ground),
        "MONAI": _monai(normalised, shape=case.crop_shape, ground=ground),
    }
    with quietly():
        take_turns(contenders, range(extent.warmup))
        taken = take_turns(contenders, range(extent.warmup, extent.warmup + extent.turns))
    shape = " x ".join(map(str, case.crop_shape))
    return compared(
        "augmentation",
        size=None,
        setting=f"a view of {shape} voxels, batch {case.micro_batch}",
        ours=taken["batched"],
        theirs=taken["MONAI"],
    )


def _ours(
    batch: CropBatch, normalised: NormalisedBatch, *, preprocessing: Preprocessing, ground: Ground
) -> Callable[[int], Tensor]:
    config = DinoConfig()

    def views(turn: int) -> Tensor:
        parameters = draw_view(
            batch.position,
            seed=turn,
            view=0,
            scale=config.global_scale,
            augment=config.augment,
            modality=batch.modality,
            window_hu=preprocessing.window_hu,
        )
        made = apply_view(
            normalised.volume,
            parameters,
            shape=preprocessing.crop_shape,
            spacing_mm=normalised.spacing_mm,
            inside=normalised.inside,
            present=batch.present,
        )
        ground.finished()
        return made.volume

    return views


def _monai(normalised: NormalisedBatch, *, shape: Shape, ground: Ground) -> Callable[[int], Tensor]:
    config = DinoConfig()
    transform = monai_transform(config.augment, scale=config.global_scale, shape=shape)

    def views(turn: int) -> Tensor:
        transform.set_random_state(seed=turn)
        made = torch.stack([transform(volume) for volume in normalised.volume])
        ground.finished()
        return made

    return views


def monai_transform(config: AugmentConfig, *, scale: CropScale, shape: Shape) -> Any:
    """MONAI's counterparts, as probable and as strong, of one volume (C, D, H, W)."""
    with quietly():
        from monai import transforms as m

    smallest = [
        max(1, round(edge * share))
        for edge, share in zip(
            shape, (scale.across[0], *[math.sqrt(scale.in_plane[0])] * 2), strict=True
        )
    ]
    # MONAI turns and deforms in one resampling; we do each by its own chance.
    moved = 1 - (1 - config.rotation.probability) * (1 - config.affine.probability)
    stretch = tuple(edge - 1 for edge in config.affine.scale)
    low_resolution, blur, noise = config.low_resolution, config.blur, config.noise
    return m.Compose(
        [
            m.RandSpatialCrop(smallest, max_roi_size=shape, random_size=True),
            m.Resize(shape, mode="trilinear"),
            m.RandAffine(
                prob=moved,
                rotate_range=[math.radians(angle) for angle in config.rotation.degrees],
                shear_range=[config.affine.shear] * 6,
                scale_range=[stretch] * 3,
                padding_mode="border",
            ),
            m.RandBiasField(
                coeff_range=(-config.bias_field.coefficient, config.bias_field.coefficient),
                prob=config.bias_field.probability,
            ),
            m.RandSimulateLowResolution(
                prob=low_resolution.probability,
                zoom_range=tuple(1 / factor for factor in reversed(low_resolution.factor)),
            ),
            m.RandGaussianSmooth(*[blur.sigma_mm] * 3, prob=blur.probability),
            m.RandGaussianNoise(prob=noise.probability, std=noise.std[1]),
            m.RandAdjustContrast(prob=config.gamma.probability, gamma=config.gamma.exponent),
            m.RandScaleIntensity(
                [factor - 1 for factor in config.contrast.factor], prob=config.contrast.probability
            ),
            m.RandShiftIntensity(config.brightness.shift, prob=config.brightness.probability),
        ]
    )
