"""What a scan is known again by: the digest of its voxels and its perceptual hash.

Both are taken in the pass over the scans that makes the features, as the shard builder takes them,
so a scan can be found in shards under whatever name.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from foundation.tasks.task import Task
from recipes.load import digest
from shards.codec import source_digest
from shards.measure.similar import BITS, perceptual_hash
from shards.scan import Scan
from shards.sources.cohort import CohortRow

DIGEST = "source_digest"
HASH = "perceptual_hash"


class ScanMarks(NamedTuple):
    """Of each subject's scans, in the task's order.

    Attributes:
        digests: 64 hex digits each.
        hashes: 64 hex digits each; empty for a volume without any contrast, which is like nothing.
    """

    digests: Sequence[Sequence[str]]
    hashes: Sequence[Sequence[str]]


def mark_extractors() -> list[Extractor]:
    """The two extractors; each array holds 32 bytes of a scan."""
    return [digest_extractor(), hash_extractor()]


def digest_extractor() -> Extractor:
    """The digest the shard builder gives a scan, as 32 bytes."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[np.uint8]]:
        del row
        return {DIGEST: np.frombuffer(bytes.fromhex(source_digest(scan)), dtype=np.uint8)}

    return Extractor(DIGEST, digest({"digest": 1}), None, extract)


def hash_extractor() -> Extractor:
    """The perceptual hash, as 32 bytes; all zero for an empty one, as a hash sets half its bits."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[np.uint8]]:
        del row
        found = bytes.fromhex(perceptual_hash(scan.voxels)) or bytes(BITS // 8)
        return {HASH: np.frombuffer(found, dtype=np.uint8)}

    return Extractor(HASH, digest({"hash": 1}), None, extract)


def marks_by_subject(
    task: Task, *, digests: NDArray[np.uint8], hashes: NDArray[np.uint8]
) -> ScanMarks:
    """Marks of each subject's scans, from those of all candidate scans, (scans, 32) each."""
    place = {(row.subject, row.scan): index for index, row in enumerate(task.candidates)}
    whose = [[place[row.subject, row.scan] for row in scans] for scans in task.scans]
    return ScanMarks(
        digests=[[_hex(digests[scan]) for scan in scans] for scans in whose],
        hashes=[
            [_hex(hashes[scan]) if hashes[scan].any() else "" for scan in scans] for scans in whose
        ],
    )


def _hex(stored: NDArray[Any]) -> str:
    return stored.tobytes().hex()
