"""What a pretraining is about to do: checked by rank 0, and said, before it is built."""

from typing import Any, NamedTuple

from foundation.beginning.initial import find_beginning, keep_beginning
from foundation.engine import check_engine, compilation_ahead
from foundation.log import check_log
from foundation.methods import COMPARES_SAMPLES, HAS_TEACHER
from foundation.recipe import PretrainConfig
from foundation.running.job import (
    Portions,
    check_channels,
    check_folder,
    check_space,
    check_spacing,
    device_name,
    portions_of,
)
from foundation.running.ranks import Ranks
from foundation.running.runs import BACKBONE, RunState, keep_group, kept_group, open_run
from foundation.watching.pinned import PinnedScan, pinned_scans
from shards.streaming.corpus import Corpus, open_corpus
from shards.streaming.presence import check_shards
from shards.streaming.reading import folder_list


class Plan(NamedTuple):
    """What rank 0 found before anything heavy is built."""

    state: RunState
    portions: Portions
    shards_digest: str
    pinned: list[PinnedScan]
    initial_digest: str | None
    """of the weights to begin from; None where they are drawn"""


def make_plan(config: PretrainConfig, *, ranks: Ranks) -> Plan:
    """Check everything that can be known before the job, and open the run's folder."""
    check_log(config.log)
    check_engine(
        config.deepspeed,
        has_teacher=config.method_name in HAS_TEACHER,
        has_gpu=ranks.device.type == "cuda",
    )
    if kept_group(config.folder) is None:
        divide(config, ranks=ranks, group=None)  # refused before a folder is begun
    check_channels(config.vit.in_chans, sequences=config.reading.sequences)
    corpus = corpus_of(config)
    for folder, reader in zip(folder_list(config.shards), corpus.readers, strict=True):
        check_shards(folder.folder, dataset=reader.dataset)
        check_spacing(config.preprocessing.spacing_mm, dataset=reader.dataset, shards=str(reader))
    pinned = [] if config.deepspeed.stage == 3 else pinned_of(config, corpus)
    check_folder(config.out)
    beginning = find_beginning(config.init, vit_config=config.vit) if config.init else None
    announce_reading(corpus)
    print(f"writes  {config.folder}", flush=True)
    state = open_run(
        config.folder,
        recipe=config,
        shards_digest=corpus.digest,
        begun=beginning.summary if beginning else None,
        resume=config.resume,
        say=lambda text: print(text, flush=True),
    )
    portions = divide(config, ranks=ranks, group=state.group)
    if state.group is None and not state.finished:
        keep_group(config.folder, portions.micro_batch * ranks.world_size)
    if state.finished:
        print(f"up to date: {config.folder / BACKBONE}", flush=True)
    elif beginning:
        keep_beginning(config.folder, beginning)
    initial_digest = beginning.source.digest if beginning else None
    return Plan(state, portions, corpus.digest, pinned, initial_digest)


def divide(config: PretrainConfig, *, ranks: Ranks, group: int | None) -> Portions:
    """An update's scans over ranks; ``group`` is what a run in progress compares, or None."""
    return portions_of(
        config.train.global_batch,
        micro_batch=config.train.micro_batch,
        world_size=ranks.world_size,
        group=group if config.method_name in COMPARES_SAMPLES else None,
    )


def pinned_of(config: PretrainConfig, corpus: Corpus) -> list[PinnedScan]:
    """The scans that health is measured on; stage 3, which has no whole backbone, has none."""
    return pinned_scans(
        corpus, num_scans=config.health.num_scans, label=config.health.label, seed=config.seed
    )


def corpus_of(config: PretrainConfig) -> Corpus:
    """The shards that the recipe names."""
    return open_corpus(
        folder_list(config.shards), plan=config.plan, seed=config.seed, cache=config.reading.cache
    )


def announce_reading(corpus: Corpus) -> None:
    """Say what is read, and what of it never is."""
    for reader in corpus.readers:
        dataset = reader.dataset
        told = f"{dataset['num_samples']} scans of {dataset['num_subjects']} subjects"
        print(f"reads   {reader}: {told}", flush=True)
    if corpus.excluded:
        told = "have none of reading.sequences and are left out"
        print(f"skips   {corpus.excluded} scans: they {told}", flush=True)


def announce(config: PretrainConfig, *, plan: Plan, ranks: Ranks, method: Any) -> None:
    """Say what is about to run, once it is known to fit the disk."""
    check_space(config.out, method=method, keep=config.checkpoint.keep)
    d, h, w = config.preprocessing.crop_shape
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    kept = sum(p.numel() for p in method.backbone.parameters())
    train, begin = config.train, plan.state.step
    print(
        f"model   {config.method_name}, {trained / 1e6:.2f} M trained parameters, backbone "
        f"{kept / 1e6:.2f} M, {config.tokens_per_scan} tokens a crop of {d} x {h} x {w}\n"
        f"job     {train.steps} steps of {train.global_batch} scans = {ranks.world_size} ranks x "
        f"{plan.portions.micro_batch} x {plan.portions.accumulation}, {device_name(ranks.device)}, "
        f"{config.deepspeed.precision}, ZeRO stage {config.deepspeed.stage}, "
        + (f"going on from step {begin}" if begin else "from the beginning"),
        flush=True,
    )
    if ranks.device.type == "cpu" and (told := compilation_ahead()):
        print(told, flush=True)
