"""Write a shard again without some of its samples; what stays is copied byte for byte."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from shards.index import RECORD, DamagedShard, Sample
from shards.storage.storage import Storage
from shards.write import PackedSample, ShardWriter


def without_samples(
    shards: Sequence[dict[str, Any]],
    *,
    samples: Iterable[Sample],
    drop: Collection[str],
    storage: Storage,
    draft: Path,
    first_shard: int,
    deliver: Callable[[Path, dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """The entries of ``dataset.json`` after the samples ``drop`` are gone.

    A shard that held one of them is replaced, at its place in the list, by one with a new name:
    a reader of the old list finds the old file or none, never other bytes under the same name.

    Args:
        shards: Entries as they stand.
        samples: All samples of these shards.
        drop: Keys.
        storage: Reads the old shards.
        draft: Folder in which the new ones are written.
        first_shard: Number of the first new tar.
        deliver: Told of each new shard.

    Raises:
        DamagedShard: A sample that stays is not what was written.
    """
    by_shard: dict[str, list[Sample]] = {}
    for sample in samples:
        by_shard.setdefault(sample.shard, []).append(sample)
    found: list[dict[str, Any]] = []
    number = first_shard
    for entry in shards:
        held = by_shard.get(entry["file"], [])
        stay = [sample for sample in held if sample.key not in drop]
        if len(stay) == len(held):
            found.append(entry)
        elif stay:
            tar, made = _written(stay, storage=storage, draft=draft, number=number)
            deliver(tar, made)
            found.append(made)
            number += 1
    return found


def _written(
    samples: Sequence[Sample], *, storage: Storage, draft: Path, number: int
) -> tuple[Path, dict[str, Any]]:
    made: list[tuple[Path, dict[str, Any]]] = []
    writer = ShardWriter(
        draft,
        shard_size_mb=float("inf"),
        first=number,
        finished=lambda tar, entry: made.append((tar, entry)),
    )
    try:
        for sample in samples:
            writer.add(_packed(sample, storage))
        writer.close()
    finally:
        writer.discard()
    return made[0]


def _packed(sample: Sample, storage: Storage) -> PackedSample:
    members = {}
    for name, member in sample.members.items():
        content = bytes(storage.frame(sample.shard, member, [(0, member.size)]))
        if hashlib.sha256(content).hexdigest() != member.sha256:
            raise DamagedShard(
                f"{storage}: {sample.key}.{name} in {sample.shard} is damaged at or after byte"
                f" {member.offset}, so its shard cannot be written again; run python -m"
                " shards.verify, and build the folder again"
            )
        members[name] = content
    return PackedSample(
        key=sample.key,
        record=json.loads(members[RECORD]),
        members=members,
        sha256={name: member.sha256 for name, member in sample.members.items()},
        checksums=sample.checksums,
    )
