"""Inside a task: a subject on two sides, a scan on two sides, a slightly changed scan on two sides.

A side is a part of the split. Where folds are drawn from everybody, each subject is a side of its
own, since any two may be in training and held out.
"""

from collections.abc import Iterator, Sequence

from evaluation.leakage.checks import Check, hits
from evaluation.leakage.marks import ScanMarks
from foundation.tasks.task import Task
from shards.measure.similar import BITS, NEAR_DISTANCE, SimilarFinder


def check_subjects(task: Task) -> Check:
    """No subject is in two splits, or twice in one."""
    splits: dict[str, list[str]] = {}
    for subject, split in zip(task.subjects, task.split, strict=True):
        splits.setdefault(subject, []).append(str(split))
    return hits(
        task.card.name,
        "subject in two splits",
        None,
        count=sum(len(found) > 1 for found in splits.values()),
        detail="subjects in two splits, or twice in one",
    )


def check_exact(task: Task, marks: ScanMarks) -> Check:
    """No scan has the voxels of a scan on another side."""
    found: dict[str, set[str]] = {}
    for side, mine in zip(_sides(task), marks.digests, strict=True):
        for each in mine:
            found.setdefault(each, set()).add(side)
    return hits(
        task.card.name,
        "duplicate scan",
        None,
        count=sum(len(sides) > 1 for sides in found.values()),
        detail=f"scans with the same voxels in two {_kind_of_side(task)}",
    )


def check_near(task: Task, marks: ScanMarks) -> Check:
    """No scan is a slightly changed copy of one on another side, unless the card allows it.

    Shapes and crops of one anatomy may be that alike without being copies; only who knows the
    cohort can say so, in the card.
    """
    count, nearest, example = 0, BITS, ""
    for subject, other, distance in _near_pairs(task, marks):
        count += 1
        if distance < nearest:
            nearest, example = distance, f"; the nearest are of subjects {subject} and {other}"
    card = task.card
    return hits(
        card.name,
        "near-duplicate scan",
        None,
        count=count,
        detail=f"scans differ in {NEAR_DISTANCE} or fewer of {BITS} bits of their perceptual hash "
        f"from a scan in another of the {_kind_of_side(task)}{example}",
        excuse=card.near_duplicates_reason if card.near_duplicates == "allowed" else "",
    )


def _near_pairs(task: Task, marks: ScanMarks) -> Iterator[tuple[str, str, int]]:
    """Subjects of each scan and of its nearest on an earlier side, with the bits between them;
    copies of the same voxels are another check's."""
    finder = SimilarFinder()
    members: dict[str, list[int]] = {}
    for row, side in enumerate(_sides(task)):
        members.setdefault(side, []).append(row)
    for rows in members.values():
        scans = [
            (row, digest, hash)
            for row in rows
            for digest, hash in zip(marks.digests[row], marks.hashes[row], strict=True)
        ]
        for row, digest, hash in scans:
            near = finder.nearest(hash)
            if near is None or near.distance > NEAR_DISTANCE:
                continue
            other, _, other_digest = near.key.partition(" ")
            if other_digest != digest:
                yield task.subjects[row], other, near.distance
        for row, digest, hash in scans:
            finder.add(hash, f"{task.subjects[row]} {digest}")


def _sides(task: Task) -> Sequence[str]:
    return [
        subject if split == "cv" else str(split)
        for subject, split in zip(task.subjects, task.split, strict=True)
    ]


def _kind_of_side(task: Task) -> str:
    return "subjects" if task.card.protocol.repeated_cv else "splits"
