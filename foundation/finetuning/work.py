"""One run of a fine-tuning, for the training loop: planned, trained, left with its best weights."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foundation.beginning.initial import keep_beginning
from foundation.checkpoint import newest_checkpoint, read_state
from foundation.engine import check_engine, compilation_ahead
from foundation.finetuning.data import LabelledScans, training_corpus
from foundation.finetuning.method import Finetune
from foundation.finetuning.parts import Part
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.scoring import standardise_head
from foundation.finetuning.start import Start, bag_size, first_method, masks_of
from foundation.finetuning.target import Target
from foundation.finetuning.validation import Validation, best_path, restore_best, standing_of
from foundation.log import check_log
from foundation.methods import Method
from foundation.network.patches import patch_grid
from foundation.running.job import Portions, check_folder, check_space, device_name, portions_of
from foundation.running.ranks import Ranks, from_rank_zero
from foundation.running.runs import CHECKPOINTS, RunState, open_run
from foundation.running.stopping import StopRequest
from foundation.running.work import Job, Looks
from foundation.training import open_log, open_writer, train
from foundation.watching.alarms import Alarms
from foundation.watching.heartbeat import Heartbeat
from recipes.load import digest
from shards.streaming.corpus import Corpus
from shards.streaming.crops import CropPlan

MODEL, HELD_OUT = "model", "held_out.csv"

# What may differ when a run goes on, beside what may of every run: where scans are, not which.
_FREE = ("shards", "data_root", "pseudonym_key", "build_workers")


class Plan(NamedTuple):
    """What rank 0 found before anything heavy is built."""

    state: RunState
    portions: Portions


@dataclass(frozen=True)
class Finetuning:
    """A part of a recipe: what is trained, and how it is watched.

    Attributes:
        config: The recipe, with this part's task and fraction alone.
        part: Whose labels.
        start: First weights.
        target: What is predicted, fitted on the part's training subjects.
        scans: The task's.
        folder: Of their shards.
        ranks: Of the job.
    """

    config: FinetuneConfig
    part: Part
    start: Start
    target: Target
    scans: LabelledScans
    folder: Path
    ranks: Ranks

    on_alarm = "warn"

    def first_method(self, state: RunState) -> Method:
        """A method with its first weights."""
        return self.method(resumed=state.checkpoint is not None)

    def method(self, *, resumed: bool) -> Finetune:
        """The same; weights are not drawn from a backbone where a checkpoint's come anyway."""
        return first_method(
            self.config, self.part, start=self.start, target=self.target, resumed=resumed
        )

    def looks(self, job: Job, *, method: Method, state: RunState) -> Looks:
        """The validation subjects, at every checkpoint."""
        assert isinstance(method, Finetune)
        return Validation(
            self.config,
            part=self.part,
            method=method,
            scans=self.scans,
            ranks=self.ranks,
            checkpoint=state.checkpoint,
            alive=lambda done: job.heartbeat.beat(done, "health"),
        )

    def alarms(self, job: Job, *, method: Method) -> Alarms:
        """None of its numbers has an alarm: labels tell by themselves when features collapse."""
        del job, method
        return Alarms(first_judged=0, patience_steps=1)

    @property
    def result(self) -> str:
        """What is there once the run is finished."""
        return MODEL if self.part.fold is None else HELD_OUT

    @property
    def crops(self) -> CropPlan:
        """What is cut out of each scan."""
        reading = self.config.reading
        return CropPlan(
            shape=self.start.preprocessing.crop_shape,
            per_scan=reading.crops_per_scan,
            foreground=reading.foreground,
            sequences=(self.scans.sequence,),
            masks=masks_of(self.scans),
        )

    def corpus(self) -> Corpus:
        """The scans that are learnt from."""
        return training_corpus(
            self.scans,
            folder=self.folder,
            subjects=[self.part.task.subjects[row] for row in self.part.train],
            plan=self.crops,
            seed=self.config.seed,
            target=self.target,
        )


def plan_of(work: Finetuning) -> Plan:
    """Check what can be known before the run, and open its folder; on rank 0."""
    config, part, ranks = work.config, work.part, work.ranks
    check_log(config.log)
    check_engine(config.deepspeed, has_teacher=False, has_gpu=ranks.device.type == "cuda")
    portions = portions_of(
        config.train.global_batch,
        micro_batch=config.train.micro_batch,
        world_size=ranks.world_size,
    )
    if portions.micro_batch % bag_size(config, work.target):
        raise ValueError(
            f"train.global_batch: each of {ranks.world_size} ranks takes {portions.micro_batch} "
            f"crops at a time, which are no whole scans of {config.reading.crops_per_scan} crops "
            "(reading.crops_per_scan); change one of them"
        )
    check_folder(config.out)
    beginning = work.start.beginning()
    state = open_run(
        part.folder,
        recipe=config,
        shards_digest=content_of(work),
        begun=beginning.summary if beginning else None,
        resume=config.resume,
        say=lambda text: print(text, flush=True),
        result=work.result,
        free=_FREE,
    )
    if beginning and not state.finished:
        keep_beginning(part.folder, beginning)
    return Plan(state, portions)


