"""``dataset.json``: what a folder of shards says of itself, and the digest of all of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipes.load import digest
from shards.building.ledger import Entry, counts
from shards.index import SCHEMA_VERSION, Sample


def describe(
    *,
    about: Mapping[str, Any],
    samples: Sequence[Sample],
    shards: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    ledger_sha256: str,
    history: Sequence[Mapping[str, Any]],
    withdrawn: Iterable[str],
    next_shard: int,
) -> dict[str, Any]:
    """The content of ``dataset.json``; the same shards and ledger give the same digest.

    Args:
        about: ``name``, ``recipe_digest``, ``spacing_mm`` (None: each scan's own) and ``sources``
            (``name``, ``licence`` and ``source`` of each).
        samples: Of all shards.
        shards: An entry for each tar, in the order of reading.
        entries: The ledger.
        ledger_sha256: Of its file.
        history: Digests that this folder had before, and what ended each.
        withdrawn: Pseudonyms of subjects that must not come back.
        next_shard: Number of the next tar to write; no name is ever used twice.
    """
    by_source = Counter(sample.source for sample in samples)
    subjects = sorted({sample.subject for sample in samples})
    outcome = [[entry.source, entry.key or entry.reason] for entry in entries]
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": about["name"],
        "recipe_digest": about["recipe_digest"],
        "spacing_mm": about["spacing_mm"],
        "sources": [
            {**source, "num_samples": by_source[source["name"]]} for source in about["sources"]
        ],
        "num_samples": len(samples),
        "num_subjects": len(subjects),
        "subjects": subjects,
        "modalities": modalities(samples),
        "inputs_digest": digest(outcome),
        "shards": list(shards),
        "ledger": {**counts(entries), "sha256": ledger_sha256},
        "history": list(history),
        "withdrawn": sorted(withdrawn),
        "next_shard": next_shard,
    }
    return {**content, "digest": digest(content)}


def modalities(samples: Iterable[Sample]) -> dict[str, int]:
    """Sequences by modality."""
    found = Counter(each.modality for one in samples for each in one.sequences.values())
    return dict(sorted(found.items()))
