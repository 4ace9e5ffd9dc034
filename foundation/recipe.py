"""A pretraining recipe: which sections it has, and what follows from them."""

import math
from pathlib import Path

from pydantic import Field, model_validator

from foundation.beginning.initial import InitialConfig
from foundation.engine import DeepSpeedConfig
from foundation.health import HealthConfig
from foundation.log import LogConfig
from foundation.methods import MethodSections
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing
from foundation.running.optimiser import OptimiserConfig
from foundation.running.runs import ResumeConfig
from foundation.safety import SafetyConfig
from foundation.vit import VitConfig
from recipes.load import Section
from shards.streaming.crops import CropPlan
from shards.streaming.reading import FolderConfig, StreamConfig, folder_list


class TrainConfig(Section):
    """How much, and in which portions."""

    steps: int = Field(ge=1, description="updates of the weights")
    global_batch: int = Field(ge=1, description="scans of an update, over all ranks")
    micro_batch: int | None = Field(
        default=None, ge=1, description="scans of one forward on one rank; null: its whole share"
    )
    workers: int = Field(default=0, ge=0, description="reading processes of each rank")
    compile_blocks: bool = Field(default=False, description="torch.compile; minutes at the start")
    checkpoint_blocks: bool = Field(
        default=False, description="compute each block again in backward: slower, far less memory"
    )
    timeout_s: float = Field(default=1800, gt=0, description="longest wait of a collective call")


class CheckpointConfig(Section):
    """How often, and how many stay."""

    every_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1, description="of the newest")
    milestone_steps: int | None = Field(
        default=None, ge=1, description="those at multiples of it stay for good"
    )
    background: bool = Field(
        default=True, description="write from a copy in memory while training goes on"
    )


class PretrainConfig(MethodSections):
    """A pretraining recipe; exactly one of ``mae`` and ``dino`` chooses the method."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    shards: str | tuple[FolderConfig, ...] = Field(description="a folder or URL, or a mixture")
    reading: StreamConfig = StreamConfig()
    out: Path = Path("runs")
    seed: int = Field(default=0, ge=0)
    vit: VitConfig
    init: InitialConfig | None = Field(
        default=None, description="weights to begin from; null draws them"
    )
    preprocessing: Preprocessing
    train: TrainConfig
    optimiser: OptimiserConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    health: HealthConfig = HealthConfig()
    safety: SafetyConfig = SafetyConfig()
    resume: ResumeConfig = ResumeConfig()

    @model_validator(mode="after")
    def _check(self) -> "PretrainConfig":
        patch_grid(self.preprocessing.crop_shape, self.vit.patch_size)
        if self.dino is not None:
            patch_grid(self.dino.local_crops.shape, self.vit.patch_size)
        folder_list(self.shards)
        return self

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out / self.name

    @property
    def plan(self) -> CropPlan:
        """What is cut out of each scan."""
        return self.reading.plan(self.preprocessing.crop_shape)

    @property
    def tokens_per_scan(self) -> int:
        """Patches of one crop."""
        return math.prod(patch_grid(self.preprocessing.crop_shape, self.vit.patch_size))
