"""The training loop, the same for every method: watched, saved, resumed, rolled back.

:func:`train` takes a job from where its run stands to its last step; what is trained, and on what,
the job says.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from foundation.checkpoint import CheckpointWriter, Keep, step_name
from foundation.engine import deepspeed_dict, gradient_norm, poison, start_engine
from foundation.log import RunLog
from foundation.methods import Method
from foundation.running.optimiser import set_groups
from foundation.running.ranks import from_rank_zero
from foundation.running.runs import CHECKPOINTS, LOG, RunState
from foundation.running.saving import restore_optimiser, restore_weights, save_checkpoint
from foundation.running.sections import TrainingSections
from foundation.running.work import Job, Looks
from foundation.vit import set_execution
from foundation.watching.alarms import Alarm, stop_for
from foundation.watching.diary import Diary
from foundation.watching.finite import MicroBatch, agree
from foundation.watching.guard import Guard, Update
from foundation.watching.watch import start_guard
from recipes.command import STOPPED
from recipes.load import digest, to_yaml
from shards.stream import crop_batches
from shards.streaming.batch import CropBatch

_SPLITS_PARAMETERS = 3
"""The stage whose engine must stand while whole weights are asked for."""


def open_log(config: TrainingSections, *, folder: Path, start: int) -> RunLog:
    """The run's log, to go on after ``start`` updates."""
    return RunLog(
        folder / LOG,
        start=start,
        wandb=config.log.wandb,
        name=config.name,
        recipe=config.model_dump(mode="json"),
    )


def open_writer(config: TrainingSections, *, folder: Path) -> CheckpointWriter:
    """Writes the run's checkpoints, and keeps as many as the recipe says."""
    keep = Keep(config.checkpoint.keep, every_steps=config.checkpoint.milestone_steps)
    return CheckpointWriter(folder / CHECKPOINTS, keep=keep)


def train(job: Job, *, method: Method, state: RunState) -> Method:
    """Train to the last step, or to where the job's looks say that it is over.

    Args:
        job: What is trained, on what.
        method: With its first weights.
        state: Where the run stands.

    Returns:
        The method as training left it: another one than ``method`` where the run was rolled back.
    """
    while True:
        guard = start_guard(
            job.config.safety,
            folder=job.folder,
            state=state,
            rolls_back_on_collapse=job.work.on_alarm == "roll_back",
            log=job.log,
            writer=job.writer,
        )
        engine = start(job, method=method, state=state)
        back = run_steps(job, engine=engine, guard=guard, state=state)
        if back is None:
            if job.config.deepspeed.stage < _SPLITS_PARAMETERS:
                engine.destroy()  # DeepSpeed would keep it, for as long as the process lives
            return method
        state = state._replace(step=back, checkpoint=job.checkpoints / step_name(back))
        engine.destroy()
        del engine, method  # a device may have no room for two
        method = job.work.first_method(state)


def start(job: Job, *, method: Any, state: RunState) -> Any:
    """A DeepSpeed engine around the method, brought to where the run stands."""
    config = job.config
    if state.checkpoint is not None:
        restore_weights(method, state.checkpoint)
    method.to(job.ranks.device)
    set_execution(
        method,
        compile_blocks=config.train.compile_blocks,
        checkpoint_blocks=config.train.checkpoint_blocks,
    )
    settings = deepspeed_dict(
        config.deepspeed,
        micro_batch=job.portions.micro_batch,
        accumulation=job.portions.accumulation,
        world_size=job.ranks.world_size,
        clip=config.optimiser.clip,
        num_parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
    )
    engine = start_engine(
        method,
        groups=method.param_groups(config.optimiser.weight_decay, rates=config.optimiser.rates),
        betas=config.optimiser.betas,
        clip=config.optimiser.clip,
        settings=settings,
        timeout_s=config.train.timeout_s,
    )
    assert engine.train_batch_size() == config.train.global_batch, "an update sees its global batch"
    if state.checkpoint is not None:
        restore_optimiser(engine, state.checkpoint)
    return engine


def run_steps(job: Job, *, engine: Any, guard: Guard, state: RunState) -> int | None:
    """Train from where the run stands, watched.

    Returns:
        The updates of the checkpoint that the run must go back to; None at the end.
    """
    config = job.config
    method: Method = engine.module
    looks = job.work.looks(job, method=method, state=state)
    with Diary(
        job.log,
        alarms=job.work.alarms(job, method=method),
        device=job.ranks.device,
        start=state.step,
        total=config.train.steps,
        every_steps=config.log.every_steps,
        global_batch=config.train.global_batch,
        tokens_per_scan=job.tokens_per_scan,
        heartbeat=job.heartbeat,
        prepare=method.prepare,
    ) as diary:
        return follow(job, engine=engine, guard=guard, looks=looks, diary=diary, start=state.step)


