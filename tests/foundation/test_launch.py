"""The launcher with ranks that are small scripts: what goes to them, and what is made of codes."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from foundation.launch import LaunchError, check_alone, main

RANK = """
import os, signal, sys, time
from foundation.running.stopping import StopRequest

rank = int(os.environ["RANK"])
how = sys.argv[1 + rank]

def line(text):
    os.write(1, f"{rank} {text}\\n".encode())

if how.isdigit():
    sys.exit(int(how))
if how.startswith("SIG"):
    time.sleep(0.3)
    os.kill(os.getpid(), signal.Signals[how])
if how == "early":
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    line("ready")
    time.sleep(60)
if how == "child":
    if os.fork() == 0:
        signal.signal(signal.SIGUSR1, lambda *_: line("a child was told"))
        line("ready")
        time.sleep(60)
with StopRequest().listen() as stop:
    line("ready")
    while stop.asked is None or how == "deaf":
        time.sleep(0.01)
    line(stop.asked)
    time.sleep(0.4 if how == "saves" else 0)
    line("saved")
    sys.exit(75)
"""

ENDS_S = 60
"""What nothing here should take."""

FORK = get_context("fork")


class Job:
    """A launcher, forked from here in a session of its own, so that it starts at once."""

    def __init__(self, folder: Path, project: Path, *hows: str) -> None:
        (folder / "scripted.py").write_text(RANK)
        self._out, self._err = folder / "out", folder / "err"
        self._process = FORK.Process(target=self._run, args=(project, hows))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _run(self, project: Path, hows: Sequence[str]) -> None:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGINT):  # the tests may run under nohup
            signal.signal(number, signal.SIG_DFL)
        for number, path in ((1, self._out), (2, self._err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.stderr = os.fdopen(2, "w")
        os.environ["PYTHONPATH"] = f"{project}:{self._out.parent}"
        sys.path.insert(0, str(self._out.parent))
        sys.argv = ["launch", str(len(hows)), "scripted", *hows]
        main()

    def says(self, text: str, *, times: int) -> None:
        """Wait until it is said on either of the two."""
        deadline = time.monotonic() + ENDS_S
        while (self.out + self.err).count(text) < times:
            assert self._process.exitcode is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)

    def left(self) -> int | None:
        """The launcher's exit code."""
        self._process.join(ENDS_S)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    @property
    def out(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""


@pytest.fixture
def start(tmp_path: Path, project: Path) -> Callable[..., Job]:
    """``start("saves", "2")``: a job whose rank 0 saves when asked, whose rank 1 leaves with 2."""
    return lambda *hows: Job(tmp_path, project, *hows)


Start = Callable[..., Job]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_reaches_each_rank_once_and_is_waited_for(start: Start, name: str) -> None:
    """Rank 0 is still saving when rank 1 has left: nobody hurries it."""
    job = start("saves", "listens")
    job.says("ready", times=2)
    os.kill(job.pid, signal.Signals[name])
    assert job.left() == 75
    said = ["0 ready", f"0 {name}", "0 saved", "1 ready", f"1 {name}", "1 saved"]
    assert sorted(job.out.splitlines()) == sorted(said)
    assert job.err.startswith(f"\n{name}: stopping after this step and saving")
    assert "error" not in job.err


def test_a_hangup_is_told_as_a_request_to_stop(start: Start) -> None:
    job = start("listens")
    job.says("ready", times=1)
    os.kill(job.pid, signal.SIGHUP)
    assert (job.left(), job.out) == (75, "0 ready\n0 SIGTERM\n0 saved\n")


def test_a_terminals_interrupt_comes_once(start: Start) -> None:
    """To the whole group of the launcher, as a terminal does it; the second time ends all."""
    job = start("deaf", "deaf")
    job.says("ready", times=2)
    ranks = psutil.Process(job.pid).children()
    assert job.pid not in {os.getpgid(each.pid) for each in ranks}
    os.killpg(job.pid, signal.SIGINT)
    job.says("once more stops at once", times=1)
    assert len(psutil.wait_procs(ranks, timeout=0.3)[1]) == 2
    os.killpg(job.pid, signal.SIGINT)
    assert job.left() == 130
    assert "error" not in job.err
    assert not any(each.is_running() for each in ranks)


def test_what_a_rank_has_started_is_not_told(start: Start) -> None:
    job = start("child")
    job.says("ready", times=2)
    (rank,) = psutil.Process(job.pid).children()
    (child,) = rank.children()
    os.kill(job.pid, signal.SIGUSR1)
    assert job.left() == 75
    assert not psutil.wait_procs([child], timeout=0.3)[0]
    child.kill()
    assert job.out.splitlines() == ["0 ready", "0 ready", "0 SIGUSR1", "0 saved"]


@pytest.mark.parametrize(
    ("hows", "code", "line"),
    [
        (("0", "0"), 0, None),
        (("0", "SIGKILL"), 137, "error: rank 1 was ended by SIGKILL (out of memory?)"),
        (("2", "SIGSEGV"), 139, "error: rank 1 was ended by SIGSEGV"),
        (("2", "1"), 1, "error: rank 1 left with code 1"),
        (("listens", "9"), 9, "error: rank 1 left with code 9"),
        (("2", "75"), 2, None),
        (("130", "130"), 130, None),
        (("75", "0"), 75, None),
    ],
)
def test_the_rank_at_fault_is_named(
    start: Start, hows: tuple[str, ...], code: int, line: str | None
) -> None:
    job = start(*hows)
    assert job.left() == code, job.err
    told = [each for each in job.err.splitlines() if each.startswith("error")]
    assert told == ([line] if line else [])
    assert not line or job.err.splitlines()[-1] == line


def test_a_rank_that_was_still_starting_is_started_again(start: Start) -> None:
    job = start("listens", "early")
    job.says("ready", times=2)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.left() == 75
    assert job.err.endswith("rank 1 was ended by SIGUSR1 before it could save\n")


def test_no_rank_outlives_a_launcher_that_is_killed(start: Start) -> None:
    job = start("deaf", "deaf")
    job.says("ready", times=2)
    ranks = psutil.Process(job.pid).children()
    assert len(ranks) == 2
    job.kill()
    assert job.left() == -signal.SIGKILL
    assert not psutil.wait_procs(ranks, timeout=ENDS_S)[1]


@pytest.mark.slow
def test_a_rank_that_hangs_after_another_died_is_ended(start: Start) -> None:
    began = time.monotonic()
    job = start("deaf", "SIGKILL")
    assert job.left() == 137
    assert time.monotonic() - began > 5, "it had its time"
    assert job.err.endswith("error: rank 1 was ended by SIGKILL (out of memory?)\n")


def test_srun_starts_ranks_and_not_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    check_alone()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(LaunchError, match="srun starts this launcher 2 times"):
        check_alone()
