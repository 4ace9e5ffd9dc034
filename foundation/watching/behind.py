"""Which rank the others wait for, from what each rank last wrote of itself (``heartbeat.py``)."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

HEARTBEATS = "heartbeats"

_SILENT_S = 30.0
_DIES_S = 2.0
# What gloo says, which has no class of its own for it, of a connection that broke or timed out.
_LOST = ("closed by peer", "gloo/transport", "Connection reset")

State = Literal["dead", "silent", "failed", "behind"]

_LAST = {"dead": "last seen", "silent": "last heard of", "failed": "then", "behind": "still"}


class Behind(NamedTuple):
    """A rank that the others wait for, or wait for in vain."""

    rank: int
    state: State
    """dead: its process is gone. silent: no file, or none of late. failed: it left by an error.
    behind: it lives, and has come less far than the others"""
    host: str
    pid: int
    step: int
    doing: str
    for_s: float
    """since its last beat; infinite where it never had one"""
    error: str = ""
    """the class of what it failed by"""

    def __str__(self) -> str:
        who = f"rank {self.rank} ({self.host}, {self.pid})"
        if not self.host:
            return f"rank {self.rank} has never been heard of"
        what = {
            "dead": "is gone since",
            "silent": f"has been silent for {self.for_s:.0f} s, since",
            "failed": f"failed ({self.error}) in",
            "behind": f"has been for {self.for_s:.0f} s in",
        }[self.state]
        return f"{who} {what} step {self.step}, {_LAST[self.state]} in '{self.doing}'"


def who_is_behind(
    folder: Path, *, world_size: int, now: float, silent_s: float = _SILENT_S
) -> list[Behind]:
    """The ranks that the others wait for, from what all of them last wrote.

    Ranks whose process is gone; without any, those that are silent; without any, those that left
    by an error of their own; and else those that have come less far than the furthest: by beats,
    and at as many beats, those that are in no collective call while others are.

    Args:
        folder: Of the run. A file that is not there or cannot be read is a silent rank's.
        world_size: Of the job.
        now: Unix seconds.
        silent_s: A file that was not written for so long is a silent rank's.

    Returns:
        In the order of ranks; empty where all have come as far.
    """
    entries = {rank: _read(heartbeat_path(folder, rank)) for rank in range(world_size)}

    def found(state: State, is_so: Callable[[dict[str, Any]], bool]) -> list[Behind]:
        chosen = [(rank, entry) for rank, entry in entries.items() if is_so(entry)]
        return [_behind(rank, entry, state=state, now=now) for rank, entry in chosen]

    return (
        found("dead", _is_dead)
        or found("silent", lambda each: _is_silent(each, now=now, silent_s=silent_s))
        or found("failed", lambda each: bool(each.get("left")))
        or _furthest_behind(entries, now=now)
    )


def find_lost(folder: Path, *, world_size: int, wait_s: float = _DIES_S) -> list[Behind]:
    """:func:`who_is_behind`, for a rank whose connection broke: it asks for the one that is lost.

    A process closes its connections a moment before it is gone, so for ``wait_s`` this waits for
    one that is dead, silent or failed.
    """
    until = time.monotonic() + wait_s
    while True:
        found = who_is_behind(folder, world_size=world_size, now=time.time())
        if any(each.state != "behind" for each in found) or time.monotonic() > until:
            return found
        time.sleep(_DIES_S / 20)


def describe(found: list[Behind]) -> str:
    """One line: who is behind, three of them by name."""
    if not found:
        return "all ranks have come as far"
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(str(each) for each in found[:3]) + more


def lost_the_others(error: BaseException) -> bool:
    """Whether an error says only that another rank's end of a connection has gone."""
    from torch import distributed

    return isinstance(error, RuntimeError) and (
        isinstance(error, distributed.DistError) or any(word in str(error) for word in _LOST)
    )


def heartbeat_path(folder: Path, rank: int) -> Path:
    """What the rank writes, and all may read."""
    return folder / HEARTBEATS / f"rank-{rank:04d}.json"


def _read(path: Path) -> dict[str, Any]:
    """What a rank last wrote; nothing where that cannot be read."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entry if isinstance(entry, dict) and "pid" in entry else {}


def _behind(rank: int, entry: dict[str, Any], *, state: State, now: float) -> Behind:
    return Behind(
        rank,
        state,
        host=entry.get("host", ""),
        pid=entry.get("pid", 0),
        step=entry.get("step", 0),
        doing=entry.get("doing", ""),
        for_s=now - entry["at"] if entry else float("inf"),
        error=entry.get("left") or "",
    )


def _is_dead(entry: dict[str, Any]) -> bool:
    """Gone without a word; known of the processes of this host alone."""
    if not entry or entry["left"] is not None or entry["host"] != socket.gethostname():
        return False
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(entry["pid"])


def _is_zombie(pid: int) -> bool:
    """Ended, and not yet missed by the launcher; told by Linux alone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "ZX"


def _is_silent(entry: dict[str, Any], *, now: float, silent_s: float) -> bool:
    return not entry or (entry["left"] is None and now - entry["written"] > silent_s)


def _furthest_behind(entries: dict[int, dict[str, Any]], *, now: float) -> list[Behind]:
    places = {rank: (each["step"], each["number"]) for rank, each in entries.items()}
    behind = [rank for rank in entries if places[rank] == min(places.values())]
    if len(set(places.values())) == 1:
        behind = [rank for rank in entries if entries[rank]["inside"] is None]
        behind = [] if len(behind) == len(entries) > 1 else behind
    return [_behind(rank, entries[rank], state="behind", now=now) for rank in behind]
