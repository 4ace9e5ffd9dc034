"""What a build has finished, line by line on the disk, so that a killed one goes on from there.

A line is written when a shard and its index are whole and synced: how many inputs, and scans of
the next one, have been taken, the shard's entry of ``dataset.json``, and the ledger's entries since
the line before.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from shards.building.ledger import Entry
from shards.files import write_text

JOURNAL = ".journal.jsonl"


class Progress(NamedTuple):
    """Where a build stands: all before ``inputs``, and ``scans`` of that input, are in shards."""

    inputs: int
    scans: int
    shards: list[dict[str, Any]]
    entries: list[Entry]


class Journal:
    """Of one draft folder, and of one plan: another plan's journal counts for nothing."""

    def __init__(self, folder: Path, *, plan: str) -> None:
        """``plan`` is a digest of all that decides the build's result."""
        self._path = folder / JOURNAL
        self._plan = plan

    def read(self) -> Progress | None:
        """What was finished; None where nothing was, or another plan began it."""
        if not self._path.is_file():
            return None
        whole, _, _ = self._path.read_text(encoding="utf-8").rpartition("\n")
        first, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
        if first != {"plan": self._plan}:
            return None
        entries = [Entry(**entry) for line in lines for entry in line["entries"]]
        last = lines[-1] if lines else {"inputs": 0, "scans": 0}
        shards = [line["shard"] for line in lines]
        return Progress(last["inputs"], last["scans"], shards, entries)

    def begin(self) -> None:
        """Start a new journal."""
        write_text(self._path, json.dumps({"plan": self._plan}) + "\n")

    def trim(self) -> None:
        """Cut off a line that a kill left half written."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._path, len(whole))

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
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
