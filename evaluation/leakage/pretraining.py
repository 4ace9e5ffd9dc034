"""Whether a backbone has seen what it is scored on: by pseudonym, voxel digest, perceptual hash.

Pseudonyms are the same where key and cohort name are the same as in the shards; digests and hashes
find a scan under any name. What a backbone does not disclose is unknown, and never passed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from evaluation.leakage.checks import Check, Question, hits
from evaluation.leakage.marks import ScanMarks
from evaluation.statistics.kinds import FLOOR
from foundation.tasks.task import Task
from shards.measure.similar import BITS, NEAR_DISTANCE, SimilarFinder


class Pretrained(Protocol):
    """Of an entry of the table, what this check needs."""

    @property
    def kind(self) -> str:
        """``backbone``, ``trained`` or ``floor``."""

    @property
    def seen(self) -> Mapping[str, Any] | None:
        """``subjects``, ``source_digests`` and perhaps ``perceptual_hashes`` of the pretraining
        shards; None where nothing is disclosed."""


class _Scored(NamedTuple):
    """Everybody who is ever scored: under cross-validation that is all."""

    subjects: list[str]
    digests: list[str]
    hashes: list[str]


class Overlap:
    """The questions about one backbone.

    Args:
        model: Its name.
        seen: See :class:`Pretrained`.
    """

    def __init__(self, model: str, seen: Mapping[str, Any] | None) -> None:
        self._model = model
        self._lists = None if seen is None else {key: set(each) for key, each in seen.items()}
        self._finder = SimilarFinder()
        for found in sorted(set(seen.get("perceptual_hashes") or ()) if seen else ()):
            self._finder.add(found, found)

    def checks(self, task: Task, marks: ScanMarks) -> list[Check]:
        """Every question, about one task."""
        scored = _scored(task, marks)
        return [
            self._same_subject(task, scored),
            self._same_scan(task, scored),
            self._near_scan(task, scored),
            self._training_subjects(task),
        ]

    def _known(self, key: str) -> set[str] | None:
        return None if self._lists is None else self._lists.get(key)

    def _same_subject(self, task: Task, scored: _Scored) -> Check:
        seen = self._known("subjects")
        if seen is None:
            return self._unknown(task, "scored subject in pretraining", "subjects")
        return self._hits(
            task,
            "scored subject in pretraining",
            sum(subject in seen for subject in scored.subjects),
            f"of {len(scored.subjects)} scored subjects are in the pretraining shards",
        )

    def _same_scan(self, task: Task, scored: _Scored) -> Check:
        seen = self._known("source_digests")
        if seen is None:
            return self._unknown(task, "scored scan in pretraining", "digests of voxels")
        return self._hits(
            task,
            "scored scan in pretraining",
            sum(each in seen for each in scored.digests),
            "scored scans have the voxels of a pretraining scan",
        )

    def _near_scan(self, task: Task, scored: _Scored) -> Check:
        if self._known("perceptual_hashes") is None:
            return self._unknown(task, "near-duplicate scan in pretraining", "perceptual hashes")
        same = self._known("source_digests") or set()
        near = [
            self._finder.nearest(hash)
            for digest, hash in zip(scored.digests, scored.hashes, strict=True)
            if digest not in same  # the other check's
        ]
        card = task.card
        return self._hits(
            task,
            "near-duplicate scan in pretraining",
            sum(each is not None and each.distance <= NEAR_DISTANCE for each in near),
            f"scored scans differ in {NEAR_DISTANCE} or fewer of {BITS} bits of their perceptual "
            "hash from a pretraining scan",
            excuse=card.near_duplicates_reason if card.near_duplicates == "allowed" else "",
        )

    def _training_subjects(self, task: Task) -> Check:
        seen, train = self._known("subjects"), task.rows("train")
        if seen is None:
            return self._unknown(task, "training subject in pretraining", "subjects")
        count = sum(task.subjects[int(row)] in seen for row in train)
        detail = (
            f"of {len(train)} training subjects are in the pretraining shards, without labels: "
            "allowed"
        )
        question: Question = "training subject in pretraining"
        return Check(task.card.name, question, self._model, "passed", count, detail)

    def _hits(
        self, task: Task, check: Question, count: int, detail: str, *, excuse: str = ""
    ) -> Check:
        return hits(task.card.name, check, self._model, count=count, detail=detail, excuse=excuse)

    def _unknown(self, task: Task, check: Question, what: str) -> Check:
        reason = f"the backbone does not disclose the {what} of its pretraining data"
        detail = "overlap with pretraining is unknown"
        return Check(task.card.name, check, self._model, "unknown", 0, detail, reason)


def overlaps(entries: Mapping[str, Pretrained]) -> Iterator[Overlap]:
    """The questions about every backbone of the table, and about what was fine-tuned from one; a
    floor has never seen anything."""
    for name, entry in entries.items():
        if entry.kind != FLOOR:
            yield Overlap(name, entry.seen)


def _scored(task: Task, marks: ScanMarks) -> _Scored:
    rows = [int(row) for row in task.rows("val", "test", "cv")]
    return _Scored(
        [task.subjects[row] for row in rows],
        _flat(marks.digests, rows),
        _flat(marks.hashes, rows),
    )


def _flat(by_subject: Sequence[Sequence[str]], rows: Sequence[int]) -> list[str]:
    return [each for row in rows for each in by_subject[row]]
