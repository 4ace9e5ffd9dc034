"""What came of each input, kept in small files beside the table until the table is whole."""

import io
import json
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.files import write_bytes

Status = Literal["embedded", "predicted", "refused", "failed"]
Array = NDArray[np.floating[Any]]

DONE: tuple[Status, ...] = ("embedded", "predicted")
_FACTS = ("scan", "subject", "sequence", "status", "reason", "modality", "spacing_mm")
_FACTS_OF = "facts"
_CHUNK = 8  # inputs a file holds, and that a kill loses at most
_CHUNK_S = 60.0


@dataclass(frozen=True)
class Entry:
    """One scan of an input, or why there is none.

    Attributes:
        key: Of the input and all else that its arrays depend on.
        scan, subject, sequence: Names for the table.
        status: ``refused`` is not covered by the contract, ``failed`` cannot be read or computed.
        reason: In words; of one that was done, why it is not covered.
        modality, spacing_mm: As the scan was read; empty where it was not.
        arrays: What was made of it, by name, one axis each; empty unless it was done.
    """

    key: str
    scan: str
    subject: str
    sequence: str
    status: Status
    reason: str = ""
    modality: str = ""
    spacing_mm: tuple[float, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it has arrays, and a row."""
        return self.status in DONE

    def facts(self) -> dict[str, Any]:
        """A line of the ledger, JSON-like."""
        return {name: getattr(self, name) for name in _FACTS}


class Kept:
    """Entries in a folder beside ``out``, in files of several ranks, each whole or absent."""

    def __init__(self, out: Path, *, rank: int = 0) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self._out = out
        self._rank = rank
        self._waiting: list[Entry] = []
        self._inputs = 0
        self._since = time.monotonic()

    def load(self) -> dict[str, list[Entry]]:
        """By key, all entries of the input; of two attempts the later.

        A damaged file is passed over, and its inputs are done again.
        """
        found: dict[str, list[Entry]] = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            entries: dict[str, list[Entry]] = {}
            for entry in _read(path):
                entries.setdefault(entry.key, []).append(entry)
            found |= entries
        return found

    def add(self, entries: Sequence[Entry]) -> None:
        """All entries of one input."""
        self._waiting.extend(entries)
        self._inputs += 1
        if self._inputs >= _CHUNK or time.monotonic() - self._since > _CHUNK_S:
            self.flush()

    def flush(self) -> None:
        """Bring what waits to the disk.

        Raises:
            OSError: It cannot be written; it names ``out``.
        """
        if self._waiting:
            self._write(f"{time.time_ns():020d}-{self._rank:04d}.npz")
        self._waiting, self._inputs, self._since = [], 0, time.monotonic()

    def remove(self) -> None:
        """Take the files away, and the folder where nothing else lies in it."""
        for pattern in ("[0-9]*.npz", ".[0-9]*.npz.tmp"):  # the latter of a kill while writing
            for path in self.folder.glob(pattern):
                path.unlink()
        self._leave()

    def _write(self, name: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / name, _content(self._waiting))
        except OSError as error:
            self._leave()
            raise OSError(error.errno, error.strerror, str(self._out)) from None

    def _leave(self) -> None:
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()


def _content(entries: Sequence[Entry]) -> bytes:
    facts = json.dumps([{"key": entry.key, **entry.facts()} for entry in entries])
    done = [entry for entry in entries if entry.is_done]
    arrays: dict[str, Any] = {_FACTS_OF: np.frombuffer(facts.encode(), np.uint8)}
    for name in done[0].arrays if done else ():
        arrays[name] = np.stack([entry.arrays[name] for entry in done])
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _read(path: Path) -> Iterator[Entry]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(bytes(arrays[_FACTS_OF]))
            made = {name: arrays[name] for name in arrays if name != _FACTS_OF}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return
    place = 0
    for one in facts:
        row: dict[str, Array] = {}
        if one["status"] in DONE:
            row = {name: array[place] for name, array in made.items()}
            place += 1
        yield Entry(**{**one, "spacing_mm": tuple(one["spacing_mm"])}, arrays=row)
