"""Pretrain a backbone on shards, with DeepSpeed, to a published folder.

    python -m foundation.pretrain recipes/pretrain/demo_mae.yaml
    torchrun --standalone --nproc-per-node 2 -m foundation.pretrain RECIPE [section.field=value ...]

Started again, it goes on from the last whole checkpoint; finished, it says so.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from foundation.backbone import save_backbone
from foundation.beginning.initial import begin_from, kept_beginning
from foundation.checkpoint import load_checkpoint, save_checkpoint
from foundation.engine import (
    deepspeed_dict,
    start_engine,
)
from foundation.log import RunLog
from foundation.mae import Mae
from foundation.methods import Method, build_method
from foundation.recipe import PretrainConfig
from foundation.running.job import device_name
from foundation.running.optimiser import set_groups
from foundation.running.plan import Plan, announce, corpus_of, make_plan
from foundation.running.publish import provenance_of
from foundation.running.randomness import sample_seed
from foundation.running.ranks import (
    Ranks,
    from_rank_zero,
    join_ranks,
    leave_ranks,
    losing_a_rank_is_an_error,
    run_on_ranks,
)
from foundation.running.runs import BACKBONE, CHECKPOINTS, LOG, PICTURES
from foundation.vit import Vit3d, build_vit, set_execution
from foundation.watching.alarms import stop_for
from foundation.watching.diary import Diary
from foundation.watching.finite import MicroBatch, finite_means, finite_norm
from foundation.watching.pictures import save_reconstructions
from foundation.watching.watch import start_alarms, start_checkup
from recipes.load import digest
from shards.stream import crop_batches
from shards.streaming.batch import CropBatch
from shards.streaming.corpus import Corpus

_NUM_PICTURES = 6


def main(config: PretrainConfig) -> None:
    """Pretrain, on this rank of however many there are."""
    ranks = join_ranks(timeout_s=config.train.timeout_s)
    try:
        with losing_a_rank_is_an_error():
            plan = from_rank_zero(lambda: make_plan(config, ranks=ranks))
            if not plan.state.finished:
                pretrain(config, plan=plan, ranks=ranks)
    finally:
        leave_ranks()


def pretrain(config: PretrainConfig, *, plan: Plan, ranks: Ranks) -> None:
    """Build, train to the last step, publish."""
    torch.manual_seed(config.seed)
    method = build_method(
        config,
        vit=first_backbone(config, plan=plan),
        preprocessing=config.preprocessing,
        total_steps=config.train.steps,
        seed=config.seed,
    )
    from_rank_zero(lambda: announce(config, plan=plan, ranks=ranks, method=method))
    engine = start(config, plan=plan, ranks=ranks, method=method)
    log = None
    if ranks.rank == 0:
        log = RunLog(
            config.folder / LOG,
            start=plan.state.step,
            wandb=config.log.wandb,
            name=config.name,
            recipe=config.model_dump(mode="json"),
        )
    corpus = corpus_of(config)
    run_steps(config, plan=plan, ranks=ranks, corpus=corpus, engine=engine, log=log)
    from_rank_zero(lambda: publish(config, ranks=ranks, corpus=corpus, method=method, log=log))


def first_backbone(config: PretrainConfig, *, plan: Plan) -> Vit3d:
    """The network with its first weights; a checkpoint's come later, over all of the method."""
    vit = build_vit(config.vit)
    if config.init and plan.initial_digest and plan.state.checkpoint is None:
        begin_from(vit, config.init, vit_config=config.vit, digest=plan.initial_digest)
    return vit


def start(config: PretrainConfig, *, plan: Plan, ranks: Ranks, method: Any) -> Any:
    """A DeepSpeed engine around the method, brought to where the run stands."""
    method.to(ranks.device)
    set_execution(
        method,
        compile_blocks=config.train.compile_blocks,
        checkpoint_blocks=config.train.checkpoint_blocks,
    )
    settings = deepspeed_dict(
        config.deepspeed,
        micro_batch=plan.portions.micro_batch,
        accumulation=plan.portions.accumulation,
        world_size=ranks.world_size,
        clip=config.optimiser.clip,
        num_parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
    )
    engine = start_engine(
        method,
        groups=method.param_groups(config.optimiser.weight_decay, rates=config.optimiser.rates),
        betas=config.optimiser.betas,
        clip=config.optimiser.clip,
        settings=settings,
    )
    if plan.state.checkpoint is not None:
        load_checkpoint(plan.state.checkpoint, engine=engine)
    return engine


