"""The sections of a recipe that every training has, whatever it trains."""

from pathlib import Path

from pydantic import Field

from foundation.engine import DeepSpeedConfig
from foundation.log import LogConfig
from foundation.running.optimiser import OptimiserConfig
from foundation.running.runs import ResumeConfig
from foundation.safety import SafetyConfig
from recipes.load import Section


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


class TrainingSections(Section):
    """What the training loop reads."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    out: Path = Path("runs")
    seed: int = Field(default=0, ge=0)
    train: TrainConfig
    optimiser: OptimiserConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    safety: SafetyConfig = SafetyConfig()
    resume: ResumeConfig = ResumeConfig()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out / self.name
