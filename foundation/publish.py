"""The end of a pretraining: the backbone, where it comes from, and pictures."""

import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shards.stream import ShardReader

SCHEMA_VERSION = 1


def provenance_of(
    reader: ShardReader,
    *,
    name: str,
    method: str,
    steps: int,
    scans_seen: int,
    wall_s: float,
    world_size: int,
    device: str,
    recipe_digest: str,
) -> dict[str, Any]:
    """Everything a reader needs to trust a backbone, JSON-like.

    ``subjects`` and ``source_digests`` are what evaluation proves its tests disjoint from.
    """
    dataset = reader.dataset
    shards = {key: dataset[key] for key in ("name", "digest", "num_samples", "num_subjects")}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "method": method,
        "steps": steps,
        "scans_seen": scans_seen,
        "hours": wall_s / 3600,
        "world_size": world_size,
        "device": device,
        "finished": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "recipe_digest": recipe_digest,
        "versions": {package: _version(package) for package in ("scanfm", "torch", "deepspeed")},
        "shards": {
            **shards,
            "sources": dataset["sources"],
            "modalities": dataset["modalities"],
        },
        "subjects": sorted(dataset["subjects"]),
        "source_digests": sorted(
            {one.source_digest for sample in reader.samples for one in sample.sequences.values()}
        ),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
