"""Where a backbone comes from: everything a reader needs to trust it."""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from foundation.beginning.initial import with_beginning
from shards.streaming.corpus import Corpus
from shards.streaming.reader import ShardReader

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

    It lists what is :func:`seen_in` the shards; ``begun`` is the content of ``init.json``.
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
        "finished": finished_today(),
        "recipe_digest": recipe_digest,
        "versions": versions(),
        "shards": shards_of(corpus),
        **seen_in(corpus.readers),
    }
    return with_beginning(provenance, begun) if begun else provenance


def finished_today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions() -> dict[str, str]:
    """Of what computed the weights."""
    return {package: _version(package) for package in ("scanfm", "torch", "deepspeed")}


def seen_in(readers: Sequence[ShardReader]) -> dict[str, list[str]]:
    """What evaluation proves its tests disjoint from: of every sample in the shards, drawn or not.

    Returns:
        ``subjects`` (pseudonyms), ``source_digests`` of voxels and ``perceptual_hashes``, each
        sorted; a scan without contrast has no hash.
    """
    scans = [one for each in readers for scan in each.samples.scans() for one in scan["sequences"]]
    return {
        "subjects": sorted({subject for each in readers for subject in each.dataset["subjects"]}),
        "source_digests": sorted({one["source_digest"] for one in scans}),
        "perceptual_hashes": sorted({one["perceptual_hash"] for one in scans} - {""}),
    }


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
        "num_subjects": len({subject for each in datasets for subject in each["subjects"]}),
        "sources": [source for dataset in datasets for source in dataset["sources"]],
        "modalities": dict(modalities),
        "spacing_mm": _spacings(corpus),
        "folders": [
            {key: dataset[key] for key in ("name", "digest", "num_samples", "num_subjects")}
            for dataset in datasets
        ],
    }


def _spacings(corpus: Corpus) -> dict[str, list[float]]:
    """The finest and the coarsest along each axis (d, h, w)."""
    found = np.array([one["spacing_mm"] for each in corpus.readers for one in each.samples.scans()])
    return {"low": found.min(axis=0).tolist(), "high": found.max(axis=0).tolist()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
