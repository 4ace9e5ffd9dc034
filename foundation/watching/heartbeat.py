"""Each rank's sign of life, and the name of the one that the others wait for.

A rank writes ``heartbeats/rank-0003.json`` into the run's folder every few seconds: where it is and
since when, nothing about a scan. Any rank, on any node, reads from those who is behind.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

from foundation.watching.behind import (
    HEARTBEATS,
    describe,
    heartbeat_path,
    lost_the_others,
    who_is_behind,
)

STALLS = "stalls"

_EVERY_S = 5.0


class Beat(NamedTuple):
    """Where a rank is in the loop."""

    number: int
    """counts beats; all ranks beat alike, so the one with the lowest number is behind"""
    step: int
    doing: str
    at: float
    """unix seconds"""
    clock: float
    """monotonic seconds"""


class Heartbeat:
    """Of this rank: told by the loop where it is, written down by a thread.

    Where the loop has not moved for long, the thread dumps every thread's stack into
    ``stalls/rank-0003.txt``, once, and says on stderr who holds the others up: rank 0 says it, and
    whoever is behind. Where this very thread cannot run, because another one keeps the interpreter
    to itself, a watchdog without Python dumps the stacks instead.

    Attributes:
        inside: The collective call this rank waits in; None outside of any. Set from without.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        step: int,
        stall_s: float,
        every_s: float = _EVERY_S,
    ) -> None:
        """Nothing is written before the ``with``.

        Args:
            folder: Of the run, seen by all nodes.
            rank: This one.
            world_size: Of the job.
            step: Updates that the run goes on from.
            stall_s: Longest time without a beat that is no stall.
            every_s: Between two signs of life.
        """
        self.inside: str | None = None
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._stall_s = stall_s
        self._every_s = min(every_s, stall_s / 2)
        self._last = Beat(0, step, "start", time.time(), time.monotonic())
        self._told = self._armed = -1
        self._stacks: IO[str] | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def beat(self, step: int, doing: str) -> None:
        """The loop begins ``doing`` for the update after ``step``; every rank calls it as often."""
        self._last = Beat(self._last.number + 1, step, doing, time.time(), time.monotonic())

    def __enter__(self) -> "Heartbeat":
        for name in (HEARTBEATS, STALLS):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self._stacks = self._stacks_path.open("a", encoding="utf-8")
        with contextlib.suppress(OSError):  # a full disk is told by what needs it
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the thread, and leave a word how the rank left."""
        self._ends.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        assert self._stacks is not None
        with contextlib.suppress(OSError):  # must not stand before the error that ends the run
            self._stacks.close()
            if not self._stacks_path.stat().st_size:
                self._stacks_path.unlink()
            self._write(left=_how(error))

    @property
    def _stacks_path(self) -> Path:
        return self._folder / STALLS / f"rank-{self._rank:04d}.txt"

    def _watch(self) -> None:
        failed = False
        while not self._ends.is_set():
            try:
                self._look()
            except OSError as error:  # a full disk is told by what needs it, and only once by this
                if not failed:
                    print(f"rank {self._rank}: no heartbeat ({error})", file=sys.stderr, flush=True)
                failed = True
            self._ends.wait(self._every_s)

    def _look(self) -> None:
        last, stacks = self._last, self._stacks
        assert stacks is not None
        if last.number != self._armed:
            # Fires only where this thread does not come round again to see the stall itself.
            later = self._stall_s + 3 * self._every_s
            faulthandler.dump_traceback_later(later, exit=False, file=stacks)
            self._armed = last.number
        self._write()
        stalled_s = time.monotonic() - last.clock
        if stalled_s < self._stall_s or last.number == self._told:
            return
        self._told = last.number
        faulthandler.cancel_dump_traceback_later()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stacks.write(f"{now}  {stalled_s:.0f} s at step {last.step} in '{last.doing}'\n")
        stacks.flush()
        faulthandler.dump_traceback(stacks, all_threads=True)
        self._tell(last, stalled_s=stalled_s)

    def _tell(self, last: Beat, *, stalled_s: float) -> None:
        found = who_is_behind(self._folder, world_size=self._world_size, now=time.time())
        if self._rank and self._rank not in {each.rank for each in found}:
            return
        print(
            f"stall: rank {self._rank} has been for {stalled_s:.0f} s at step {last.step} in "
            f"'{last.doing}'; {describe(found)}; stacks are in {self._stacks_path.parent}",
            file=sys.stderr,
            flush=True,
        )

    def _write(self, *, left: str | None = None) -> None:
        last = self._last
        entry = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "number": last.number,
            "step": last.step,
            "doing": last.doing,
            "inside": self.inside,
            "at": round(last.at, 3),
            "written": round(time.time(), 3),
            "left": left,
        }
        path = heartbeat_path(self._folder, self._rank)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(entry), encoding="utf-8")
        beside.replace(path)


def _how(error: BaseException | None) -> str:
    """The class of a rank's own error; empty where it left in order, or for another's sake."""
    if error is None or isinstance(error, SystemExit) or lost_the_others(error):
        return ""
    return type(error).__name__
