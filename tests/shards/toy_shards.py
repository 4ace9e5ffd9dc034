"""A small folder of shards, written without the builder: what lies in it is what the test says."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.load import digest
from shards.codec import checksums, encode
from shards.files import write_json
from shards.index import DATASET, RECORD, SCHEMA_VERSION, VOLUME, sequence_member
from shards.write import PackedSample, ShardWriter


def write_shards(
    folder: Path, volumes: Sequence[np.ndarray], *, shard_size_mb: float
) -> dict[str, Any]:
    """One plain sample ``toy-N`` of each (D, H, W) int16 volume; returns ``dataset.json``."""
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    writer = ShardWriter(
        folder, shard_size_mb=shard_size_mb, finished=lambda _, entry: entries.append(entry)
    )
    for number, volume in enumerate(volumes):
        writer.add(_packed(f"toy-{number}", volume))
    writer.close()
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "shards": entries,
        "num_samples": len(volumes),
        "num_subjects": len(volumes),
        "sources": [],
        "modalities": {"CT": len(volumes)},
        "spacing_mm": [3.0, 1.0, 2.0],
        "subjects": [],
    }
    dataset = {**content, "digest": digest(content)}
    write_json(folder / DATASET, dataset)
    return dataset


def noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) int16 that hardly compresses."""
    return np.random.default_rng(seed).normal(0, 60, shape).astype(np.int16)


def _packed(key: str, volume: np.ndarray) -> PackedSample:
    record = {
        "key": key,
        "shape": list(volume.shape),
        "spacing_mm": [3.0, 1.0, 2.0],
        "foreground_box": [[0, edge] for edge in volume.shape],
        "subject": hashlib.sha256(key.encode()).hexdigest()[:16],
        "source": "toy",
        "split": None,
        "visit_day": None,
        "values": {},
        "sequences": [
            {
                "name": VOLUME,
                "modality": "CT",
                "slope": 1.0,
                "intercept": 0.0,
                "statistics": {"minimum": float(volume.min())},
                "source_digest": "0" * 64,
                "perceptual_hash": "",
                "quality": 1.0,
                "series": None,
                "metadata": {},
            }
        ],
        "masks": [],
    }
    frame = encode(volume)
    members = {sequence_member(VOLUME): frame, RECORD: json.dumps(record).encode()}
    return PackedSample(
        key=key,
        record=record,
        members=members,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        checksums={sequence_member(VOLUME): checksums(frame)},
    )
