"""The gate before any score: no subject and no scan on both sides of a split or of pretraining.

Subjects are compared by pseudonym (the same key and cohort name as in the shards), scans by the
digest of their voxels, which finds a copy under another name too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from evaluation.tasks.task import Task
from recipes.load import digest
from shards.codec import source_digest
from shards.scan import Scan
from shards.sources.cohort import CohortRow

DIGEST = "source_digest"
FAILED = "leakage_failed.json"


class LeakageError(ValueError):
    """Something that is scored was seen before; no score is computed."""


@dataclass(frozen=True)
class Check:
    """One question that was asked, and its answer.

    Attributes:
        task: Its name.
        check: Which question.
        model: The backbone it is about, or None.
        passed: False stops the run.
        count: Subjects or scans that were found.
        detail: In words.
    """

    task: str
    check: str
    model: str | None
    passed: bool
    count: int
    detail: str


def digest_extractor() -> Extractor:
    """The digest the shard builder gives a scan, as 32 bytes."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[np.uint8]]:
        del row
        return {DIGEST: np.frombuffer(bytes.fromhex(source_digest(scan)), dtype=np.uint8)}

    return Extractor(DIGEST, digest({"digest": 1}), None, extract)


def digests_by_subject(task: Task, stored: NDArray[np.uint8]) -> list[list[str]]:
    """Digests of each subject's scans, from those of all candidate scans, (scans, 32)."""
    place = {(row.subject, row.scan): index for index, row in enumerate(task.candidates)}
    return [
        [stored[place[row.subject, row.scan]].tobytes().hex() for row in scans]
        for scans in task.scans
    ]


def check_task(
    task: Task, digests: Sequence[Sequence[str]], pretrained: Mapping[str, Mapping[str, Any]]
) -> list[Check]:
    """Ask every question about one task.

    Args:
        task: Its subjects and splits.
        digests: Of the voxels of each subject's scans, in the task's order.
        pretrained: ``subjects`` and ``source_digests`` of the shards each backbone learned from,
            by model.
    """
    checks = [_subjects_in_two_splits(task), _same_scan_twice(task, digests)]
    for model, seen in pretrained.items():
        checks += _overlap_with_pretraining(task, digests, model, seen)
    return checks


def require_clean(checks: Iterable[Check]) -> None:
    """Stop at the first hard hit.

    Raises:
        LeakageError: A check did not pass; the message counts them all and tells one.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        first = failed[0]
        model = f", backbone {first.model}" if first.model else ""
        raise LeakageError(
            f"leakage: {len(failed)} of the checks failed, so nothing is scored; task "
            f"{first.task}{model}: {first.detail} ({first.count}); {FAILED} lists all"
        )


def as_stored(checks: Sequence[Check]) -> dict[str, Any]:
    """For ``leakage.json``."""
    return {
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }


def _scored(task: Task) -> list[int]:
    """Positions of the subjects that are ever scored: all of them under cross-validation."""
    return [int(row) for row in task.rows("val", "test", "cv")]


def _subjects_in_two_splits(task: Task) -> Check:
    splits: dict[str, set[str]] = {}
    times: dict[str, int] = {}
    for subject, split in zip(task.subjects, task.split, strict=True):
        splits.setdefault(subject, set()).add(str(split))
        times[subject] = times.get(subject, 0) + 1
    count = sum(len(splits[subject]) > 1 or times[subject] > 1 for subject in splits)
    return Check(
        task=task.card.name,
        check="subject in two splits",
        model=None,
        passed=count == 0,
        count=count,
        detail="subjects in two splits, or twice in one",
    )


def _same_scan_twice(task: Task, digests: Sequence[Sequence[str]]) -> Check:
    """Across splits, or across subjects where folds are drawn from all of them."""
    sides: dict[str, set[str]] = {}
    for subject, split, mine in zip(task.subjects, task.split, digests, strict=True):
        side = subject if split == "cv" else str(split)
        for each in mine:
            sides.setdefault(each, set()).add(side)
    count = sum(len(found) > 1 for found in sides.values())
    where = "subjects" if task.card.protocol.repeated_cv else "splits"
    return Check(
        task=task.card.name,
        check="duplicate scan",
        model=None,
        passed=count == 0,
        count=count,
        detail=f"scans with the same voxels in two {where}",
    )


def _overlap_with_pretraining(
    task: Task, digests: Sequence[Sequence[str]], model: str, seen: Mapping[str, Any]
) -> list[Check]:
    subjects, scans = set(seen["subjects"]), set(seen["source_digests"])
    scored = _scored(task)
    train = [int(row) for row in task.rows("train")]
    same_subjects = sum(task.subjects[row] in subjects for row in scored)
    same_scans = sum(each in scans for row in scored for each in digests[row])
    in_train = sum(task.subjects[row] in subjects for row in train)
    name = task.card.name
    return [
        Check(
            name, "scored subject in pretraining", model, same_subjects == 0, same_subjects,
            f"of {len(scored)} scored subjects are in the pretraining shards",
        ),
        Check(
            name, "scored scan in pretraining", model, same_scans == 0, same_scans,
            "scored scans have the voxels of a pretraining scan",
        ),
        Check(
            name, "training subject in pretraining", model, True, in_train,
            f"of {len(train)} training subjects are in the pretraining shards, without labels: "
            "allowed",
        ),
    ]  # fmt: skip
