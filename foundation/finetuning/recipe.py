"""A fine-tuning recipe: which backbone, which tasks, what of it moves, on how many labels."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from foundation.augment import AugmentConfig
from foundation.finetuning.decoders import DecoderConfig
from foundation.finetuning.heads import HeadConfig
from foundation.finetuning.losses import LossConfig
from foundation.finetuning.tuning import TuneConfig
from foundation.network.patches import Shape, patch_grid
from foundation.preprocessing import Preprocessing
from foundation.running.sections import TrainingSections
from foundation.vit import VitConfig
from recipes.load import Section

FULL = 1.0


class ReadingConfig(Section):
    """How training sees a scan; validation and prediction see all of it."""

    crops_per_scan: int = Field(
        default=1,
        ge=1,
        description="crops of a scan that are pooled to one; a scan that fits into one crop needs "
        "no more. Of a segmentation each crop is one sample",
    )
    foreground: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the crops that are centred in the foreground; of a segmentation, in "
        "the box around the scan's mask",
    )
    max_damaged: int = Field(default=0, ge=0, description="damaged scans that each rank replaces")
    timeout_s: float = Field(default=600, gt=0, description="longest wait for one batch")


class ValidationConfig(Section):
    """Looks at the validation subjects at every checkpoint, and keeps the best weights."""

    monitor: Literal["metric", "loss"] = Field(
        default="metric", description="metric: the task's primary one; loss: of whole scans"
    )
    patience: int | None = Field(
        default=None, ge=1, description="looks without a better one before training ends; null: all"
    )


class CrossValidationConfig(Section):
    """Of tasks without a split, by subject."""

    folds: bool = Field(
        default=True,
        description="train a model for each fold, for honest scores; false: the final one alone",
    )


class FinetuneConfig(TrainingSections):
    """A fine-tuning recipe; each task, at each fraction of its training subjects, is one run."""

    tasks: tuple[Path, ...] = Field(min_length=1, description="task cards")
    fractions: tuple[float, ...] = Field(
        default=(FULL,), min_length=1, description="of the training subjects that are used"
    )
    data_root: Path = Field(description="folder of the cohorts' tables")
    pseudonym_key: Path = Field(description="the key that the shards were made with")
    shards: Path = Field(
        default=Path("data/finetune"), description="keeps the labelled scans as shards"
    )
    backbone: str | None = Field(
        default=None, description="whatever load_backbone takes; or give vit and preprocessing"
    )
    begin: Literal["pretrained", "scratch"] = Field(
        default="pretrained", description="scratch: the backbone's network, with weights drawn"
    )
    vit: VitConfig | None = None
    preprocessing: Preprocessing | None = None
    crop_shape: Shape | None = Field(
        default=None, description="voxels (d, h, w) of a crop; null: the backbone's"
    )
    drop_path_rate: float | None = Field(
        default=None, ge=0, lt=1, description="null: the backbone's"
    )
    tune: TuneConfig = TuneConfig()
    head: HeadConfig = Field(default=HeadConfig(), description="of tasks with labels")
    decoder: DecoderConfig = Field(default=DecoderConfig(), description="of segmentations")
    loss: LossConfig = LossConfig()
    augment: AugmentConfig | None = Field(default=AugmentConfig(), description="null: none")
    reading: ReadingConfig = ReadingConfig()
    validation: ValidationConfig = ValidationConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    build_workers: int = Field(default=2, ge=0, description="processes that make the shards")

    @field_validator("fractions")
    @classmethod
    def _are_shares(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < each <= 1 for each in fractions):
            raise ValueError(f"a fraction lies above 0 and is at most 1, got {list(fractions)}")
        names = [part_name("", each) for each in fractions]
        if len(set(names)) < len(names):
            raise ValueError(f"fractions differ by a percent at least, got {list(fractions)}")
        return fractions

    @model_validator(mode="after")
    def _one_network(self) -> "FinetuneConfig":
        described = (self.vit is not None, self.preprocessing is not None)
        if (self.backbone is None) != all(described) or described[0] != described[1]:
            raise ValueError("give a backbone, or vit and preprocessing to begin from scratch")
        if (
            self.backbone is None
            and self.begin == "pretrained"
            and "begin" in self.model_fields_set
        ):
            raise ValueError("begin: pretrained needs a backbone")
        if self.begins_from_scratch and self.tune.mode != "full":
            raise ValueError(
                f"tune.mode {self.tune.mode} keeps weights of a pretrained backbone; from scratch "
                "take full"
            )
        if self.vit is not None and self.preprocessing is not None:
            patch_grid(self.crop_shape or self.preprocessing.crop_shape, self.vit.patch_size)
        return self

    @model_validator(mode="after")
    def _portions_fit(self) -> "FinetuneConfig":
        bag, train = self.reading.crops_per_scan, self.train
        for name, value in (
            ("global_batch", train.global_batch),
            ("micro_batch", train.micro_batch),
        ):
            if value is not None and value % bag:
                raise ValueError(
                    f"train.{name}: {value} crops are no whole number of scans of "
                    f"{bag} crops (reading.crops_per_scan)"
                )
        every = self.checkpoint.every_steps
        if every % self.log.every_steps:
            raise ValueError(
                f"checkpoint.every_steps: {every}, at which validation is looked at and written "
                f"down, is no multiple of log.every_steps, {self.log.every_steps}"
            )
        if self.reading.max_damaged and bag > 1:
            raise ValueError(
                "reading.max_damaged: a crop in place of a damaged one is another subject's, and "
                "crops are pooled (reading.crops_per_scan); set it to 0, and mend the shards"
            )
        if self.deepspeed.stage == 3:
            raise ValueError(
                "deepspeed.stage: 3 splits the parameters, which validation needs whole; use 0, 1 "
                "or 2"
            )
        return self

    @property
    def begins_from_scratch(self) -> bool:
        """All weights are drawn."""
        return self.backbone is None or self.begin == "scratch"


def part_name(task: str, fraction: float) -> str:
    """Folder of a task at a fraction: ``stroke``, at 20% ``stroke_20``, at 2.5% ``stroke_2_5``."""
    if fraction == FULL:
        return task
    return f"{task}_{f'{100 * fraction:.1f}'.removesuffix('.0').replace('.', '_')}"
