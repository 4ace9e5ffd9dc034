"""The index beside each tar: where every member lies, its checksums, and the sample's record.

A reader opens tars by this file alone: offset, size and SHA-256 of each member, xxh3-64 of each
compressed chunk of a volume.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.load import digest
from shards.codec import Checksums

if TYPE_CHECKING:
    from shards.storage.storage import Storage

SCHEMA_VERSION = 2
DATASET = "dataset.json"
LEDGER = "ledger.jsonl"
CONTENT = frozenset(
    {"shards", "num_samples", "num_subjects", "sources", "modalities", "spacing_mm", "subjects"}
)
ENTRY = frozenset({"file", "xxh3_128", "size_bytes", "num_samples", "index_sha256"})
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
    """One volume of a sample.

    Attributes:
        name: Of the sequence.
        modality, slope, intercept: Physical value = stored value * slope + intercept.
        statistics: As in ``shards.measure.intensity``, of physical values.
        source_digest: Of the scan as it was found; equal for copies.
        perceptual_hash: As in ``shards.measure.similar``.
        quality: As in ``shards.measure.quality``, in [0, 1].
        series: Pseudonym of the DICOM series, where there is one.
        metadata: Descriptions from the readers' allow-list.
    """

    name: str
    modality: str
    slope: float
    intercept: float
    statistics: Mapping[str, float]
    source_digest: str
    perceptual_hash: str
    quality: float
    series: str | None
    metadata: Mapping[str, str | float | bool]


@dataclass(frozen=True)
class Sample:
    """All of one subject and visit, on one grid.

    Attributes:
        foreground_box: As in ``shards.measure.intensity``, of the first sequence.
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


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """``scan.json``: the same record gives the same bytes."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def index_path(tar: Path) -> Path:
    """``shard-000000.tar`` -> ``shard-000000.index.json``."""
    return tar.with_suffix(".index.json")


def read_dataset(where: "Path | Storage") -> dict[str, Any]:
    """``dataset.json`` of a folder of shards.

    Raises:
        ValueError: There is none, or it is of another version.
        DamagedShard: It is not what was written.
    """
    path = f"{where}/{DATASET}"
    try:
        content = _read(where, DATASET)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{where}: no shards here; build them with python -m shards.build RECIPE"
        ) from None
    try:
        dataset: dict[str, Any] = json.loads(content)
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
    named = {name: value for name, value in dataset.items() if name != "digest"}
    if digest(named) != dataset["digest"]:
        raise DamagedShard(f"{path}: damaged, its digest is not that of its content; build again")
    return dataset


def read_index(where: "Path | Storage", shard: Mapping[str, Any]) -> list[Sample]:
    """The samples of one entry of ``dataset.json``.

    Raises:
        DamagedShard: The index is missing or not what was written.
    """
    return [
        sample_of(
            shard["file"],
            entry,
            checksums={name: Checksums.from_json(one) for name, one in entry["checksums"].items()},
        )
        for entry in read_entries(where, shard)
    ]


def read_entries(where: "Path | Storage", shard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As :func:`read_index`, each sample as it stands in the file; see :func:`sample_of`."""
    name = index_path(Path(shard["file"])).name
    try:
        content = _read(where, name)
    except FileNotFoundError:
        raise DamagedShard(f"{where}/{name}: missing; build the shards again") from None
    if hashlib.sha256(content).hexdigest() != shard["index_sha256"]:
        raise DamagedShard(f"{where}/{name}: damaged, its checksum differs; build the shards again")
    entries: list[dict[str, Any]] = json.loads(content)["samples"]
    return entries


def sample_of(
    shard: str, entry: Mapping[str, Any], *, checksums: Mapping[str, Checksums]
) -> Sample:
    """A sample of the tar ``shard`` from its entry in the index."""
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
        checksums=checksums,
    )


def _read(where: "Path | Storage", name: str) -> bytes:
    return (where / name).read_bytes() if isinstance(where, Path) else where.read_file(name)
