"""Folders of shards written without the builder: what lies in them is what a test says."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.load import digest
from shards.codec import checksums, encode
from shards.files import write_json
from shards.index import DATASET, RECORD, SCHEMA_VERSION, VOLUME, mask_member, sequence_member
from shards.measure.intensity import intensity_statistics
from shards.write import PackedSample, ShardWriter


@dataclass(frozen=True)
class Written:
    """A sample to write; every volume is (D, H, W) of one shape."""

    sequences: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    subject: str = "one"
    spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.5)
    box: Sequence[Sequence[int]] | None = None
    visit_day: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    modality: str = "CT"
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.sequences.values())).shape


def pseudonym(subject: str) -> str:
    """16 hex digits."""
    return hashlib.sha256(subject.encode()).hexdigest()[:16]


def ramp(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) int16 whose every voxel tells the sample and the place."""
    d, h, w = np.indices(shape)
    return (1000 * number + 150 * d + 12 * h + w).astype(np.int16)


def plain(count: int, *, shape: tuple[int, int, int] = (9, 14, 11), **about: Any) -> list[Written]:
    """Samples of one sequence and one subject each."""
    return [
        Written({VOLUME: ramp(number, shape)}, subject=f"subject-{number}", **about)
        for number in range(count)
    ]


def write_shards(
    folder: Path, samples: Sequence[Written], *, name: str = "toy", shard_size_mb: float = 0.02
) -> Path:
    """The samples, as ``NAME-000``, ``NAME-001``, ..., in several tars; returns the folder."""
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    writer = ShardWriter(
        folder, shard_size_mb=shard_size_mb, finished=lambda _, entry: entries.append(entry)
    )
    for number, sample in enumerate(samples):
        writer.add(_packed(f"{name}-{number:03d}", sample, source=name))
    writer.close()
    subjects = sorted({pseudonym(sample.subject) for sample in samples})
    about = {"name": name, "licence": "CC0-1.0", "source": "made up", "num_samples": len(samples)}
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "shards": entries,
        "num_samples": len(samples),
        "num_subjects": len(subjects),
        "sources": [about],
        "modalities": {"CT": len(samples)},
        "spacing_mm": None,
        "subjects": subjects,
    }
    write_json(folder / DATASET, {**content, "digest": digest(content)})
    return folder


def _packed(key: str, sample: Written, *, source: str) -> PackedSample:
    shape = sample.shape
    record = {
        "key": key,
        "shape": list(shape),
        "spacing_mm": list(sample.spacing_mm),
        "foreground_box": sample.box or [[0, size] for size in shape],
        "subject": pseudonym(sample.subject),
        "source": source,
        "split": "train",
        "visit_day": sample.visit_day,
        "values": dict(sample.values),
        "sequences": [_sequence(name, voxels, sample) for name, voxels in sample.sequences.items()],
        "masks": list(sample.masks),
    }
    frames = {sequence_member(name): encode(voxels) for name, voxels in sample.sequences.items()}
    frames |= {mask_member(name): encode(voxels) for name, voxels in sample.masks.items()}
    members = {**frames, RECORD: json.dumps(record).encode()}
    return PackedSample(
        key=key,
        record=record,
        members=members,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        checksums={name: checksums(frame) for name, frame in frames.items()},
    )


def _sequence(name: str, voxels: np.ndarray, sample: Written) -> dict[str, Any]:
    physical = voxels * np.float32(sample.slope) + np.float32(sample.intercept)
    return {
        "name": name,
        "modality": sample.modality,
        "slope": sample.slope,
        "intercept": sample.intercept,
        "statistics": intensity_statistics(physical)._asdict(),
        "source_digest": hashlib.sha256(voxels.tobytes()).hexdigest(),
        "perceptual_hash": "",
        "quality": 1.0,
        "series": None,
        "metadata": {},
    }