def run_steps(
    config: PretrainConfig,
    *,
    plan: Plan,
    ranks: Ranks,
    corpus: Corpus,
    engine: Any,
    log: RunLog | None,
) -> None:
    """The loop, the same for every method. ``step`` counts updates from 0."""
    method: Method = engine.module
    checkup = start_checkup(
        config,
        method=method,
        corpus=corpus,
        scans=plan.pinned,
        micro_batch=plan.portions.micro_batch,
        ranks=ranks,
    )
    diary = Diary(
        log,
        alarms=start_alarms(config, method=method, log=log),
        device=ranks.device,
        start=plan.state.step,
        total=config.train.steps,
        every_steps=config.log.every_steps,
        global_batch=config.train.global_batch,
        tokens_per_scan=config.tokens_per_scan,
    )
    seen: list[MicroBatch] = []
    start = plan.state.step * plan.portions.accumulation
    batches = stream(config, plan=plan, ranks=ranks, corpus=corpus)
    for micro_step, batch in enumerate(batches, start=start):
        step = micro_step // plan.portions.accumulation
        diary.watch.lap("wait")
        set_schedules(config, engine=engine, method=method, step=step)
        seed_layers(config.seed, batch=batch)
        loss, metrics = engine(batch.to(ranks.device), step)
        diary.watch.lap("forward")
        engine.backward(loss)
        diary.watch.lap("backward")
        diary.watch.add("decode", batch.decode_s)
        seen.append(MicroBatch({**metrics, "loss": loss.detach()}, batch.keys, batch.read_s))
        updates = engine.is_gradient_accumulation_boundary()  # asked before step() counts on
        means = finite_means(seen, done=step) if updates else {}
        engine.step()
        if updates:
            norm = finite_norm(engine, done=step)
            method.after_update(step)
            diary.watch.lap("optimiser")
            group = engine.optimizer.param_groups[0]
            epochs = corpus.epochs_seen(
                (step + 1) * config.train.global_batch, per_scan=config.reading.crops_per_scan
            )
            means |= checkup.after(step + 1)
            diary.watch.lap("health")
            alarms = diary.enter(
                step + 1, means=means, norm=norm, group=group, seen=seen, epochs=epochs
            )
            seen.clear()
            if config.health.on_alarm == "stop":
                from_rank_zero(partial(stop_for, alarms))
            save(config, done=step + 1, plan=plan, engine=engine, log=log)
            diary.watch.lap("checkpoint")
    diary.close()


def stream(
    config: PretrainConfig, *, plan: Plan, ranks: Ranks, corpus: Corpus
) -> Iterator[CropBatch]:
    """The micro batches of this rank that are still to be seen."""
    return crop_batches(
        corpus,
        plan=config.plan,
        micro_batch=plan.portions.micro_batch,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_position=plan.state.step * config.train.global_batch,
        stop_position=config.train.steps * config.train.global_batch,
        num_workers=config.train.workers,
        max_damaged=config.reading.max_damaged,
        timeout_s=config.reading.timeout_s,
    )


def set_schedules(config: PretrainConfig, *, engine: Any, method: Method, step: int) -> None:
    """Learning rate, weight decay and the frozen last layer of update ``step``."""
    total = config.train.steps
    set_groups(
        engine.optimizer.param_groups,
        lr=config.optimiser.lr_at(step, total=total, global_batch=config.train.global_batch),
        weight_decay=config.optimiser.weight_decay_at(step, total=total),
        freeze_last_layer=step < method.freeze_last_layer_steps,
    )


def seed_layers(seed: int, *, batch: CropBatch) -> None:
    """Make what layers draw from torch's global generator (drop path) follow from the batch too.

    A resumed run then draws the same, whatever else used the generator when it started.
    """
    position = int(batch.position[0])
    torch.manual_seed(sample_seed(seed, position=position, purpose="layers"))


def save(config: PretrainConfig, *, done: int, plan: Plan, engine: Any, log: RunLog | None) -> None:
    """Write a checkpoint where one is due."""
    if done % config.checkpoint.every_steps and done != config.train.steps:
        return
    if log:
        log.sync()
    save_checkpoint(
        config.folder / CHECKPOINTS,
        step=done,
        engine=engine,
        state={
            "position": done * config.train.global_batch,
            "recipe_digest": digest(config),
            "shards_digest": plan.shards_digest,
        },
        keep=config.checkpoint.keep,
    )


def publish(
    config: PretrainConfig, *, ranks: Ranks, corpus: Corpus, method: Any, log: RunLog | None
) -> None:
    """Pictures, then the backbone: where that folder is, the run is finished."""
    assert log is not None, "rank 0 keeps the log"
    if isinstance(method, Mae):
        save_reconstructions(
            config.folder / PICTURES,
            method=method,
            batch=picture_batch(config, corpus=corpus, device=ranks.device),
        )
    save_backbone(
        config.folder / BACKBONE,
        vit=method.backbone,
        vit_config=config.vit,
        preprocessing=config.preprocessing,
        recipe=config.model_dump(mode="json"),
        provenance=provenance_of(
            corpus,
            name=config.name,
            method=config.method_name,
            steps=config.train.steps,
            scans_seen=config.train.steps * config.train.global_batch,
            crops_per_scan=config.reading.crops_per_scan,
            wall_s=log.wall_s,
            world_size=ranks.world_size,
            device=device_name(ranks.device),
            recipe_digest=digest(config),
            begun=kept_beginning(config.folder),
        ),
    )
    log.close()
    print(f"backbone: {config.folder / BACKBONE}", flush=True)


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


if __name__ == "__main__":
    assert __doc__
    run_on_ranks(main, PretrainConfig, doc=__doc__)
