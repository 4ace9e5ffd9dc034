"""Commands in forks of a process that has imported everything, as importing takes longest.

Each fork runs ``python -m MODULE WORDS`` as the real command would: its own arguments, environment,
standard streams and exit code. There is no launcher: every rank has to leave by itself.
"""

import ctypes
import os
import resource
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.faults.board import Board, count_changes
from tests.faults.jobs import Command, Job

LIMIT_S = 60.0  # for a command that takes two seconds
_POLL_S = 0.003
_LEAVE_S = 20.0  # for processes whose parent has gone, such as a compiler's
_SET_CHILD_SUBREAPER = 36


class Strike(NamedTuple):
    """A fault: when it comes, and what it does."""

    act: Callable[[Board], None]
    """called in rank 0's process, or from outside"""
    change: int
    """comes just before this change of files, counted from 1 ..."""
    delay_s: float | None = None
    """... or, from outside, this long after it"""
    resume_s: float | None = None
    """after which processes that were stopped go on; None leaves them stopped"""


class Ended(NamedTuple):
    """How a job ended."""

    codes: list[int]
    """of the last command that ran, by rank; below 0 a signal"""
    told: list[str]
    """what each rank wrote to stderr"""
    hung: bool
    left: list[str]
    """commands of processes that the job started and that stayed behind"""
    board: Board


def run_job(job: Job, *, place: Path, streams: Path, strike: Strike | None) -> Ended:
    """Run the commands of a job until one fails.

    Args:
        job: What to run.
        place: Changes below it are counted.
        streams: Folder for what the processes write to stdout and stderr.
        strike: The fault, if any.
    """
    board = Board()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    for command in job.commands:
        ended = _run(command, board=board, place=place, streams=streams, strike=strike)
        if ended.hung or ended.left or any(ended.codes):
            break
    return ended


def _run(
    command: Command, *, board: Board, place: Path, streams: Path, strike: Strike | None
) -> Ended:
    port = _free_port()
    for rank in range(command.ranks):
        pid = os.fork()
        if pid == 0:
            board.set_pid(rank, os.getpid())
            if rank == 0:
                _watch(board, place, strike)
            address = _address(rank, command.ranks, port)
            _be(command, environment=address, stream=streams / f"{rank}")
        board.set_pid(rank, pid)
    codes, hung = _Watcher(board, command.ranks, strike).wait()
    told = [(streams / f"{rank}.err").read_text(errors="replace") for rank in range(command.ranks)]
    return Ended(codes, told, hung, _left_behind(), board)


class _Watcher:
    """Waits for every process, and does from outside what a fault asks for."""

    def __init__(self, board: Board, ranks: int, strike: Strike | None) -> None:
        self._board, self._ranks, self._strike = board, ranks, strike
        self._codes: dict[int, int] = {}
        self._seen_s: float | None = None

    def wait(self) -> tuple[list[int], bool]:
        """Exit codes by rank, and whether they had to be ended."""
        began_s = time.monotonic()
        while len(self._codes) < self._ranks:
            self._collect()
            if time.monotonic() - began_s > LIMIT_S:
                signal_all(self._board, signal.SIGKILL)
                self._collect(flags=0)
                return self._sorted(), True
            self._disturb()
            time.sleep(_POLL_S)
        return self._sorted(), False

    def _sorted(self) -> list[int]:
        return [self._codes[rank] for rank in range(self._ranks)]

    def _collect(self, *, flags: int = os.WNOHANG) -> None:
        for rank in set(range(self._ranks)) - self._codes.keys():
            pid, status = os.waitpid(self._board.pids[rank], flags)
            if pid:
                self._codes[rank] = os.waitstatus_to_exitcode(status)
                self._board.set_pid(rank, 0)

    def _disturb(self) -> None:
        strike, board = self._strike, self._board
        if strike is None or board.changes < strike.change or len(self._codes) == self._ranks:
            return
        now_s = time.monotonic()
        self._seen_s = self._seen_s or now_s
        if not board.struck_at and now_s - self._seen_s >= (strike.delay_s or 0):
            board.strikes()
            strike.act(board)
        elif strike.resume_s is not None and now_s - self._seen_s >= strike.resume_s:
            signal_all(board, signal.SIGCONT)
        elif all(_is_stopped(pid) for pid in board.pids if pid):
            signal_all(board, signal.SIGKILL)  # as a launcher does when the others have left


def _left_behind() -> list[str]:
    """Command lines of orphans that do not leave by themselves; they are ended."""
    until_s = time.monotonic() + _LEAVE_S
    while pids := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if os.waitpid(-1, os.WNOHANG)[0] == 0 and time.monotonic() > until_s:
            break
        time.sleep(_POLL_S)
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in pids]
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)
    return [line.decode(errors="replace") for line in lines]


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def signal_all(board: Board, number: signal.Signals) -> None:
    """To every process of the job, this one last."""
    pids = [pid for pid in board.pids if pid]
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
        os.kill(pid, number)


def _watch(board: Board, place: Path, strike: Strike | None) -> None:
    def before(number: int) -> None:
        if strike and number == strike.change and strike.delay_s is None:
            board.strikes()
            strike.act(board)

    count_changes(board, place, before=before)


def _be(command: Command, *, environment: dict[str, str], stream: Path) -> NoReturn:
    """Become the command."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, end in ((1, "out"), (2, "err")):
            file = os.open(f"{stream}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            os.dup2(file, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & turns it off
        os.environ.update(environment)
        sys.argv = [command.module, *command.words]
        warnings.simplefilter("ignore")
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _address(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher tells each process; nothing to one that is alone."""
    if ranks == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
