"""The end of a pretraining: pictures, then the backbone."""

from typing import Any

import torch

from foundation.artefact.curve import loss_curve
from foundation.artefact.saving import save_backbone
from foundation.beginning.initial import kept_beginning
from foundation.checkpoint import newest_checkpoint
from foundation.log import read_log
from foundation.mae import Mae
from foundation.recipe import PretrainConfig
from foundation.running.job import device_name
from foundation.running.provenance import provenance_of
from foundation.running.runs import BACKBONE, LOG, PICTURES
from foundation.running.saving import restore_weights
from foundation.running.work import Job, Pretraining
from foundation.watching.pictures import save_reconstructions
from recipes.load import digest
from shards.stream import crop_batches
from shards.streaming.batch import CropBatch
from shards.streaming.corpus import Corpus

_NUM_PICTURES = 6


def publish(work: Pretraining, *, job: Job, method: Any) -> None:
    """Pictures, then the backbone: where that folder is, the run is finished."""
    config, ranks, corpus = work.config, job.ranks, job.corpus
    assert job.log is not None, "rank 0 keeps the log"
    if config.deepspeed.stage == 3:
        method = method_of_checkpoint(work, job=job)
    if isinstance(method, Mae):
        save_reconstructions(
            config.folder / PICTURES,
            method=method,
            batch=picture_batch(config, corpus=corpus, device=ranks.device),
        )
    provenance = provenance_of(
        corpus,
        name=config.name,
        method=config.method_name,
        steps=config.train.steps,
        scans_seen=config.train.steps * config.train.global_batch,
        crops_per_scan=config.reading.crops_per_scan,
        wall_s=job.log.wall_s,
        world_size=ranks.world_size,
        device=device_name(ranks.device),
        recipe_digest=digest(config),
        begun=kept_beginning(config.folder),
    )
    save_backbone(
        config.folder / BACKBONE,
        vit=method.backbone,
        vit_config=config.vit,
        preprocessing=config.preprocessing,
        recipe=config.model_dump(mode="json"),
        provenance={**provenance, "loss_curve": loss_curve(read_log(config.folder / LOG))},
    )
    job.log.close()
    print(f"backbone: {config.folder / BACKBONE}", flush=True)


def method_of_checkpoint(work: Pretraining, *, job: Job) -> Any:
    """The method whole in this process, as the last checkpoint holds it."""
    last = newest_checkpoint(job.checkpoints, say=print)
    assert last is not None, "the last step was saved"
    method: Any = work.first_method(work.plan.state)
    restore_weights(method, last)
    return method.to(job.ranks.device)


def picture_batch(config: PretrainConfig, *, corpus: Corpus, device: torch.device) -> CropBatch:
    """The first crops of the run, each of another scan."""
    batches = crop_batches(
        corpus,
        plan=config.plan._replace(per_scan=1),
        micro_batch=_NUM_PICTURES,
        seed=config.seed,
        stop_position=_NUM_PICTURES,
        max_damaged=config.reading.max_damaged,
        timeout_s=config.reading.timeout_s,
    )
    return next(batches).to(device)
