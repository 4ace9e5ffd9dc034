"""The ranks of a job on this machine, as processes: started, signalled, waited for, named.

Ours, because torchrun gives a rank 30 s to save, dies of SIGUSR1, signals the reading processes
with their rank, and leaves with 1 whatever the rank said.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NamedTuple

from recipes.command import INTERRUPTED, STOPPED, USER_ERROR

_HOST = "127.0.0.1"
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_SIGNALLED = 128

_SPEAK_S = 1.0
"""What the other ranks have, once one failed, to say what they saw and to leave."""
_END_S = 10.0
"""And then, from SIGTERM to SIGKILL: one that waits for the lost rank in a call leaves so."""

_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,  # the terminal has gone; the run is to be kept
}
_SPEAKING = (USER_ERROR, INTERRUPTED, STOPPED)
"""Codes of a rank that said itself why it left; the first that any left with is the job's."""


class Left(NamedTuple):
    """How a job ended."""

    code: int
    """of the launcher"""
    line: str | None
    """names the rank at fault where that one could not speak for itself"""


def run_processes(command: Sequence[str], *, number: int) -> Left:
    """Run ``command`` as ranks 0 to ``number`` - 1 and wait for them as long as they take.

    SIGTERM, SIGUSR1, SIGINT and SIGHUP (as SIGTERM) go on to the ranks, to save and leave with
    STOPPED. A second SIGINT ends them at once; so does the sudden end of this process.
    """
    job = _Job()
    with _handling(job.pass_on), _reserved_port() as port:
        try:
            job.start(command, number=number, port=port)
            job.wait()
        finally:
            job.kill()
    return job.left()


class _Job:
    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._passed_on: set[int] = set()
        self._hurried: set[int] = set()
        self._interrupted = False

    def start(self, command: Sequence[str], *, number: int, port: int) -> None:
        """Each in a session of its own: a terminal's Ctrl-C then reaches it once, through us."""
        for rank in range(number):
            process = subprocess.Popen(
                command,
                env={**os.environ, **_variables(rank, number=number, port=port)},
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
            self._ranks.append(process)
            for early in self._passed_on:
                process.send_signal(early)

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal to the launcher: tell the ranks, and not what they have started."""
        passed = _PASSED_ON[signal.Signals(number)]
        if number == signal.SIGINT and signal.SIGINT in self._passed_on:
            self._interrupted = True
            self.kill()
            return
        self._passed_on.add(passed)
        for process in self._ranks:
            process.send_signal(passed)

    def wait(self) -> None:
        """Until all have ended; after a failure the others are given seconds."""
        failed_at: float | None = None
        while any(process.poll() is None for process in self._ranks):
            time.sleep(_POLL_S)
            if failed_at is None and self._failed():
                failed_at = time.monotonic()
            if failed_at is not None:
                self._hurry(time.monotonic() - failed_at)

    def kill(self) -> None:
        """SIGKILL to all that still run, with the processes they have started."""
        for process in self._ranks:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def left(self) -> Left:
        """What the codes of all ranks say together; the culprit's goes before its victims'."""
        codes = [process.wait() for process in self._ranks]
        if self._interrupted:
            return Left(INTERRUPTED, None)
        silent = {
            rank: code
            for rank, code in enumerate(codes)
            if code not in (0, *_SPEAKING) and rank not in self._hurried
        }
        faults = {rank: code for rank, code in silent.items() if -code not in self._passed_on}
        if faults:
            rank = min(faults, key=lambda each: faults[each] > 0)  # a signal before a code
            return Left(_exit_code(faults[rank]), _line(rank, faults[rank]))
        if silent:  # ended by what we passed on, before it listened: nothing is lost
            rank, code = next(iter(silent.items()))
            again = INTERRUPTED if code == -signal.SIGINT else STOPPED
            return Left(again, f"{_line(rank, code)} before it could save")
        return Left(next((code for code in _SPEAKING if code in codes), 0), None)

    def _failed(self) -> bool:
        return any(process.poll() not in (None, 0, STOPPED) for process in self._ranks)

    def _hurry(self, waited_s: float) -> None:
        running = {rank for rank, one in enumerate(self._ranks) if one.poll() is None}
        if waited_s > _SPEAK_S + _END_S:
            self._hurried |= running
            self.kill()
        elif waited_s > _SPEAK_S:
            for rank in running - self._hurried:
                self._ranks[rank].terminate()
            self._hurried |= running


def _line(rank: int, code: int) -> str:
    if code > 0:
        return f"rank {rank} left with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"rank {rank} was ended by {name}{memory}"


def _exit_code(code: int) -> int:
    return code if code >= 0 else _SIGNALLED - code


def _variables(rank: int, *, number: int, port: int) -> dict[str, str]:
    """What torch.distributed reads."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
    }


def _end_with_parent() -> Callable[[], object] | None:
    """Runs in a new rank: the kernel ends it when the launcher is killed.

    Else it would train on, unseen, and the job started again would find it in its folder.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that no other process is given while rank 0 is still on its way to listen there."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((_HOST, 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {
        number: signal.signal(number, handler)
        for number in _PASSED_ON
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # nohup
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
