"""The index beside each tar: where every member lies, its checksums, and the sample's record.

A reader opens tars by this file alone: offset, size and SHA-256 of each member, xxh3-64 of each
compressed chunk of a volume.
"""

import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.load import digest
from shards.codec import Checksums, ChunkChecksum, checksums
from shards.files import sha256_of

SCHEMA_VERSION = 1
DATASET = "dataset.json"
LEDGER = "ledger.jsonl"
CONTENT = frozenset(
    {"shards", "num_samples", "num_subjects", "sources", "modalities", "spacing_mm", "subjects"}
)
ENTRY = frozenset({"file", "sha256", "size_bytes", "num_samples", "index_sha256"})
VOLUME = "volume.b2nd"
RECORD = "scan.json"


class DamagedShard(ValueError):
    """Bytes that are not those that were written; the message names shard, key and offset."""


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its first byte's place, its length in bytes, its SHA-256."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Sample:
    """One scan of a shard. ``statistics`` and ``foreground_box`` as in ``shards.intensity``."""

    key: str
    shard: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    modality: str
    slope: float
    intercept: float
    statistics: Mapping[str, float]
    foreground_box: tuple[tuple[int, int], ...]
    subject: str
    source: str
    split: str | None
    source_digest: str
    members: Mapping[str, Member]
    checksums: Checksums


def index_path(tar: Path) -> Path:
    """``shard-000000.tar`` -> ``shard-000000.index.json``."""
    return tar.with_suffix(".index.json")


def index_of(tar: Path) -> dict[str, Any]:
    """The index of a finished tar, from its bytes on the disk."""
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(tar) as archive, tar.open("rb") as file:
        for info in archive:
            key, _, name = info.name.partition(".")
            file.seek(info.offset_data)
            content = file.read(info.size)
            member: dict[str, Any] = {
                "offset": info.offset_data,
                "size": info.size,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            sample = samples.setdefault(key, {"key": key, "members": {}})
            sample["members"][name] = member
            if name == VOLUME:
                sample["checksums"] = checksums(content)._asdict()
            if name == RECORD:
                sample["scan"] = json.loads(content)
    return {
        "schema_version": SCHEMA_VERSION,
        "shard": tar.name,
        "size_bytes": tar.stat().st_size,
        "sha256": sha256_of(tar),
        "samples": list(samples.values()),
    }


def read_dataset(folder: Path) -> dict[str, Any]:
    """``dataset.json`` of a folder of shards.

    Raises:
        ValueError: There is none, or it is of another version.
        DamagedShard: It is not what was written.
    """
    path = folder / DATASET
    if not path.is_file():
        raise ValueError(f"{folder}: no shards here; build them with python -m shards.build RECIPE")
    try:
        dataset: dict[str, Any] = json.loads(path.read_bytes())
        version = dataset["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise DamagedShard(f"{path}: damaged, not the JSON that was written; build again") from None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}; build again"
        )
    missing = sorted(CONTENT - set(dataset))
    missing += [name for shard in dataset.get("shards", []) for name in sorted(ENTRY - set(shard))]
    if missing:
        raise DamagedShard(f"{path}: damaged, it has no {missing[0]!r}; build again")
    content = {name: value for name, value in dataset.items() if name != "digest"}
    if digest(content) != dataset["digest"]:
        raise DamagedShard(f"{path}: damaged, its digest is not that of its content; build again")
    return dataset


def read_index(folder: Path, shard: Mapping[str, Any]) -> list[Sample]:
    """The samples of one entry of ``dataset.json``.

    Raises:
        DamagedShard: The index is missing or not what was written.
    """
    path = index_path(folder / shard["file"])
    if not path.is_file():
        raise DamagedShard(f"{path}: missing; build the shards again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != shard["index_sha256"]:
        raise DamagedShard(f"{path}: damaged, its checksum differs; build the shards again")
    return [_sample(shard["file"], entry) for entry in json.loads(content)["samples"]]


def _sample(shard: str, entry: Mapping[str, Any]) -> Sample:
    scan, sums = entry["scan"], entry["checksums"]
    return Sample(
        key=entry["key"],
        shard=shard,
        shape=tuple(scan["shape"]),
        spacing_mm=tuple(scan["spacing_mm"]),
        modality=scan["modality"],
        slope=scan["slope"],
        intercept=scan["intercept"],
        statistics=scan["statistics"],
        foreground_box=tuple((first, last) for first, last in scan["foreground_box"]),
        subject=scan["subject"],
        source=scan["source"],
        split=scan["split"],
        source_digest=scan["source_digest"],
        members={name: Member(**member) for name, member in entry["members"].items()},
        checksums=Checksums(
            shape=tuple(sums["shape"]),
            chunk_shape=tuple(sums["chunk_shape"]),
            table=sums["table"],
            chunks=[ChunkChecksum(*chunk) for chunk in sums["chunks"]],
        ),
    )
