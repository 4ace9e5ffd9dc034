"""Damaged input of every kind, in a process that is watched: no crash, no hang, no partial sample.

A failure names its case; ``python -m tests.shards.fuzz_worker N N+1`` runs it again.
"""

import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

CASE_S = 5.0  # longest that one case may take
BUILD_S = 60.0  # one that starts a builder's processes
WORKER = (sys.executable, "-m", "tests.shards.fuzz_worker")
START_S = 120.0  # longest that a worker may take to load its libraries and write its seeds


class Watched:
    """A worker and the lines it prints."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put("")

    def line(self, *, within_s: float) -> str | None:
        """The next line; empty when the worker ended, None when it says nothing in time."""
        try:
            return self.lines.get(timeout=within_s)
        except queue.Empty:
            return None

    def close(self) -> int:
        self.process.kill()
        return self.process.wait()


def run_cases(
    first: int, stop: int, *, folder: Path, command: Sequence[str] = WORKER, case_s: float = CASE_S
) -> tuple[Counter[str], list[str]]:
    """Run all cases, a new worker after each that crashed or hung.

    Args:
        first, stop: Numbers of the cases.
        folder: Where the command runs.
        command: Starts a worker; the two numbers follow.
        case_s: Longest that one case may take.

    Returns:
        How many cases ended, by kind of input; and a line for each failure.
    """
    ended: Counter[str] = Counter()
    failures: list[str] = []
    while first < stop:
        worker = Watched([*command, str(first), str(stop)], folder)
        begun, within_s = "", START_S
        while line := worker.line(within_s=within_s):
            what, number, told = [*line.split(" ", 2), ""][:3]
            if what == "begin":
                begun, first = f"{number} {told}", int(number) + 1
                within_s = BUILD_S if told == "build" else case_s
                continue
            if told.startswith("FAIL"):
                failures.append(f"{begun}: {told}")
            ended[begun.split(" ")[1]] += 1
            begun, within_s = "", case_s
        code = worker.close()
        if begun:
            failures.append(
                f"{begun}: " + ("hangs" if line is None else f"ends the process ({code})")
            )
        elif first < stop:
            failures.append(f"the worker ends before case {first} ({code})")
            break
    return ended, failures


def _check(first: int, stop: int, project: Path) -> None:
    ended, failures = run_cases(first, stop, folder=project)
    assert not failures, "\n".join([f"{len(failures)} cases of {stop - first} fail", *failures])
    assert ended.total() == stop - first
    assert len(ended) >= 20, "some kinds of input were not tried"


FAULTY = """
import os, sys, time
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    print("begin", number, "toy", flush=True)
    if number == 2:
        os.kill(os.getpid(), 11)
    if number == 4:
        time.sleep(60)
    print("end", number, "FAIL it lies" if number == 5 else "1 scans", flush=True)
"""


def test_a_crash_a_hang_and_a_failure_are_seen(tmp_path: Path) -> None:
    command = (sys.executable, "-c", FAULTY)
    ended, failures = run_cases(0, 7, folder=tmp_path, command=command, case_s=1.0)
    assert failures == ["2 toy: ends the process (-11)", "4 toy: hangs", "5 toy: FAIL it lies"]
    assert ended == {"toy": 5}


def test_damaged_input(project: Path) -> None:
    _check(0, 215, project)


@pytest.mark.slow
def test_much_damaged_input(project: Path) -> None:
    _check(215, 4300, project)
