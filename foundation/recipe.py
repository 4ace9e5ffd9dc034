"""A pretraining recipe: which sections it has, and what follows from them."""

import math

from pydantic import Field, model_validator

from foundation.beginning.initial import InitialConfig
from foundation.health import HealthConfig
from foundation.methods import MethodSections
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing
from foundation.running.sections import TrainingSections
from foundation.vit import VitConfig
from shards.streaming.crops import CropPlan
from shards.streaming.reading import FolderConfig, StreamConfig, folder_list


class PretrainConfig(MethodSections, TrainingSections):
    """A pretraining recipe; exactly one of ``mae`` and ``dino`` chooses the method."""

    shards: str | tuple[FolderConfig, ...] = Field(description="a folder or URL, or a mixture")
    reading: StreamConfig = StreamConfig()
    vit: VitConfig
    init: InitialConfig | None = Field(
        default=None, description="weights to begin from; null draws them"
    )
    preprocessing: Preprocessing
    health: HealthConfig = HealthConfig()

    @model_validator(mode="after")
    def _check(self) -> "PretrainConfig":
        patch_grid(self.preprocessing.crop_shape, self.vit.patch_size)
        if self.dino is not None:
            patch_grid(self.dino.local_crops.shape, self.vit.patch_size)
        folder_list(self.shards)
        return self

    @property
    def plan(self) -> CropPlan:
        """What is cut out of each scan."""
        return self.reading.plan(self.preprocessing.crop_shape)

    @property
    def tokens_per_scan(self) -> int:
        """Patches of one crop."""
        return math.prod(patch_grid(self.preprocessing.crop_shape, self.vit.patch_size))
