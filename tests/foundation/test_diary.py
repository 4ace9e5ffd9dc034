"""Two ranks, of which one is slow: the log says which, where, and how long the other waited."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.watching.communication import timing_collectives
from foundation.watching.stopwatch import Stopwatch


@pytest.fixture(scope="module")
def found(project: Path) -> list[dict[str, Any]]:
    """Two lines of the log, of two updates each, and a last word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("diary_ranks.py")), str(port)],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_says_where_the_time_of_every_rank_went(found: list[dict[str, Any]]) -> None:
    first, second, _ = found
    assert (first["step"], second["step"]) == (2, 4)
    ranks = first["ranks"]
    assert ranks.keys() >= {"wait", "augment", "forward", "backward", "communication", "read"}
    assert ranks["wait"][1] > 0.35
    assert ranks["wait"][0] < 0.3
    assert min(ranks["augment"]) > 0.035
    assert max(ranks["forward"]) < 0.1
    assert ranks["read"] == [1.0, 1.0]
    # Rank 0 has nothing else to do in the backward pass than to wait for rank 1.
    assert ranks["communication"][0] > 0.3
    assert ranks["communication"][0] >= ranks["backward"][0] * 0.9
    assert first["seconds"]["communication"] == pytest.approx(ranks["communication"][0], abs=1e-4)
    loop = ("wait", "augment", "forward", "backward", "optimiser", "log")
    elapsed = sum(second["seconds"][name] for name in loop)
    assert second["scans_per_s"] == pytest.approx(4 / elapsed, rel=1e-2)


def test_the_straggler_is_named(found: list[dict[str, Any]]) -> None:
    for line in found[:2]:
        assert line["straggler"]["rank"] == 1
        assert line["straggler"]["stretch"] == "wait"
        assert line["straggler"]["behind_s"] > 0.3
        assert line["straggler"]["share"] > 0.25


def test_who_waits_in_a_stall_has_its_stacks_written(found: list[dict[str, Any]]) -> None:
    """Rank 0 waits for 1.4 s in the last update, and may for 0.4 s."""
    stacks = found[-1]["stacks"]
    assert "at step 3 in 'backward'" in stacks
    assert "sum_over_ranks" in stacks or "_reduced" in stacks


def test_timing_a_call_costs_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wait that is none."""
    monkeypatch.setattr(torch.distributed.Work, "wait", lambda self: self)
    watch = Stopwatch(torch.device("cpu"))
    with timing_collectives(watch, heartbeat=None):
        wait, began = torch.distributed.Work.wait, time.perf_counter()
        for _ in range(5000):
            wait(None)
        took_s = time.perf_counter() - began
        watch.lap("backward")
    assert took_s / 5000 < 50e-6
    assert 0 < watch.take().waiting["backward"] < took_s