def content_of(work: Finetuning) -> str:
    """Digest of scans, labels, and who is learnt from."""
    part = work.part
    rows = [part.task.subjects[row] for row in (*part.train, *part.val)]
    return digest([work.scans.reader.dataset["digest"], part.task.digest, rows])


def tune(work: Finetuning, *, plan: Plan, request: StopRequest, heartbeat: Heartbeat) -> Finetune:
    """Train from where the run stands; the method comes back with its best weights.

    Returns:
        On every rank.
    """
    config, part, ranks, state = work.config, work.part, work.ranks, plan.state
    method = work.method(resumed=state.checkpoint is not None)
    from_rank_zero(lambda: announce(work, plan=plan, method=method))
    if state.checkpoint is None:
        names = [part.task.subjects[row] for row in part.train]
        standardise_head(
            method.to(ranks.device),
            names,
            scans=work.scans,
            ranks=ranks,
            precision=config.deepspeed.precision,
            alive=lambda: heartbeat.beat(state.step, "start"),
        )
    keeps = ranks.rank == 0
    job = Job(
        work=work,
        config=config,
        folder=part.folder,
        portions=plan.portions,
        shards_digest=content_of(work),
        crops=work.crops,
        tokens_per_scan=tokens_of(work),
        ranks=ranks,
        corpus=work.corpus(),
        max_damaged=config.reading.max_damaged,
        timeout_s=config.reading.timeout_s,
        request=request,
        heartbeat=heartbeat,
        log=open_log(config, folder=part.folder, start=state.step) if keeps else None,
        writer=open_writer(config, folder=part.folder) if keeps else None,
    )
    trained = train(job, method=method, state=state)
    assert isinstance(trained, Finetune)
    if job.writer is not None:
        job.writer.wait()
    best = from_rank_zero(lambda: best_of(work))
    if best is not None:
        restore_best(trained, best)
    if job.log is not None:
        job.log.close()
    return trained


def best_of(work: Finetuning) -> Path | None:
    """Where the best weights are; None where no look found any, and the last ones stay."""
    last = newest_checkpoint(work.part.folder / CHECKPOINTS, say=print)
    standing = standing_of(last)
    return best_path(work.part.folder, standing.best_step) if standing.best_step else None


def chosen_step(work: Finetuning) -> int:
    """Updates after which the weights were as they are kept."""
    last = newest_checkpoint(work.part.folder / CHECKPOINTS, say=print)
    if last is None:
        return work.config.train.steps
    return standing_of(last).best_step or int(read_state(last)["step"])


def tokens_of(work: Finetuning) -> int:
    """Patches of a crop."""
    shape = work.start.preprocessing.crop_shape
    return math.prod(patch_grid(shape, work.start.vit_config.patch_size))


def announce(work: Finetuning, *, plan: Plan, method: Finetune) -> None:
    """Say what is about to run, once it is known to fit the disk."""
    config, part, ranks, state = work.config, work.part, work.ranks, plan.state
    check_space(config.out, method=method, keep=config.checkpoint.keep + 1)
    trained = sum(each.numel() for each in method.parameters() if each.requires_grad)
    whole = sum(each.numel() for each in method.parameters())
    print(
        f"\npart    {part.title}: {len(part.train)} subjects train, {len(part.val)} decide"
        + (f", {len(part.held_out)} are held out" if part.fold is not None else "")
        + f"\nmodel   {work.target.kind}, tune.mode {config.tune.mode}: {trained / 1e6:.2f} M of "
        f"{whole / 1e6:.2f} M parameters are trained, from {work.start.name}\n"
        f"job     {config.train.steps} steps of {config.train.global_batch} crops = "
        f"{ranks.world_size} ranks x {plan.portions.micro_batch} x {plan.portions.accumulation}, "
        f"{device_name(ranks.device)}, {config.deepspeed.precision}, ZeRO stage "
        f"{config.deepspeed.stage}, "
        + (f"going on from step {state.step}" if state.step else "from the beginning"),
        flush=True,
    )
    if ranks.device.type == "cpu" and (told := compilation_ahead()):
        print(told, flush=True)
