"""Fine-tune a backbone on labelled scans, or train its network from scratch, with DeepSpeed.

    python -m foundation.finetune recipes/finetune/demo.yaml
    python -m foundation.launch 2 foundation.finetune RECIPE [section.field=value ...]

Each task of the recipe, at each fraction of its training subjects, is a run with checkpoints, a log
and at the end a model: ``runs/NAME/TASK/model``, which ``foundation.predict`` applies to raw scans.
Validation subjects choose the step that is kept; test subjects are never read. Started again, it
goes on where it stopped; finished, it says so. SIGTERM, SIGUSR1 and Ctrl-C save first, and leave
with code 75.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from foundation.finetuning.data import LabelledScans, build_scans, open_scans
from foundation.finetuning.parts import Part, parts_of
from foundation.finetuning.publishing import (
    publish_fold,
    publish_model,
    read_facts,
    score_held_out,
)
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.start import Start, find_start, first_method
from foundation.finetuning.target import target_of
from foundation.finetuning.work import MODEL, Finetuning, plan_of, tune
from foundation.metrics.by_name import METRICS
from foundation.running.ranks import (
    Ranks,
    from_rank_zero,
    join_ranks,
    leave_ranks,
    losing_a_rank_is_an_error,
    patiently_from_rank_zero,
    run_on_ranks,
)
from foundation.running.stopping import StopRequest
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task, load_task
from foundation.watching.heartbeat import Heartbeat
from shards.pseudonym import load_key


class Run(NamedTuple):
    """A part that is about to be trained."""

    work: Finetuning
    folds: Sequence[Part]
    """that a model under cross-validation is told by"""


def main(config: FinetuneConfig) -> None:
    """Fine-tune every part of the recipe, on this rank of however many there are."""
    with StopRequest().listen() as request:
        ranks = join_ranks(timeout_s=config.train.timeout_s)
        try:
            with losing_a_rank_is_an_error(config.folder):
                for run in prepare(config, ranks=ranks):
                    finetune(run, request=request)
                from_rank_zero(lambda: summarise(config))
        finally:
            leave_ranks()


def prepare(config: FinetuneConfig, *, ranks: Ranks) -> list[Run]:
    """Check everything, and build the shards, before the first run begins."""
    from_rank_zero(lambda: announce(config))
    start = from_rank_zero(lambda: find_start(config, say=True))
    tasks = from_rank_zero(lambda: load_tasks(config, start=start))
    folders = patiently_from_rank_zero(
        lambda: [build_scans(config, task, preprocessing=start.contract(task)) for task in tasks]
    )
    scans = [open_scans(folder, task) for folder, task in zip(folders, tasks, strict=True)]
    return [
        run
        for path, task, found, folder in zip(config.tasks, tasks, scans, folders, strict=True)
        for fraction in config.fractions
        for run in runs_of(
            config.model_copy(update={"tasks": (path,), "fractions": (fraction,)}),
            task,
            start=start,
            scans=found,
            folder=folder,
            ranks=ranks,
        )
    ]


def announce(config: FinetuneConfig) -> None:
    """Say what is read and written."""
    print(
        f"reads   {len(config.tasks)} tasks under {config.data_root}, "
        f"{config.backbone or 'no backbone'}\nwrites  {config.folder}, {config.shards}",
        flush=True,
    )


def load_tasks(config: FinetuneConfig, *, start: Start) -> list[Task]:
    """The labels of every task, each of which some network fits.

    Raises:
        TaskError: A card is listed twice, or nothing is trained for its kind.
    """
    key = load_key(config.pseudonym_key)
    tasks = [load_task(path, data_root=config.data_root, key=key) for path in config.tasks]
    names = [task.card.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TaskError(f"tasks: two cards are named {twice!r}; a name stands once")
    for task in tasks:
        for fraction in config.fractions:
            part = parts_of(config, task, fraction=fraction)[-1]
            target = target_of(task, part.train)
            first_method(config, part, start=start, target=target, resumed=True)
    return tasks


def runs_of(
    config: FinetuneConfig,
    task: Task,
    *,
    start: Start,
    scans: LabelledScans,
    folder: Path,
    ranks: Ranks,
) -> Iterator[Run]:
    """The runs of one task at one fraction, folds before the model that is told by them."""
    parts = parts_of(config, task, fraction=config.fractions[0])
    for part in parts:
        target = target_of(task, part.train)
        work = Finetuning(config, part, start, target, scans, folder, ranks)
        yield Run(work, parts[:-1] if part.fold is None else ())


def finetune(run: Run, *, request: StopRequest) -> None:
    """One run, from where it stands to its result."""
    work = run.work
    part, ranks = work.part, work.ranks
    plan = from_rank_zero(lambda: plan_of(work))
    if plan.state.finished:
        from_rank_zero(lambda: print(f"up to date: {part.folder / work.result}", flush=True))
        return
    with Heartbeat(
        part.folder,
        rank=ranks.rank,
        world_size=ranks.world_size,
        step=plan.state.step,
        stall_s=work.config.safety.stall_s,
    ) as heartbeat:
        method = tune(work, plan=plan, request=request, heartbeat=heartbeat)
        scored = score_held_out(work, method)
        if part.fold is not None:
            from_rank_zero(lambda: publish_fold(work, scored))
        else:
            from_rank_zero(lambda: publish_model(work, method, scored=scored, folds=run.folds))


def summarise(config: FinetuneConfig) -> None:
    """A line for each model: where it is, and how good on subjects that it has not learnt from."""
    print()
    for folder in sorted(path.parent for path in config.folder.glob(f"*/{MODEL}")):
        facts = read_facts(folder)
        metric, told = facts["metric"], facts["validation"]
        found = told["scores"].get(metric)
        score = "no score"
        if found is not None:
            interval = ""
            if found["low"] is not None:
                interval = f" [{found['low']:.3f}, {found['high']:.3f}]"
            score = f"{METRICS[metric].title} {found['value']:.3f}{interval}"
        print(
            f"model: {folder / MODEL} ({score}, {told['split']}, n {told['n']}; "
            f"{facts['num_train']} subjects trained, step {facts['best_step']})",
            flush=True,
        )


if __name__ == "__main__":
    assert __doc__
    run_on_ranks(main, FinetuneConfig, doc=__doc__)
