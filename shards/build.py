"""Turn scans into shards.

    python -m shards.build recipes/shards/demo.yaml [section.field=value ...]

Same inputs, recipe and pseudonym key: the same bytes, with any number of workers, on one machine,
on a dask cluster (dask=tcp://scheduler:8786) or in parts (part=0/16 ... part=15/16, then
part=merge). Killed at any moment, the same command goes on. New scans are added to a folder that
stands; what is there stays untouched, and readable until the new content takes its place.
"""

import errno
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic import Field

from recipes.command import run_recipe
from recipes.load import Section, digest, load
from shards.building.convert import Converted
from shards.building.dataset import describe
from shards.building.duplicates import DuplicateCheck
from shards.building.executors import Dask, Executor, Pool, Serial
from shards.building.journal import Journal
from shards.building.ledger import Entry, counts, write_ledger
from shards.building.packing import Packer
from shards.building.plan import Job, Plan, convert_job, make_plan
from shards.building.publication import Output, fresh_draft, open_output
from shards.building.report import most_frequent, progress, summary
from shards.building.rewrite import without_samples
from shards.building.spool import Spool, ThroughFiles
from shards.building.standing import Standing, read_standing, samples_of, write_stamp
from shards.building.workers import ordered_map
from shards.files import only_one, sha256_of
from shards.index import DATASET, LEDGER, SCHEMA_VERSION, read_index
from shards.measure.similar import DuplicatePolicy
from shards.pseudonym import load_key
from shards.sources.cohort import CohortConfig
from shards.sources.source import Source, SourceConfig, fingerprint, read_source, source_files
from shards.storage.places import MissingFile, Place, PlaceError
from shards.storage.storage import MappedFolder, open_storage

HANDOVER = ".handover"  # of a draft: scans on their way from the workers


class BuildError(ValueError):
    """A build that cannot go on; what stood in its place is unchanged."""


