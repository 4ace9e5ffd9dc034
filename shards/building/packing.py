"""Converted scans into shards, in order: what is taken, what is a copy, what the ledger says."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.building.convert import Converted
from shards.building.duplicates import DuplicateCheck
from shards.building.journal import Journal, Progress
from shards.building.ledger import Entry, Status, counts
from shards.building.plan import Job
from shards.index import RECORD, Sample, record_bytes
from shards.write import PackedSample, ShardWriter


class Packer:
    """Takes the results of the jobs in order; after a kill it goes on where its journal ends."""

    def __init__(
        self,
        folder: Path,
        *,
        journal: Journal,
        duplicates: DuplicateCheck,
        stale: dict[str, tuple[Sample, ...]],
        taken_keys: set[str],
        shard_size_mb: float,
        first_shard: int,
        deliver: Callable[[Path, dict[str, Any]], None],
    ) -> None:
        """
        Args:
            folder: The draft.
            journal: Of this plan.
            duplicates: Knows the samples that stand.
            stale: By input, samples that stand and are replaced unless they come out the same.
            taken_keys: Of the samples that stand and stay.
            shard_size_mb: As :class:`ShardWriter`.
            first_shard: Number of the first tar to write.
            deliver: Told of each shard that is whole.
        """
        self._journal, self._duplicates, self._stale = journal, duplicates, stale
        self._keys, self._deliver = set(taken_keys), deliver
        self.entries: list[Entry] = []
        self.shards: list[dict[str, Any]] = []
        self.inputs_done, self._scans_done, self._noted = 0, 0, 0
        self.num_rejected = 0
        self.unchanged: set[str] = set()
        self._writer = ShardWriter(
            folder,
            shard_size_mb=shard_size_mb,
            first=first_shard,
            finished=self._finished,
        )

    def go_on(self, progress: Progress, samples: Sequence[Sample]) -> None:
        """Take up what a killed build had finished; ``samples`` are those of its shards."""
        self.entries, self.shards = list(progress.entries), list(progress.shards)
        self.inputs_done, self._scans_done = progress.inputs, progress.scans
        self._noted = len(self.entries)
        self.num_rejected = counts(self.entries)["rejected"]
        self._writer.skip(len(self.shards))
        for sample in samples:
            self._duplicates.add_stored(sample)
            self._keys.add(sample.key)
        standing = {one.key for some in self._stale.values() for one in some}
        self.unchanged = {entry.key for entry in self.entries if entry.key in standing - self._keys}

    def take(self, job: Job, found: Sequence[Converted]) -> None:
        """The scans of one input."""
        for place, one in enumerate(found):
            if place >= self._scans_done:
                self._scans_done += 1
                self._take_scan(job, one, is_first=place == 0, num_files=_own_files(job, found))
        self.inputs_done, self._scans_done = self.inputs_done + 1, 0

    def close(self) -> None:
        """Finish the last tar."""
        self._writer.close()

    def discard(self) -> None:
        """Let go of a tar that will not be finished."""
        self._writer.discard()

    def _take_scan(self, job: Job, one: Converted, *, is_first: bool, num_files: int) -> None:
        for reason, number in sorted(one.left_out.items()):
            self._enter(job, "rejected", reason=reason, files=number)
        files = num_files if is_first else 0
        if one.sample is None:
            assert one.status != "accepted"
            self._enter(job, one.status, reason=one.reason, files=files)
            return
        if (same := self._stale_twin(job, one.sample)) is not None:
            self.unchanged.add(same)
            self._enter(job, "accepted", key=same, files=files)
            return
        verdict = self._duplicates.judge(one.sample.record)
        if verdict.reason is not None:
            self._enter(job, "rejected", reason=verdict.reason, files=files)
            return
        sample = self._with_own_key(one.sample)
        self._duplicates.add(sample.key, sample.record)
        self._enter(job, "accepted", key=sample.key, note=verdict.note, files=files)
        self._writer.add(sample)  # last: it may note in the journal what has been entered

    def _stale_twin(self, job: Job, sample: PackedSample) -> str | None:
        """A sample that stands and is the same, although the input's files were written again."""
        for old in self._stale.get(job.input, ()):
            if old.members[RECORD].sha256 == sample.sha256[RECORD] and all(
                old.members[name].sha256 == digest for name, digest in sample.sha256.items()
            ):
                return old.key
        return None

    def _with_own_key(self, sample: PackedSample) -> PackedSample:
        """Two samples of the same voxels and subject, where the policy takes both."""
        key, number = sample.key, 1
        while key in self._keys:
            number += 1
            key = f"{sample.key}-{number}"
        self._keys.add(key)
        return sample if key == sample.key else renamed(sample, key)

    def _enter(
        self,
        job: Job,
        status: Status,
        *,
        files: int,
        key: str | None = None,
        reason: str | None = None,
        note: str | None = None,
    ) -> None:
        task = job.task
        self.num_rejected += status == "rejected"
        self.entries.append(
            Entry(
                source=task.source,
                position=task.item.position,
                status=status,
                subject=task.subject,
                key=key,
                reason=reason,
                note=note,
                files=files,
                input=job.input,
            )
        )

    def _finished(self, tar: Path, entry: dict[str, Any]) -> None:
        self._deliver(tar, entry)
        self.shards.append(entry)
        self._journal.note(
            inputs=self.inputs_done,
            scans=self._scans_done,
            shard=entry,
            entries=self.entries[self._noted :],
        )
        self._noted = len(self.entries)


def renamed(sample: PackedSample, key: str) -> PackedSample:
    """The same sample under another key."""
    record = {**sample.record, "key": key}
    text = record_bytes(record)
    return replace(
        sample,
        key=key,
        record=record,
        members={**sample.members, RECORD: text},
        sha256={**sample.sha256, RECORD: hashlib.sha256(text).hexdigest()},
    )


def _own_files(job: Job, found: Sequence[Converted]) -> int:
    """Files of an input that are not accounted for by the reasons of those left out."""
    return job.task.item.num_files - sum(sum(one.left_out.values()) for one in found)
