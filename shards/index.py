"""The index beside each tar: where every member lies, its checksums, and the sample's record.

A reader opens tars by this file alone: offset, size and SHA-256 of each member, xxh3-64 of each
compressed chunk of a volume.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.load import digest
from shards.codec import Checksums

SCHEMA_VERSION = 2
DATASET = "dataset.json"
LEDGER = "ledger.jsonl"
CONTENT = frozenset(
    {"shards", "num_samples", "num_subjects", "sources", "modalities", "spacing_mm", "subjects"}
)
ENTRY = frozenset({"file", "sha256", "size_bytes", "num_samples", "index_sha256"})
RECORD = "scan.json"
VOLUME = "volume"
"""The name of a plain sample's only sequence."""


class DamagedShard(ValueError):
    """Bytes that are not those that were written; the message names shard, key and offset."""


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its first byte's place, its length in bytes, its SHA-256."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredSequence:
    """One volume of a sample. ``statistics`` as in ``shards.intensity``; ``quality`` in [0, 1]."""

    name: str
    modality: str
    slope: float
    intercept: float
    statistics: Mapping[str, float]
    source_digest: str
    perceptual_hash: str
    quality: float
    metadata: Mapping[str, str | float | bool]


@dataclass(frozen=True)
class Sample:
    """All of one subject and visit, on one grid.

    Attributes:
        foreground_box: As in ``shards.intensity``, of the first sequence.
        subject: Pseudonym, 16 hex digits.
        visit_day: Days from a day that only the key knows, the same for all visits of a subject:
            differences between two visits of one subject are true, nothing else means anything.
        values: Metadata columns of a cohort that the recipe asked for.
        sequences: In the order of the recipe; a plain sample has one, named ``volume``.
        masks: Names of the label volumes on the same grid.
        members: By name within the sample: ``volume.b2nd``, ``lesion.mask.b2nd``, ``scan.json``.
        checksums: Of the members that are volumes.
    """

    key: str
    shard: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    foreground_box: tuple[tuple[int, int], ...]
    subject: str
    source: str
    split: str | None
    visit_day: int | None
    values: Mapping[str, str | int | float | None]
    sequences: Mapping[str, StoredSequence]
    masks: tuple[str, ...]
    members: Mapping[str, Member]
    checksums: Mapping[str, Checksums]


def sequence_member(name: str) -> str:
    """``t1w`` -> ``t1w.b2nd``."""
    return f"{name}.b2nd"


def mask_member(name: str) -> str:
    """``lesion`` -> ``lesion.mask.b2nd``."""
    return f"{name}.mask.b2nd"


def index_path(tar: Path) -> Path:
    """``shard-000000.tar`` -> ``shard-000000.index.json``."""
    return tar.with_suffix(".index.json")


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
    scan = entry["scan"]
    return Sample(
        key=entry["key"],
        shard=shard,
        shape=tuple(scan["shape"]),
        spacing_mm=tuple(scan["spacing_mm"]),
        foreground_box=tuple((first, last) for first, last in scan["foreground_box"]),
        subject=scan["subject"],
        source=scan["source"],
        split=scan["split"],
        visit_day=scan["visit_day"],
        values=scan["values"],
        sequences={one["name"]: StoredSequence(**one) for one in scan["sequences"]},
        masks=tuple(scan["masks"]),
        members={name: Member(**member) for name, member in entry["members"].items()},
        checksums={name: Checksums.from_json(sums) for name, sums in entry["checksums"].items()},
    )
