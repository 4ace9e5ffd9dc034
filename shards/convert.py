"""One input into samples: read, resample, measure, quantise, compress. Runs in a worker."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.codec import checksums, encode, quantise, source_digest
from shards.dicom_series import read_series
from shards.index import RECORD, VOLUME, sequence_member
from shards.intensity import foreground_box, intensity_statistics
from shards.scan import Scan, ScanError, read_scans, resample
from shards.sources import Input, SourceConfig
from shards.write import PackedSample


@dataclass(frozen=True)
class Task:
    """An input with what its samples will say of it; ``subject`` is the pseudonym."""

    item: Input
    config: SourceConfig
    source: str
    subject: str


@dataclass(frozen=True)
class Converted:
    """A sample, ready to be written; or, with ``reason`` set, a scan that was rejected."""

    sample: PackedSample | None
    reason: str | None = None


def convert(task: Task) -> list[Converted]:
    """Every scan of an input; one that cannot be used is a reason, never an exception."""
    found: list[Converted] = []
    try:
        for scan in _read(task):
            found.append(Converted(_sample(task, scan)))
    except ScanError as error:
        found.append(Converted(None, reason=str(error)))
    return found


def _read(task: Task) -> Iterator[Scan]:
    item, config = task.item, task.config
    if item.files:
        return read_series(item.files, modality=item.modality, policy=config.policy)
    return read_scans(item.where, modality=item.modality, policy=config.policy)


def _sample(task: Task, scan: Scan) -> PackedSample:
    _check_spacing(scan, task.config)
    digest = source_digest(scan)
    if task.config.spacing_mm is not None:
        scan = resample(scan, task.config.spacing_mm)
    stored = quantise(scan.voxels)
    statistics = intensity_statistics(scan.voxels)
    key = f"{task.source}-{task.subject}-{digest[:12]}"
    record: dict[str, Any] = {
        "key": key,
        "shape": list(scan.voxels.shape),
        "spacing_mm": [float(edge) for edge in scan.spacing_mm],
        "foreground_box": foreground_box(
            scan.voxels, modality=scan.modality, statistics=statistics
        ),
        "subject": task.subject,
        "source": task.source,
        "split": task.item.split,
        "visit_day": None,
        "values": {},
        "sequences": [
            {
                "name": VOLUME,
                "modality": scan.modality,
                "slope": stored.slope,
                "intercept": stored.intercept,
                "statistics": statistics._asdict(),
                "source_digest": digest,
                "perceptual_hash": "",
                "quality": 1.0,
                "metadata": dict(scan.metadata),
            }
        ],
        "masks": [],
    }
    return _packed(key, record, volumes={sequence_member(VOLUME): stored.voxels})


def _packed(
    key: str, record: Mapping[str, Any], *, volumes: Mapping[str, np.ndarray]
) -> PackedSample:
    frames = {name: encode(np.ascontiguousarray(voxels)) for name, voxels in volumes.items()}
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    members = {**frames, RECORD: text}
    return PackedSample(
        key=key,
        record=record,
        members=members,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        checksums={name: checksums(frame) for name, frame in frames.items()},
    )


def _check_spacing(scan: Scan, config: SourceConfig) -> None:
    if config.max_spacing_mm is not None and max(scan.spacing_mm) > config.max_spacing_mm:
        spacing = ", ".join(f"{edge:.2f}" for edge in scan.spacing_mm)
        raise ScanError(
            f"spacing is ({spacing}) mm, the recipe allows {config.max_spacing_mm:g};"
            " raise max_spacing_mm to take it"
        )
