"""What a build has finished, line by line on the disk, so that a killed one goes on from there.

A line is written when a shard and its index are whole and synced: how many inputs, and scans of
the next one, have been taken, the shard's entry of ``dataset.json``, and the ledger's entries since
the line before. Each line carries a digest of itself: one that was damaged counts for nothing, and
neither does what came after it.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from recipes.load import digest
from shards.building.ledger import Entry
from shards.files import write_bytes

JOURNAL = ".journal.jsonl"


class Progress(NamedTuple):
    """Where a build stands: all before ``inputs``, and ``scans`` of that input, are in shards."""

    inputs: int
    scans: int
    shards: list[dict[str, Any]]
    entries: list[Entry]
    dropped: int
    """shards that were finished and are made again, as they or their lines are damaged"""


class Journal:
    """Of one draft folder, and of one plan: another plan's journal counts for nothing."""

    def __init__(self, folder: Path, *, plan: str) -> None:
        """``plan`` is a digest of all that decides the build's result."""
        self._path = folder / JOURNAL
        self._plan = plan

    def resume(self, *, is_whole: Callable[[Mapping[str, Any]], bool]) -> Progress | None:
        """What was finished and is still whole; all else is cut off the journal.

        Args:
            is_whole: Whether a shard, given as its entry of ``dataset.json``, is what was written.

        Returns:
            None where nothing was finished, or another plan began the draft.
        """
        if not self._path.is_file():
            return None
        first, *rest = self._path.read_bytes().splitlines(keepends=True) or [b""]
        if first != self._first():
            return None
        size, notes = len(first), []
        for line in rest:
            note = _note_in(line)
            if note is None or not is_whole(note["shard"]):
                break
            notes.append(note)
            size += len(line)
        os.truncate(self._path, size)
        written = sum(line.endswith(b"\n") for line in rest)  # a kill cuts the last one
        return _progress(notes, dropped=written - len(notes))

    def begin(self) -> None:
        """Start a new journal."""
        write_bytes(self._path, self._first())

    def note(
        self, *, inputs: int, scans: int, shard: dict[str, Any], entries: Sequence[Entry]
    ) -> None:
        """One more shard is finished."""
        line = {
            "inputs": inputs,
            "scans": scans,
            "shard": shard,
            "entries": [asdict(entry) for entry in entries],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "digest": digest(line)}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _first(self) -> bytes:
        return (json.dumps({"plan": self._plan}) + "\n").encode()


def _progress(notes: Sequence[Mapping[str, Any]], *, dropped: int) -> Progress:
    last = notes[-1] if notes else {"inputs": 0, "scans": 0}
    shards = [note["shard"] for note in notes]
    entries = [Entry(**entry) for note in notes for entry in note["entries"]]
    return Progress(last["inputs"], last["scans"], shards, entries, dropped)


def _note_in(line: bytes) -> dict[str, Any] | None:
    """What was noted; None where the line is not what was written."""
    try:
        found: dict[str, Any] = json.loads(line)
        said = found.pop("digest")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return found if line.endswith(b"\n") and digest(found) == said else None
