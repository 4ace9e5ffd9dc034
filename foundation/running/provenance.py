"""Where a backbone comes from: everything a reader needs to trust it."""

import datetime
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foundation.beginning.initial import with_beginning
from shards.streaming.corpus import Corpus

SCHEMA_VERSION = 1


def provenance_of(
    corpus: Corpus,
    *,
    name: str,
    method: str,
    steps: int,
    scans_seen: int,
    crops_per_scan: int,
    wall_s: float,
    world_size: int,
    device: str,
    recipe_digest: str,
    begun: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything a reader needs to trust a backbone, JSON-like.

    ``subjects`` and ``source_digests`` are what evaluation proves its tests disjoint from: of every
    sample in the shards, seen or not. ``begun`` is the content of ``init.json``.
    """
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "method": method,
        "steps": steps,
        "scans_seen": scans_seen,
        "epochs": corpus.epochs_seen(scans_seen, per_scan=crops_per_scan),
        "hours": wall_s / 3600,
        "world_size": world_size,
        "device": device,
        "finished": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "recipe_digest": recipe_digest,
        "versions": {package: _version(package) for package in ("scanfm", "torch", "deepspeed")},
        "shards": shards_of(corpus),
        "subjects": _subjects(corpus),
        "source_digests": sorted(
            {
                one["source_digest"]
                for reader in corpus.readers
                for scan in reader.samples.scans()
                for one in scan["sequences"]
            }
        ),
    }
    return with_beginning(provenance, begun) if begun else provenance


def shards_of(corpus: Corpus) -> dict[str, Any]:
    """What was read, taken together, and each folder of it under ``folders``."""
    datasets = [reader.dataset for reader in corpus.readers]
    modalities: Counter[str] = Counter()
    for dataset in datasets:
        modalities.update(dataset["modalities"])
    return {
        "name": " + ".join(dataset["name"] for dataset in datasets),
        "digest": corpus.digest,
        "num_samples": sum(dataset["num_samples"] for dataset in datasets),
        "num_subjects": len(_subjects(corpus)),
        "sources": [source for dataset in datasets for source in dataset["sources"]],
        "modalities": dict(modalities),
        "folders": [
            {key: dataset[key] for key in ("name", "digest", "num_samples", "num_subjects")}
            for dataset in datasets
        ],
    }


def _subjects(corpus: Corpus) -> list[str]:
    return sorted({each for reader in corpus.readers for each in reader.dataset["subjects"]})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
