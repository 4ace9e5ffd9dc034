"""Turn scans into shards.

    python -m shards.build recipes/shards/demo.yaml [section.field=value ...]

Same inputs, recipe and pseudonym key: the same bytes, with any number of workers. The folder
appears when it is complete; what stood there stays until then.
"""

import errno
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import Field

from recipes.command import run_recipe
from recipes.load import Section, digest
from shards.convert import Converted, Task, convert
from shards.executors import Executor, Pool, Serial
from shards.files import (
    discard_draft,
    fresh_folder,
    publish_folder,
    recover_folder,
    sha256_of,
    write_json,
    write_text,
)
from shards.index import DATASET, LEDGER, SCHEMA_VERSION, index_path, read_dataset
from shards.ledger import Entry, counts, reasons, write_ledger
from shards.pseudonym import load_key, pseudonym
from shards.sources import Source, SourceConfig, fingerprint, read_source, source_files
from shards.write import ShardWriter

STAMP = ".inputs"


class BuildError(ValueError):
    """A build that cannot go on; what stood in its place is unchanged."""


class BuildConfig(Section):
    """Of ``recipes/shards/NAME.yaml``. Paths below ``data_root`` unless they are recipes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    out: Path
    data_root: Path
    pseudonym_key: Path = Path("data/pseudonym.key")
    sources: list[SourceConfig] = Field(min_length=1)
    shard_size_mb: float = Field(default=512, gt=0)
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    workers: int = Field(default=2, ge=1)

    @property
    def digest(self) -> str:
        """Of what decides the result: not where it lies, nor how many workers make it."""
        elsewhere = {"out", "data_root", "pseudonym_key", "workers"}
        return digest(self.model_dump(mode="json", exclude=elsewhere))


def main(config: BuildConfig) -> None:
    """Build the shards unless they are up to date."""
    print(f"reads {config.data_root}, writes {config.out}", flush=True)
    recover_folder(config.out)
    if config.out.exists() and not (config.out / DATASET).is_file():
        raise BuildError(f"{config.out}: not a folder of shards; name another with out=...")
    key = load_key(config.pseudonym_key)
    stamp = _stamp(config, key)
    if _is_current(config.out, stamp):
        print(f"up to date: {config.out}")
        return
    sources = [read_source(source, data_root=config.data_root) for source in config.sources]
    _check_names(sources)
    try:
        _build(config, sources=sources, key=key, stamp=stamp)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise BuildError(
            f"{config.out}: cannot be written: {error.strerror or error}{full}; what stood there is"
            " unchanged"
        ) from None
    finally:
        discard_draft(config.out)
    print(f"shards: {config.out}")


def _build(config: BuildConfig, *, sources: Sequence[Source], key: bytes, stamp: str) -> None:
    tasks = [
        Task(item, source.config, source.name, pseudonym(key, source.name, item.subject))
        for source in sources
        for item in source.inputs
    ]
    folder = fresh_folder(config.out)
    shards: list[dict[str, Any]] = []
    writer = ShardWriter(
        folder,
        shard_size_mb=config.shard_size_mb,
        finished=lambda _, entry: shards.append(entry),
    )
    try:
        entries, records = _write_samples(config, tasks=tasks, writer=writer)
        writer.close()
    finally:
        writer.discard()
    entries += [
        Entry(source.name, len(source.inputs) + place, "skipped", reason=reason)
        for source in sources
        for place, reason in enumerate(source.skipped)
    ]
    if not records:
        raise BuildError(f"none of {len(tasks)} scans was accepted: {_most_frequent(entries)}")
    write_ledger(folder / LEDGER, entries)
    content = _content(config, sources=sources, records=records, entries=entries)
    content |= {
        "shards": shards,
        "ledger": {**counts(entries), "sha256": sha256_of(folder / LEDGER)},
    }
    write_json(folder / DATASET, {**content, "digest": digest(content)})
    write_text(folder / STAMP, stamp + "\n")
    publish_folder(folder, config.out)
    _report(entries, content)


def _write_samples(
    config: BuildConfig, *, tasks: Sequence[Task], writer: ShardWriter
) -> tuple[list[Entry], list[Mapping[str, Any]]]:
    """Convert and write in order; a scan whose voxels were met before is rejected as its copy."""
    entries: list[Entry] = []
    records: list[Mapping[str, Any]] = []
    seen: dict[str, str] = {}
    executor: Executor = Serial() if config.workers == 1 else Pool(config.workers)
    results = executor.map(convert, tasks)
    for task, found in zip(tasks, _progress(results, len(tasks)), strict=True):
        place = (task.source, task.item.position)
        for one in found:
            reason, sample = one.reason, one.sample
            source_digest = sample.record["sequences"][0]["source_digest"] if sample else None
            if source_digest in seen:
                reason = f"duplicate of {seen[source_digest]}"
            if sample is not None and reason is None:
                writer.add(sample)
                seen[sample.record["sequences"][0]["source_digest"]] = sample.key
                records.append(sample.record)
                entries.append(Entry(*place, "accepted", task.subject, key=sample.key))
                continue
            entries.append(Entry(*place, "rejected", task.subject, reason=reason))
            if len(entries) - len(records) > config.max_rejected_fraction * len(tasks):
                _stop(config, entries, num_scans=len(tasks))
    return entries, records


def _stop(config: BuildConfig, entries: Sequence[Entry], *, num_scans: int) -> NoReturn:
    """Leave the ledger so far beside the folder and say what went wrong most often."""
    ledger = config.out.with_name(f"{config.out.name}.{LEDGER}")
    write_ledger(ledger, entries)
    raise BuildError(
        f"{counts(entries)['rejected']} of {num_scans} scans are rejected, the recipe allows a"
        f" fraction of {config.max_rejected_fraction:g}; most often: {_most_frequent(entries)};"
        f" mend the input or raise max_rejected_fraction; the ledger so far is {ledger}"
    )


def _content(
    config: BuildConfig,
    *,
    sources: Sequence[Source],
    records: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
) -> dict[str, Any]:
    """What ``dataset.json`` says of the scans."""
    targets = {source.config.spacing_mm for source in sources}
    accepted = Counter(record["source"] for record in records)
    subjects = sorted({record["subject"] for record in records})
    outcome = [[entry.source, entry.key or entry.reason] for entry in entries]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "num_samples": len(records),
        "num_subjects": len(subjects),
        "sources": [
            {
                "name": source.name,
                "licence": source.licence,
                "source": source.source,
                "num_samples": accepted[source.name],
            }
            for source in sources
        ],
        "modalities": dict(
            Counter(one["modality"] for record in records for one in record["sequences"])
        ),
        "spacing_mm": targets.pop() if len(targets) == 1 else None,
        "recipe_digest": config.digest,
        "inputs_digest": digest(outcome),
        "subjects": subjects,
    }


def _check_names(sources: Sequence[Source]) -> None:
    """Two sources of one name would share pseudonyms and positions."""
    twice = [name for name, times in Counter(one.name for one in sources).items() if times > 1]
    if twice:
        raise BuildError(f"two sources are named {twice[0]!r}; a cohort is listed once")


def _stamp(config: BuildConfig, key: bytes) -> str:
    """What a build depends on, judged by names, sizes and times: no scan is opened."""
    files = [
        path
        for source in config.sources
        for path in source_files(source, data_root=config.data_root)
    ]
    return digest([SCHEMA_VERSION, config.digest, fingerprint(files, key=key)])


def _is_current(out: Path, stamp: str) -> bool:
    try:
        if (out / STAMP).read_text(encoding="utf-8").strip() != stamp:
            return False
        shards = read_dataset(out)["shards"]
        return all(
            (out / shard["file"]).stat().st_size == shard["size_bytes"]
            and index_path(out / shard["file"]).is_file()
            for shard in shards
        )
    except (OSError, ValueError):
        return False


def _progress(results: Iterable[list[Converted]], count: int) -> Iterable[list[Converted]]:
    from tqdm import tqdm

    return tqdm(results, total=count, desc="scans", unit="scan", mininterval=1.0)


def _report(entries: Sequence[Entry], content: dict[str, Any]) -> None:
    found = counts(entries)
    print(
        f"{len(entries)} inputs = {found['accepted']} accepted + {found['rejected']} rejected"
        f" + {found['skipped']} skipped (no scans); {content['num_subjects']} subjects"
    )
    for reason, times in reasons(entries):
        print(f"  rejected {times}: {reason}")


def _most_frequent(entries: Sequence[Entry]) -> str:
    reason, times = reasons(entries)[0]
    return f"{reason} ({times})"


if __name__ == "__main__":
    run_recipe(main, BuildConfig, doc=__doc__ or "")
