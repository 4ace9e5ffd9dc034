"""Fine-tune a backbone on labelled scans, or train its network from scratch, with DeepSpeed.

    python -m foundation.finetune recipes/finetune/template.yaml
    python -m foundation.launch 2 foundation.finetune RECIPE [section.field=value ...]

Each task of the recipe, at each fraction of its training subjects, is a run with checkpoints, a log
and at the end a model: ``runs/NAME/TASK/model``, which ``foundation.predict`` applies to raw scans.
Validation subjects choose the step that is kept; test subjects are never read. Started again, it
goes on where it stopped; finished, it says so. SIGTERM, SIGUSR1 and Ctrl-C save first, and leave
with code 75.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from foundation.finetuning.checks import check_key, check_monitor
from foundation.finetuning.data import LabelledScans, build_scans, open_scans, recipe_of
from foundation.finetuning.parts import Part, parts_of
from foundation.finetuning.publishing import (
    forget_best,
    publish_fold,
    publish_model,
    read_facts,
    score_held_out,
)
from foundation.finetuning.recipe import FinetuneConfig, part_name
from foundation.finetuning.start import Start, find_start, first_method
from foundation.finetuning.target import target_of
from foundation.finetuning.work import MODEL, Finetuning, Plan, plan_of, tune
from foundation.metrics.by_name import METRICS
from foundation.running.job import check_folder
from foundation.running.ranks import (
    Ranks,
    from_rank_zero,
    gather_from_ranks,
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
from recipes.command import STOPPED
from shards.files import only_one
from shards.pseudonym import load_key


class Run(NamedTuple):
    """A part that is about to be trained."""

    work: Finetuning
    plan: Plan
    folds: Sequence[Part]
    """that a model under cross-validation is told by"""


def main(config: FinetuneConfig) -> None:
    """Fine-tune every part of the recipe, on this rank of however many there are."""
    with StopRequest().listen() as request, ExitStack() as locks:
        ranks = join_ranks(timeout_s=config.train.timeout_s)
        try:
            runs = prepare(config, ranks=ranks, locks=locks)
            for run in runs:
                leave_if_asked(request)
                with losing_a_rank_is_an_error(run.work.part.folder):
                    finetune(run, request=request)
            from_rank_zero(lambda: summarise(runs))
        finally:
            leave_ranks()


def prepare(config: FinetuneConfig, *, ranks: Ranks, locks: ExitStack) -> list[Run]:
    """Check everything, build the shards and open every folder, before the first run begins."""
    from_rank_zero(lambda: announce(config))
    start = from_rank_zero(lambda: find_start(config, say=True))
    tasks = from_rank_zero(lambda: load_tasks(config, start=start))
    from_rank_zero(lambda: lock(config, tasks, locks=locks))
    recipes = [recipe_of(config, task, preprocessing=start.contract(task)) for task in tasks]
    keys = patiently_from_rank_zero(
        lambda: [build_scans(*each) for each in zip(recipes, tasks, strict=True)]
    )
    folders = [Path(each.out) for each in recipes]
    scans = open_all(folders, tasks, keys)
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


def lock(config: FinetuneConfig, tasks: Sequence[Task], *, locks: ExitStack) -> None:
    """Keep others off the folders of this command until it ends.

    Raises:
        ValueError: Another command is in one of them.
    """
    check_folder(config.out)
    for task in tasks:
        for fraction in config.fractions:
            folder = config.folder / part_name(task.card.name, fraction)
            file = folder.with_name(f".{folder.name}.lock")
            locks.enter_context(only_one(file, doing=f"fine-tuning {folder}"))


def leave_if_asked(request: StopRequest) -> None:
    """End between two runs where any rank was asked to: what is done is on the disk."""
    if not any(gather_from_ranks(request.asked is not None)):
        return
    from_rank_zero(
        lambda: print("stopped between two runs; the same command goes on from there", flush=True)
    )
    sys.exit(STOPPED)


def open_all(
    folders: Sequence[Path], tasks: Sequence[Task], keys: Sequence[Collection[str]]
) -> list[LabelledScans]:
    """The shards of every task, on every rank; what is wrong with them rank 0 tells."""
    opened: list[LabelledScans] = []

    def open_them() -> None:
        for folder, task, wanted in zip(folders, tasks, keys, strict=True):
            opened.append(open_scans(folder, task, keys=wanted))

    from_rank_zero(open_them)
    if not opened:
        open_them()
    return opened


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
    check_key(config)
    key = load_key(config.pseudonym_key)
    tasks = [
        load_task(path, data_root=config.data_root, key=key, needs_test=False)
        for path in config.tasks
    ]
    names = [task.card.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TaskError(f"tasks: two cards are named {twice!r}; a name stands once")
    for task in tasks:
        for fraction in config.fractions:
            parts = parts_of(config, task, fraction=fraction)
            target = target_of(task, parts[-1].train)
            first_method(config, parts[-1], start=start, target=target, resumed=True)
            for each in parts:
                check_monitor(config, each)
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
    works = [
        Finetuning(config, part, start, target_of(task, part.train), scans, folder, ranks)
        for part in parts
    ]
    # The model's folder first: where it makes room for another recipe's, those of folds go with it.
    plans = from_rank_zero(lambda: [plan_of(work) for work in reversed(works)])[::-1]
    for part, work, plan in zip(parts, works, plans, strict=True):
        yield Run(work, plan, parts[:-1] if part.fold is None else ())


def finetune(run: Run, *, request: StopRequest) -> None:
    """One run, from where it stands to its result."""
    work, plan = run.work, run.plan
    part, ranks = work.part, work.ranks
    if plan.state.finished:
        from_rank_zero(lambda: say_finished(work))
        return
    with Heartbeat(
        part.folder,
        rank=ranks.rank,
        world_size=ranks.world_size,
        step=plan.state.step,
        stall_s=work.config.safety.stall_s,
    ) as heartbeat:
        method = tune(work, plan=plan, request=request, heartbeat=heartbeat)
        scored = score_held_out(
            work, method, alive=lambda: heartbeat.beat(work.config.train.steps, "health")
        )
        if part.fold is not None:
            from_rank_zero(lambda: publish_fold(work, scored))
        else:
            from_rank_zero(lambda: publish_model(work, method, scored=scored, folds=run.folds))


def say_finished(work: Finetuning) -> None:
    """And remove what a process left that died just after the end."""
    print(f"up to date: {work.part.folder / work.result}", flush=True)
    forget_best(work.part.folder)


def summarise(runs: Sequence[Run]) -> None:
    """A line for each model: where it is, and how good on subjects that it has not learnt from."""
    print()
    for folder in [run.work.part.folder for run in runs if run.work.part.fold is None]:
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
