"""Is a sample a copy of one that is already in the shards? Exact by voxels, near by their look."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from shards.index import Sample
from shards.measure.similar import DuplicatePolicy, SimilarFinder


class Verdict(NamedTuple):
    """``reason`` rejects a sample; ``note`` is told of one that is taken all the same."""

    reason: str | None = None
    note: str | None = None


class DuplicateCheck:
    """Knows every sample that was taken, and judges the next one by the recipe's policy."""

    def __init__(self, policy: DuplicatePolicy) -> None:
        self._policy = policy
        self._exact: dict[str, str] = {}
        self._near = SimilarFinder()

    def judge(self, record: Mapping[str, Any]) -> Verdict:
        """What the policy makes of a sample, from its ``scan.json``."""
        copies = [self._exact.get(one["source_digest"]) for one in record["sequences"]]
        if self._policy.exact != "keep" and all(copies):
            told = f"duplicate of {copies[0]}"
            return Verdict(reason=told) if self._policy.exact == "reject" else Verdict(note=told)
        if self._policy.near == "ignore":
            return Verdict()
        found = self._near.nearest(record["sequences"][0]["perceptual_hash"])
        if found is None or found[1] > self._policy.near_distance:
            return Verdict()
        key, distance = found
        told = f"near duplicate of {key} (distance {distance})"
        return Verdict(reason=told) if self._policy.near == "reject" else Verdict(note=told)

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """A sample that is in the shards now."""
        for one in record["sequences"]:
            self._exact.setdefault(one["source_digest"], key)
        self._near.add(record["sequences"][0]["perceptual_hash"], key)

    def add_stored(self, sample: Sample) -> None:
        """A sample of an index."""
        for one in sample.sequences.values():
            self._exact.setdefault(one.source_digest, sample.key)
        self._near.add(next(iter(sample.sequences.values())).perceptual_hash, sample.key)
