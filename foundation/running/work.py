"""What a pretraining works with, the same however often it is rolled back."""

from dataclasses import dataclass
from pathlib import Path

import torch

from foundation.beginning.initial import begin_from
from foundation.checkpoint import CheckpointWriter
from foundation.log import RunLog
from foundation.methods import Method, build_method
from foundation.recipe import PretrainConfig
from foundation.running.plan import Plan
from foundation.running.ranks import Ranks
from foundation.running.runs import CHECKPOINTS
from foundation.running.stopping import StopRequest
from foundation.vit import build_vit
from foundation.watching.heartbeat import Heartbeat
from shards.streaming.corpus import Corpus


@dataclass(frozen=True)
class Job:
    """What stays the same while a run goes on, rolled back or not."""

    config: PretrainConfig
    plan: Plan
    ranks: Ranks
    corpus: Corpus
    request: StopRequest
    heartbeat: Heartbeat
    log: RunLog | None
    """on rank 0, as the writer"""
    writer: CheckpointWriter | None

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.config.folder / CHECKPOINTS


def first_method(config: PretrainConfig, *, plan: Plan) -> Method:
    """The method with its first weights; a checkpoint's come later, over all of it."""
    torch.manual_seed(config.seed)
    vit = build_vit(config.vit)
    if config.init and plan.initial_digest and plan.state.checkpoint is None:
        begin_from(vit, config.init, vit_config=config.vit, digest=plan.initial_digest)
    return build_method(
        config,
        vit=vit,
        preprocessing=config.preprocessing,
        total_steps=config.train.steps,
        seed=config.seed,
    )
