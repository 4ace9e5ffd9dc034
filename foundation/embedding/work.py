"""What is done with each scan of a job, and an input's entries: judged, done, or why not."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from foundation.embedding.coverage import Coverage
from foundation.embedding.entries import Array, Entry, Status
from foundation.embedding.inputs import Item
from foundation.embedding.reading import Opened
from foundation.embedding.table import Per
from shards.scan import Scan, ScanError


class Work(Protocol):
    """A network, and what it does with a scan."""

    @property
    def done(self) -> Status:
        """Of a scan with which it was done."""

    @property
    def coverage(self) -> Coverage:
        """Which scans it is for."""

    @property
    def allow_uncovered(self) -> bool:
        """Take and mark the others, instead of refusing them."""

    def settings(self) -> Mapping[str, Any]:
        """All that its outcome depends on besides the scan, JSON-like."""

    def of_scan(self, scan: Scan, *, name: str, source: Path | None) -> Mapping[str, Array]:
        """Arrays of one axis, as many for each scan; what else is made of it is written.

        Args:
            scan: As it was read.
            name: Of its row.
            source: The one file it was read from.

        Raises:
            ScanError: It cannot be done with this one.
        """

    def is_whole(self, name: str) -> bool:
        """Whether what was written beside the table for a scan is still there."""

    def write_table(self, out: Path, entries: Sequence[Entry], *, per: Per) -> int:
        """Rows of all that was done; their number."""


def entries_of(work: Work, item: Item, opened: Opened, *, key: str) -> Iterator[Entry]:
    """An entry for each volume of an input, or one that says why there is none."""

    def entry(status: Any, *, name: str, **about: Any) -> Entry:
        return Entry(key, name, item.subject, item.sequence, status, **about)

    if opened.first is None:
        status = "refused" if item.verdict else "failed"
        yield entry(status, name=item.name, reason=item.verdict or opened.failure)
        return
    source = item.files[0] if len(item.files) == 1 else None
    scan: Scan | None = opened.first
    number, name = 1, item.name
    while scan is not None:
        uncovered = work.coverage.reasons(
            scan, sequence=item.sequence, is_oriented=opened.is_oriented
        )
        yield entry(
            name=name,
            **_of_scan(work, scan, name=name, source=source, uncovered="; ".join(uncovered)),
        )
        number += 1
        name = f"{item.name}@{number}"
        try:
            scan = next(opened.others, None)
        except ScanError as error:
            yield entry("failed", name=name, reason=str(error))
            return


def _of_scan(
    work: Work, scan: Scan, *, name: str, source: Path | None, uncovered: str
) -> dict[str, Any]:
    """Status, reason, modality, spacing and arrays of one scan."""
    about = {"modality": scan.modality, "spacing_mm": tuple(map(float, scan.spacing_mm))}
    if uncovered and not work.allow_uncovered:
        return {"status": "refused", "reason": uncovered, **about}
    try:
        arrays = work.of_scan(scan, name=name, source=source)
    except ScanError as error:
        return {"status": "failed", "reason": str(error), **about}
    except torch.OutOfMemoryError:
        shape = " x ".join(map(str, scan.voxels.shape))
        reason = f"{shape} voxels do not fit into the memory of the device"
        return {"status": "failed", "reason": reason, **about}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return {"status": "failed", "reason": "what was computed is not finite", **about}
    return {"status": work.done, "reason": uncovered, "arrays": arrays, **about}
