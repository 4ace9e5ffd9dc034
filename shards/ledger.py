"""The ledger: every input ends as accepted, rejected or skipped, with the reason and no name."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from shards.files import write_text


@dataclass(frozen=True)
class Entry:
    """One input.

    Attributes:
        source: Name of its source.
        position: Its number among the inputs of that source, from 0.
        status: ``skipped`` is a file that is no scan at all.
        subject: Pseudonym, where there is a subject.
        key: Of the sample, if accepted.
        reason: Why not, if not accepted.
    """

    source: str
    position: int
    status: Literal["accepted", "rejected", "skipped"]
    subject: str | None = None
    key: str | None = None
    reason: str | None = None


def counts(entries: Sequence[Entry]) -> dict[str, int]:
    """Inputs by status."""
    found = Counter(entry.status for entry in entries)
    return {status: found[status] for status in ("accepted", "rejected", "skipped")}


def reasons(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Reasons why scans were rejected, most frequent first; duplicates count as one reason."""
    found = Counter(
        "duplicate of another scan" if entry.reason.startswith("duplicate of ") else entry.reason
        for entry in entries
        if entry.status == "rejected" and entry.reason is not None
    )
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))


def write_ledger(path: Path, entries: Sequence[Entry]) -> None:
    """One JSON object a line."""
    lines = [json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in entries]
    write_text(path, "".join(lines))
