"""The ledger: every input ends as accepted, rejected or skipped, with the reason and no name."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shards.files import write_text

Status = Literal["accepted", "rejected", "skipped", "withdrawn"]
STATUSES: tuple[Status, ...] = ("accepted", "rejected", "skipped", "withdrawn")
DUPLICATE = re.compile(r"(near )?duplicate of ([a-z0-9_-]+)(?: \(distance (\d+)\))?")
"""What is said of a copy: near or not, the key of its original, the distance."""


@dataclass(frozen=True)
class Entry:
    """One scan, or files that are none.

    Attributes:
        source: Name of its source.
        position: Its number among the inputs of that source, from 0, when it was read.
        status: ``skipped`` is no scan at all or not selected by the recipe; ``withdrawn`` was
            accepted once, until its subject's consent ended.
        subject: Pseudonym, where there is a subject.
        key: Of the sample, if accepted.
        reason: Why not, if not accepted.
        note: What is odd about a scan that was accepted all the same.
        files: Files of the archive that it accounts for; over all entries they add up to all.
        input: Keyed name of the input, the same in every build; None for what no reader opened.
    """

    source: str
    position: int
    status: Status
    subject: str | None = None
    key: str | None = None
    reason: str | None = None
    note: str | None = None
    files: int = 1
    input: str | None = None


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Entries by status, and the files they account for."""
    entries = list(entries)
    found = Counter(entry.status for entry in entries)
    return {
        **{status: found[status] for status in STATUSES},
        "files": sum(entry.files for entry in entries),
    }


def reasons(entries: Iterable[Entry], status: Status = "rejected") -> list[tuple[str, int]]:
    """Reasons of one status, most frequent first; copies of whatever scan count as one reason."""
    found = Counter(
        without_key(entry.reason)
        for entry in entries
        if entry.status == status and entry.reason is not None
    )
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))


def without_key(text: str) -> str:
    """``duplicate of KEY`` and ``near duplicate of KEY (distance n)`` name no key."""
    found = DUPLICATE.fullmatch(text)
    return f"{found[1] or ''}duplicate of another scan" if found else text


def as_line(entry: Entry) -> str:
    """One JSON object and a line end."""
    return json.dumps(asdict(entry), sort_keys=True) + "\n"


def write_ledger(path: Path, entries: Sequence[Entry]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(map(as_line, entries)))


def parse_ledger(content: bytes) -> list[Entry]:
    """Back from :func:`write_ledger`."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in content.splitlines()]
    return [Entry(**line) for line in lines]