def follow(
    job: Job, *, engine: Any, guard: Guard, looks: Looks, diary: Diary, start: int
) -> int | None:
    """The loop, the same for every method. ``step`` counts updates from 0.

    Returns:
        The updates of the checkpoint that the run must go back to; None at the end.
    """
    config, ranks, accumulation = job.config, job.ranks, job.portions.accumulation
    method: Method = engine.module
    if looks.is_over:
        return None
    seen: list[MicroBatch] = []
    passed = guard.ladder.passed
    batches = stream(job, first=start + passed, last=config.train.steps + passed)
    for micro_step, batch in enumerate(batches, start=start * accumulation):
        step = micro_step // accumulation
        diary.begin("forward", step=step)
        set_schedules(config, engine=engine, step=step, lr_scale=guard.ladder.lr_scale(step))
        loss, metrics = engine(batch.to(ranks.device), step)
        diary.begin("backward", step=step)
        engine.backward(poison(loss))
        diary.begin("optimiser", step=step)
        diary.watch.add("decode", batch.decode_s)
        seen.append(MicroBatch({**metrics, "loss": loss.detach()}, batch.keys, batch.read_s))
        updates = engine.is_gradient_accumulation_boundary()  # asked before step() counts on
        engine.step()
        if not updates:
            diary.begin("wait", step=step)
            continue
        agreed = agree(seen, stop=job.request.asked is not None)
        update = Update(step + 1, agreed.means["loss"], gradient_norm(engine), [], seen)
        if update.applied:
            method.after_update(step)
            diary.begin("health", step=step)
            means = agreed.means | looks.after(update.done)
            diary.begin("log", step=step)
            alarms = write_line(
                job, diary, engine=engine, update=update, means=means, passed=passed
            )
            update = update._replace(alarms=alarms)
        back = guard.after(update)
        if back is not None:
            return back
        seen.clear()
        diary.begin("checkpoint", step=step)
        ends = looks.is_over or update.done == config.train.steps
        save(
            job, engine=engine, guard=guard, looks=looks, done=update.done, now=ends or agreed.stop
        )
        if ends:
            return None
        if agreed.stop:
            leave_stopped(job, done=update.done)
        diary.begin("wait", step=step + 1)
    return None


def stream(job: Job, *, first: int, last: int) -> Iterator[CropBatch]:
    """The micro batches of this rank, from that of update ``first`` up to ``last``."""
    config, ranks = job.config, job.ranks
    return crop_batches(
        job.corpus,
        plan=job.crops,
        micro_batch=job.portions.micro_batch,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_position=first * config.train.global_batch,
        stop_position=last * config.train.global_batch,
        num_workers=config.train.workers,
        max_damaged=job.max_damaged,
        timeout_s=job.timeout_s,
    )


def set_schedules(config: TrainingSections, *, engine: Any, step: int, lr_scale: float) -> None:
    """Learning rate, weight decay and the frozen last layer of update ``step``."""
    total = config.train.steps
    lr = config.optimiser.lr_at(step, total=total, global_batch=config.train.global_batch)
    set_groups(
        engine.optimizer.param_groups,
        lr=lr * lr_scale,
        weight_decay=config.optimiser.weight_decay_at(step, total=total),
        freeze_last_layer=step < engine.module.freeze_last_layer_steps,
    )


def write_line(
    job: Job, diary: Diary, *, engine: Any, update: Update, means: dict[str, float], passed: int
) -> list[Alarm]:
    """Note an update; the alarms it gives, on every rank."""
    config = job.config
    scans = (update.done + passed) * config.train.global_batch
    alarms = diary.enter(
        update.done,
        means=means,
        norm=update.norm,
        group=engine.optimizer.param_groups[0],
        seen=update.seen,
        epochs=job.corpus.epochs_seen(scans, per_scan=job.crops.per_scan),
    )
    if job.work.on_alarm == "warn" or not diary.is_due(update.done):
        return []
    alarms = from_rank_zero(lambda: alarms)
    if job.work.on_alarm == "stop":
        stop_for(alarms)
    return alarms


def save(job: Job, *, engine: Any, guard: Guard, looks: Looks, done: int, now: bool) -> None:
    """Write a checkpoint where one is due, or the run is about to end or stop."""
    config = job.config
    if done % config.checkpoint.every_steps and not now:
        return
    if job.log:
        job.log.sync()
    save_checkpoint(
        job.writer,
        engine=engine,
        step=done,
        state={
            "position": (done + guard.ladder.passed) * config.train.global_batch,
            "recipe_digest": digest(config),
            "shards_digest": job.shards_digest,
            "healthy": guard.ladder.is_healthy(done),
            "recent_losses": guard.spikes.recent,
            **looks.kept(),
        },
        recipe=to_yaml(config),
        background=config.checkpoint.background and not now,
    )


def leave_stopped(job: Job, *, done: int) -> NoReturn:
    """End every rank with the code that says: saved, start me again."""
    if job.log is not None:
        job.log.close()
        print(f"stopped after {done} steps, saved; the same command goes on from there", flush=True)
    sys.exit(STOPPED)