class BuildConfig(Section):
    """Of ``recipes/shards/NAME.yaml``. Paths below ``data_root`` unless they are recipes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    out: str = Field(description="folder, or its URL")
    data_root: str = Field(description="folder of all sources, or its URL")
    pseudonym_key: Path = Path("data/pseudonym.key")
    staging: Path = Field(
        default=Path("data/staging"), description="keeps unfinished shards of an out behind a URL"
    )
    sources: list[SourceConfig] = Field(min_length=1)
    duplicates: DuplicatePolicy = DuplicatePolicy()
    shard_size_mb: float = Field(default=512, gt=0)
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    workers: int = Field(default=2, ge=0, description="reading processes; 0 reads in this one")
    scan_timeout_s: float = Field(
        default=1800, gt=0, description="longest time of one scan in a worker"
    )
    dask: str | None = Field(default=None, description="address of a scheduler, instead of workers")
    part: str | None = Field(
        default=None,
        pattern=r"^(\d+/\d+|merge)$",
        description="i/N converts every N-th scan, merge makes the shards",
    )
    if_changed: Literal["refuse", "rebuild"] = Field(
        default="refuse", description="what to do with a folder that another recipe built"
    )

    @property
    def digest(self) -> str:
        """Of what decides the result: not where it lies, nor who makes it, nor when it stops."""
        kept = {"name", "duplicates", "shard_size_mb"}
        sources = []
        for source in self.sources:
            about = source.model_dump(mode="json", exclude={"cohort"})
            if not source.with_mask:
                del about["with_mask"]  # younger than most shards, whose digest it shall not change
            cohort = load(source.cohort, CohortConfig) if source.cohort else None
            sources.append([about, cohort and cohort.model_dump(mode="json")])
        return digest([self.model_dump(mode="json", include=kept), sources])


def main(config: BuildConfig) -> None:
    """Build the shards, or add to them, unless they are up to date."""
    print(f"reads {config.data_root}, writes {config.out}", flush=True)
    output = open_output(config.out, staging=config.staging, name=config.name)
    key = load_key(config.pseudonym_key)
    _check_key(config, output)
    if config.part not in (None, "merge"):
        _convert_part(config, output=output, key=key)
        return
    lock = output.draft.with_name(f"{output.draft.name}.lock")
    with only_one(lock, doing=f"building {output}"), _errors_that_leave_what_stood(output):
        output.recover()
        standing = _standing(config, output)
        stamp = _stamp(config, key)
        is_new = standing is None or standing.stamp != stamp
        if is_new:
            _build(config, output=output, key=key, standing=standing, stamp=stamp)
        if config.part == "merge":
            Spool(output.spool, plan="").remove_merged()
    print(f"shards: {output}" if is_new else f"up to date: {output}")


def _build(
    config: BuildConfig,
    *,
    output: Output,
    key: bytes,
    standing: Standing | None,
    stamp: str,
) -> None:
    sources = read_sources(config)
    plan = make_plan(sources, key=key, standing=standing)
    if plan.num_gone:
        print(f"{plan.num_gone} inputs of earlier builds are gone; their samples stay")
    packer = _pack(config, output=output, plan=plan, standing=standing)
    _ledger_so_far(output).unlink(missing_ok=True)  # of a try that was stopped
    entries = [*plan.kept, *packer.entries, *plan.unread]
    old = _without_stale(packer, output=output, plan=plan, standing=standing)
    shards = [*old.shards, *packer.shards]
    if not shards:
        raise BuildError(f"none of {len(plan.jobs)} scans was accepted: {most_frequent(entries)}")
    write_ledger(output.draft / LEDGER, entries)
    content = describe(
        about=_about(config, sources),
        samples=samples_of(shards, standing=standing, draft=output.draft),
        shards=shards,
        entries=entries,
        ledger_sha256=sha256_of(output.draft / LEDGER),
        history=_history(standing),
        withdrawn=standing.withdrawn if standing else [],
        next_shard=old.next_shard,
    )
    _stamp_draft(output, plan=plan, stamp=stamp, entries=packer.entries)
    if config.part == "merge":
        Spool(output.spool, plan="").mark_merged()
    output.publish(shards, content=content)
    print(summary(entries, num_subjects=content["num_subjects"]))


def _stamp_draft(output: Output, *, plan: Plan, stamp: str, entries: Sequence[Entry]) -> None:
    """What the next build compares with; it tries again what was gone for a while."""
    if vanished := plan.vanished(entries):
        print(f"{len(vanished)} inputs were gone when they were read; build again to try them")
        stamp = ""
    states = {name: state for name, state in plan.states.items() if name not in vanished}
    write_stamp(output.draft, stamp=stamp, states=states)


def _pack(config: BuildConfig, *, output: Output, plan: Plan, standing: Standing | None) -> Packer:
    """Convert what is left to do, into shards of the draft."""
    journal = Journal(output.draft, plan=plan.digest(config.digest))
    duplicates = DuplicateCheck(config.duplicates)
    stale = {one.key for some in plan.stale.values() for one in some}
    stay = [one for one in standing.samples if one.key not in stale] if standing else []
    for sample in stay:
        duplicates.add_stored(sample)
    packer = Packer(
        output.draft,
        journal=journal,
        duplicates=duplicates,
        stale=plan.stale,
        taken_keys={sample.key for sample in stay},
        shard_size_mb=config.shard_size_mb,
        first_shard=standing.dataset["next_shard"] if standing else 0,
        deliver=output.deliver,
    )
    if (progress := journal.resume(is_whole=output.is_whole)) is not None:
        storage = MappedFolder(output.draft)
        done = [one for entry in progress.shards for one in read_index(storage, entry)]
        packer.go_on(progress, done)
        if progress.dropped:
            told = "the first is damaged, or its line of the journal"
            print(f"{output.draft}: {progress.dropped} shards are made again: {told}", flush=True)
        print(f"going on: {progress.inputs} of {len(plan.jobs)} inputs are done", flush=True)
    else:
        fresh_draft(output)  # another plan's draft is of no use
        journal.begin()
    try:
        _take_all(config, output=output, packer=packer, plan=plan)
        packer.close()
    finally:
        packer.discard()
    return packer


def _take_all(config: BuildConfig, *, output: Output, packer: Packer, plan: Plan) -> None:
    executor = _executor(config, output, plan)
    allowed = config.max_rejected_fraction * plan.num_inputs - counts(plan.kept)["rejected"]
    jobs = plan.jobs[packer.inputs_done :]
    results = executor.map(convert_job, jobs, failed=_crashed)
    bar = progress(results, total=len(plan.jobs), done=packer.inputs_done)
    for job, found in zip(jobs, bar, strict=True):
        packer.take(job, found)
        if packer.num_rejected > allowed:
            _stop(config, output, [*plan.kept, *packer.entries], num_scans=plan.num_inputs)


def _crashed(job: Job, reason: str) -> list[Converted]:
    del job
    return [Converted(None, status="rejected", reason=reason)]


def _executor(config: BuildConfig, output: Output, plan: Plan) -> Executor:
    if config.part == "merge":
        spool = Spool(output.spool, plan=plan.digest(config.digest))
        spool.check_complete(plan.jobs)
        return spool
    if config.dask is not None:
        return Dask(config.dask)
    if config.workers == 0:
        return Serial()
    place = output.draft if config.part is None else output.spool
    number = (config.part or "").partition("/")[0]  # parts of one build share the folder
    pool = Pool(config.workers, timeout_s=config.scan_timeout_s)
    return ThroughFiles(pool, place / f"{HANDOVER}{number}")


def _convert_part(config: BuildConfig, *, output: Output, key: bytes) -> None:
    """Convert every N-th input into the folder that the merge reads."""
    assert config.part is not None
    part, of = map(int, config.part.split("/"))
    if part >= of:
        raise BuildError(f"part={config.part}: parts are numbered from 0 to {of - 1}")
    output.recover()
    plan = make_plan(read_sources(config), key=key, standing=_standing(config, output))
    if not plan.jobs:
        print(f"up to date: {output} holds every input")
        return
    spool = Spool(output.spool, plan=plan.digest(config.digest))
    spool.begin(of=of)
    jobs = [job for job in plan.jobs[part::of] if not spool.has(job)]
    executor = _executor(config, output, plan)
    results = executor.map(convert_job, jobs, failed=_crashed)
    for job, found in zip(jobs, progress(results, total=len(jobs)), strict=True):
        spool.store(job, found)
    print(f"part {part} of {of}: {len(plan.jobs[part::of])} inputs in {output.spool}")


class _Old(NamedTuple):
    shards: Sequence[dict[str, Any]]
    next_shard: int


def _without_stale(
    packer: Packer, *, output: Output, plan: Plan, standing: Standing | None
) -> _Old:
    """What stood, less the samples whose files changed."""
    first = (standing.dataset["next_shard"] if standing else 0) + len(packer.shards)
    if standing is None:
        return _Old([], first)
    stale = {one.key for some in plan.stale.values() for one in some} - packer.unchanged
    shards = without_samples(
        standing.dataset["shards"],
        samples=standing.samples,
        drop=stale,
        storage=open_storage(str(output.place)),
        draft=output.draft,
        first_shard=first,
        deliver=output.deliver,
    )
    stood = {entry["file"] for entry in standing.dataset["shards"]}
    return _Old(shards, first + sum(entry["file"] not in stood for entry in shards))


def _standing(config: BuildConfig, output: Output) -> Standing | None:
    """What is there already, if this recipe may add to it."""
    if not output.place.exists(DATASET):
        if not _is_empty(output.place):
            raise BuildError(f"{output}: not a folder of shards; name another with out=...")
        return None
    rebuild = config.if_changed == "rebuild"
    try:
        standing = read_standing(output.place)
    except ValueError as error:
        if rebuild:
            return None
        raise BuildError(f"{error}; if_changed=rebuild makes the folder anew") from None
    if standing.dataset["recipe_digest"] == config.digest:
        return standing
    if rebuild:
        # A folder is swapped as a whole; behind a URL new bytes never take a name that is in use.
        first = 0 if output.place.is_local else standing.dataset["next_shard"]
        return standing.emptied(next_shard=first)
    raise BuildError(
        f"{output}: built under another recipe, and shards of two recipes do not mix; name another"
        " folder with out=..., or set if_changed=rebuild to make it anew"
    )


def _is_empty(place: Place) -> bool:
    """Nothing is there, or shards of a build that has not come to its end."""
    try:
        return all(file.name.startswith("shard-") for file in place.files())
    except MissingFile:
        return True


def _history(standing: Standing | None) -> list[dict[str, Any]]:
    if standing is None:
        return []
    return [*standing.dataset["history"], standing.past("built")]


def _about(config: BuildConfig, sources: Sequence[Source]) -> dict[str, Any]:
    targets = {source.config.spacing_mm for source in sources}
    return {
        "name": config.name,
        "recipe_digest": config.digest,
        "spacing_mm": targets.pop() if len(targets) == 1 else None,
        "sources": [
            {"name": source.name, "licence": source.licence, "source": source.source}
            for source in sources
        ],
    }


def read_sources(config: BuildConfig) -> list[Source]:
    """What the recipe's sources hold today; of DICOM files the headers are read."""
    mapper = ordered_map(config.workers)
    sources = [
        read_source(source, data_root=config.data_root, mapper=mapper) for source in config.sources
    ]
    # Two sources of one name would share pseudonyms and positions.
    twice = [name for name, times in Counter(one.name for one in sources).items() if times > 1]
    if twice:
        raise BuildError(f"two sources are named {twice[0]!r}; a cohort is listed once")
    return sources


