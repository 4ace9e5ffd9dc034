"""What the processes of a disturbed job and the one that watches them both see.

An audit hook counts the changes a process makes to files below one folder: every opening for
writing, every rename, removal, link and new folder. A fault can then strike just before the n-th,
so that the moment between a rename and what follows it is hit as surely as any other.
"""

import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

STAGES = ("shards", "training", "checkpoint", "backbone")
"""Of what a change is part."""

_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MOST_RANKS, _MOST_CHANGES = 4, 8192


class Board:
    """Numbers in memory that a fork shares."""

    def __init__(self) -> None:
        self._head = _shared(2 + _MOST_RANKS)
        self._stages, self._times = _shared(_MOST_CHANGES), _shared(_MOST_CHANGES)

    @property
    def changes(self) -> int:
        """Made so far, the one about to be made included."""
        return int(self._head[0])

    @property
    def struck_at(self) -> int:
        """The changes when the fault came; 0 before."""
        return int(self._head[1])

    def strikes(self) -> None:
        """Say that the fault comes now."""
        self._head[1] = max(1, self.changes)

    @property
    def pids(self) -> list[int]:
        """Of the processes, by rank; a rank that has left keeps its place as 0."""
        return self._head[2:].tolist()

    def set_pid(self, rank: int, pid: int) -> None:
        """A rank has started, or left (0)."""
        self._head[2 + rank] = pid

    @property
    def stages(self) -> list[str]:
        """Of every change so far."""
        return [STAGES[number] for number in self._stages[: self.changes]]

    @property
    def times_s(self) -> list[float]:
        """When each change was made."""
        return [time_ns / 1e9 for time_ns in self._times[: self.changes].tolist()]

    def enter(self, path: str) -> int:
        """Count one change; returns its number, from 1."""
        number = self.changes
        self._stages[number] = STAGES.index(stage_of(path))
        self._times[number] = time.monotonic_ns()
        self._head[0] = number + 1
        return number + 1


def _shared(length: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, 8 * length), np.int64)


def stage_of(path: str) -> str:
    """The stage whose file this is."""
    if "/runs" not in path:
        return "shards"
    if "backbone" in path or "/pictures" in path:
        return "backbone"
    return "checkpoint" if "/checkpoints/" in path else "training"


def count_changes(board: Board, root: Path, *, before: Callable[[int], None]) -> None:
    """Count from now on what this process changes below ``root``.

    Args:
        board: Counts on where it stands.
        root: Of what is watched.
        before: Called with the number of each change just before it is made.
    """
    top = f"{root}/"

    def hook(event: str, words: tuple[object, ...]) -> None:
        if event in _CHANGES and (path := _changed(event, words)) and path.startswith(top):
            before(board.enter(path))

    sys.addaudithook(hook)


def _changed(event: str, words: tuple[object, ...]) -> str:
    """The path that is about to change; empty where nothing is."""
    if event == "open" and not (isinstance(words[2], int) and words[2] & _WRITES):
        return ""
    name = words[1] if event == "os.link" else words[0]
    if not isinstance(name, str | os.PathLike):
        return ""
    path = os.fspath(name)
    if event in ("os.remove", "os.rmdir") and isinstance(words[1], int) and words[1] >= 0:
        return f"{os.readlink(f'/proc/self/fd/{words[1]}')}/{path}"  # shutil.rmtree's way
    return path
