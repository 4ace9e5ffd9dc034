"""What a training works with, the same however often it is rolled back, and what pretraining is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foundation.beginning.initial import begin_from
from foundation.checkpoint import CheckpointWriter
from foundation.log import RunLog
from foundation.methods import Method, build_method
from foundation.recipe import PretrainConfig
from foundation.running.job import Portions
from foundation.running.plan import Plan
from foundation.running.ranks import Ranks
from foundation.running.runs import CHECKPOINTS, RunState
from foundation.running.sections import TrainingSections
from foundation.running.stopping import StopRequest
from foundation.vit import build_vit
from foundation.watching.alarms import Alarms
from foundation.watching.heartbeat import Heartbeat
from foundation.watching.watch import start_alarms, start_checkup
from shards.streaming.corpus import Corpus
from shards.streaming.crops import CropPlan


class Looks(Protocol):
    """Looks at the method now and then; every rank calls it as often."""

    @property
    def is_over(self) -> bool:
        """What was found says to train no further; the same on every rank."""

    def after(self, done: int) -> dict[str, float]:
        """What is found after ``done`` updates, where a look is due; a collective call."""

    def kept(self) -> Mapping[str, Any]:
        """What a checkpoint must hold to go on looking, JSON-like."""


class Work(Protocol):
    """What is trained, and how it is watched."""

    @property
    def on_alarm(self) -> str:
        """``warn``, ``roll_back`` or ``stop``."""

    def first_method(self, state: RunState) -> Method:
        """The method with its first weights; a checkpoint's come later, over all of it."""

    def looks(self, job: "Job", *, method: Method, state: RunState) -> Looks:
        """From where the run stands."""

    def alarms(self, job: "Job", *, method: Method) -> Alarms:
        """That have seen what the log holds of earlier sittings."""


@dataclass(frozen=True)
class Job:
    """What stays the same while a run goes on, rolled back or not."""

    work: Work
    config: TrainingSections
    folder: Path
    portions: Portions
    shards_digest: str
    crops: CropPlan
    tokens_per_scan: int
    """patches of one crop"""
    ranks: Ranks
    corpus: Corpus
    max_damaged: int
    timeout_s: float
    request: StopRequest
    heartbeat: Heartbeat
    log: RunLog | None
    """on rank 0, as the writer"""
    writer: CheckpointWriter | None

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.folder / CHECKPOINTS


@dataclass(frozen=True)
class Pretraining:
    """A recipe's method on shards, watched for collapse."""

    config: PretrainConfig
    plan: Plan

    @property
    def on_alarm(self) -> str:
        """Of the recipe."""
        return self.config.health.on_alarm

    def first_method(self, state: RunState) -> Method:
        """Weights are drawn from the seed, or begin from others'."""
        config, plan = self.config, self.plan
        torch.manual_seed(config.seed)
        vit = build_vit(config.vit)
        if config.init and plan.initial_digest and state.checkpoint is None:
            begin_from(vit, config.init, vit_config=config.vit, digest=plan.initial_digest)
        return build_method(
            config,
            vit=vit,
            preprocessing=config.preprocessing,
            total_steps=config.train.steps,
            seed=config.seed,
        )

    def looks(self, job: Job, *, method: Method, state: RunState) -> Looks:
        """The pinned scans, embedded now and then."""
        del state  # what is measured depends on the weights alone
        return start_checkup(
            self.config,
            method=method,
            corpus=job.corpus,
            scans=self.plan.pinned,
            micro_batch=job.portions.micro_batch,
            ranks=job.ranks,
        )

    def alarms(self, job: Job, *, method: Method) -> Alarms:
        """By the recipe's ``health``."""
        return start_alarms(self.config, method=method, log=job.log)