def _check_key(config: BuildConfig, output: Output) -> None:
    if config.pseudonym_key.resolve().is_relative_to(output.beside.resolve()):
        raise BuildError(
            f"pseudonym_key: {config.pseudonym_key} lies in the folder of shards, and whoever gets"
            " the shards must not get the key; keep it elsewhere"
        )


def _stamp(config: BuildConfig, key: bytes) -> str:
    """What a build depends on, judged by names, sizes and times: no scan is opened."""
    files = [
        path
        for source in config.sources
        for path in source_files(source, data_root=config.data_root)
    ]
    return digest([SCHEMA_VERSION, config.digest, fingerprint(files, key=key)])


@contextmanager
def _errors_that_leave_what_stood(output: Output) -> Iterator[None]:
    """Tell of a full disk in one line; what is finished of the draft waits for the next try."""
    try:
        yield
    except PlaceError:
        raise  # it says all there is to say
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise BuildError(
            f"{output}: cannot be written: {error.strerror or error}{full}; what stood there is"
            " unchanged, and the same command goes on from the last whole shard"
        ) from None
    finally:
        if not any(output.draft.glob("*.index.json")):  # nothing is finished
            shutil.rmtree(output.draft, ignore_errors=True)


def _ledger_so_far(output: Output) -> Path:
    return output.beside.with_name(f"{output.beside.name}.{LEDGER}")


def _stop(
    config: BuildConfig, output: Output, entries: Sequence[Entry], *, num_scans: int
) -> NoReturn:
    """Leave the ledger so far beside the folder and say what went wrong most often."""
    ledger = _ledger_so_far(output)
    write_ledger(ledger, entries)
    raise BuildError(
        f"{counts(entries)['rejected']} of {num_scans} scans are rejected, the recipe allows a"
        f" fraction of {config.max_rejected_fraction:g}; most often: {most_frequent(entries)};"
        f" mend the input or raise max_rejected_fraction; the ledger so far is {ledger}"
    )


if __name__ == "__main__":
    run_recipe(main, BuildConfig, doc=__doc__ or "")
