"""A rank that is asked to stop: noted, told once, and ended at once only by a second SIGINT."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.running.stopping import StopRequest

HANGS = """
import sys, threading
from foundation.running.stopping import StopRequest
with StopRequest().listen():
    print("listening", flush=True)
    while True:
        threading.Event().wait(0.01)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_noted_and_told_once_on_rank_zero(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    with StopRequest().listen() as stop:
        assert stop.asked is None
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.asked == name
    once_more = "; once more stops at once" if name == "SIGINT" else ""
    assert capfd.readouterr().err == f"\n{name}: stopping after this step and saving{once_more}\n"


def test_the_first_signal_is_the_one_that_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with StopRequest().listen() as stop:
        for name in ("SIGUSR1", "SIGTERM", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), signal.Signals[name])
        assert stop.asked == "SIGUSR1"
    assert capfd.readouterr().err == "", "rank 0 tells it for all"


def test_handlers_are_what_they_were() -> None:
    names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(each) for each in names]
    with StopRequest().listen():
        os.kill(os.getpid(), signal.SIGINT)
        assert [signal.getsignal(each) for each in names] != before
    assert [signal.getsignal(each) for each in names] == before


def test_a_child_that_is_forked_does_not_answer_for_its_rank(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    with StopRequest().listen() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stop.asked is None else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert stop.asked is None
    assert capfd.readouterr().err == ""


def test_the_second_sigint_ends_a_rank_that_never_ends_its_step(project: Path) -> None:
    rank = subprocess.Popen(
        [sys.executable, "-c", HANGS],
        env={**os.environ, "PYTHONPATH": str(project), "RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout is not None
    assert rank.stderr is not None
    assert rank.stdout.readline() == "listening\n"
    for each in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        rank.send_signal(each)
        if each == signal.SIGINT:
            assert any("once more stops at once" in line for line in rank.stderr)
    assert rank.poll() is None
    rank.send_signal(signal.SIGINT)
    assert rank.wait(timeout=60) == -signal.SIGINT
    rank.communicate()
