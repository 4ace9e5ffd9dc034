"""Which rank the others wait for, from files alone; and what a stall leaves behind."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundation.watching.behind import HEARTBEATS, describe, find_lost, who_is_behind
from foundation.watching.heartbeat import STALLS, Heartbeat

NOW = 1_000_000.0


def write(folder: Path, rank: int, **changed: Any) -> None:
    entry = {
        "host": "node-7",
        "pid": 1234,
        "number": 80,
        "step": 451,
        "doing": "backward",
        "inside": "allreduce",
        "at": NOW - 60,
        "written": NOW - 1,
        "left": None,
    }
    path = folder / HEARTBEATS / f"rank-{rank:04d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entry | changed))


def behind(folder: Path, *, world_size: int = 3) -> list[tuple[int, str]]:
    found = who_is_behind(folder, world_size=world_size, now=NOW)
    return [(each.rank, each.state) for each in found]


def test_the_rank_that_has_come_least_far_is_behind(tmp_path: Path) -> None:
    for rank in range(3):
        write(tmp_path, rank)
    assert behind(tmp_path) == []
    write(tmp_path, 2, inside=None)
    assert behind(tmp_path) == [(2, "behind")]
    write(tmp_path, 1, number=77, doing="wait", inside=None)
    assert behind(tmp_path) == [(1, "behind")]
    write(tmp_path, 0, step=450, number=99)
    assert behind(tmp_path) == [(0, "behind")]
    (found,) = who_is_behind(tmp_path, world_size=3, now=NOW)
    assert str(found) == "rank 0 (node-7, 1234) has been for 60 s in step 450, still in 'backward'"


def test_silence_is_worse_and_a_file_that_cannot_be_read_is_silent(tmp_path: Path) -> None:
    write(tmp_path, 0)
    write(tmp_path, 1, number=3, step=1)
    write(tmp_path, 2, written=NOW - 31)
    assert behind(tmp_path) == [(2, "silent")]
    for bad in ("", "{", "[]", "{}", "\udcff"):
        path = tmp_path / HEARTBEATS / "rank-0002.json"
        path.write_bytes(bad.encode(errors="surrogateescape"))
        assert behind(tmp_path) == [(2, "silent")]
    told = describe(who_is_behind(tmp_path, world_size=7, now=NOW))
    assert told.startswith("rank 2 has never been heard of, rank 3 has")
    assert told.endswith(", and 2 more")


def test_a_rank_that_failed_is_told_from_those_that_lost_it(tmp_path: Path) -> None:
    write(tmp_path, 0, left="")
    write(tmp_path, 1, left="OutOfMemoryError")
    write(tmp_path, 2)
    assert behind(tmp_path) == [(1, "failed")]
    told = describe(who_is_behind(tmp_path, world_size=3, now=NOW))
    assert told == "rank 1 (node-7, 1234) failed (OutOfMemoryError) in step 451, then in 'backward'"


def live(folder: Path, ready: Any) -> None:
    with Heartbeat(folder, rank=1, world_size=2, step=450, stall_s=60, every_s=0.05) as heartbeat:
        heartbeat.beat(451, "forward")
        time.sleep(0.3)
        ready.set()
        time.sleep(60)


def test_a_killed_rank_is_dead_and_the_one_that_left_in_order_is_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=live, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with Heartbeat(tmp_path, rank=0, world_size=2, step=451, stall_s=60, every_s=0.05) as mine:
        for _ in range(3):
            mine.beat(451, "backward")
        time.sleep(0.3)
        (found,) = who_is_behind(tmp_path, world_size=2, now=time.time())
        assert (found.rank, found.state, found.doing) == (1, "behind", "forward")
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)  # not yet missed: a zombie
        found = find_lost(tmp_path, world_size=2)
        assert [(each.rank, each.state) for each in found] == [(1, "dead")]
        process.join()
        (found,) = find_lost(tmp_path, world_size=2)
        where = f"rank 1 ({socket.gethostname()}, {process.pid})"
        assert describe([found]) == f"{where} is gone since step 451, last seen in 'forward'"
    assert json.loads((tmp_path / HEARTBEATS / "rank-0000.json").read_text())["left"] == ""
    assert not (tmp_path / STALLS / "rank-0000.txt").exists()


def test_an_error_of_its_own_is_left_behind_by_class_alone(tmp_path: Path) -> None:
    def leave(error: Exception) -> str:
        with (
            pytest.raises(type(error)),
            Heartbeat(tmp_path, rank=0, world_size=1, step=0, stall_s=60),
        ):
            raise error
        text = (tmp_path / HEARTBEATS / "rank-0000.json").read_text()
        assert "patient" not in text
        return json.loads(text)["left"]

    assert leave(KeyError("patient 7")) == "KeyError"
    assert leave(RuntimeError("Connection closed by peer [::1]")) == ""


def test_a_stall_is_told_once_and_anew_after_the_next_beat(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 1, at=time.time(), written=time.time() + 60, step=3, number=1, doing="wait")
    with Heartbeat(tmp_path, rank=0, world_size=2, step=5, stall_s=0.2, every_s=0.02) as heartbeat:
        heartbeat.beat(5, "backward")
        time.sleep(0.6)
        heartbeat.beat(6, "forward")
        time.sleep(0.6)
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("stall: rank 0 has been for 0 s at step 5 in 'backward'; rank 1 (nod")
    assert "step 3, still in 'wait'; stacks are in" in told[0]
    assert "at step 6 in 'forward'" in told[1]
    stacks = (tmp_path / STALLS / "rank-0000.txt").read_text()
    assert stacks.count("at step") == 2
    assert "test_a_stall_is_told_once" in stacks


HOLDS_THE_INTERPRETER = """
import ctypes, sys, time
from pathlib import Path
from foundation.watching.heartbeat import Heartbeat

with Heartbeat(Path(sys.argv[1]), rank=0, world_size=1, step=0, stall_s=0.3, every_s=0.05) as beats:
    beats.beat(7, "wait")
    time.sleep(0.2)
    ctypes.PyDLL(None).sleep(2)  # in C, without letting any other thread run
    beats.beat(8, "wait")
    time.sleep(0.2)
"""


def test_a_thread_that_keeps_the_interpreter_is_seen_all_the_same(
    tmp_path: Path, project: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stacks = (tmp_path / STALLS / "rank-0000.txt").read_text()
    assert stacks.startswith("Timeout (0:00:00.45")
    assert 'File "<string>", line 9 in <module>' in stacks


def test_a_folder_that_went_away_ends_no_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Heartbeat(folder, rank=0, world_size=1, step=0, stall_s=60, every_s=0.02) as heartbeat:
        (folder / HEARTBEATS).rename(tmp_path / "aside")
        heartbeat.beat(1, "forward")
        time.sleep(0.2)
        (tmp_path / "aside").rename(folder / HEARTBEATS)
    assert capfd.readouterr().err.count("rank 0: no heartbeat (") == 1


def test_an_error_is_not_hidden_by_a_folder_that_is_gone(tmp_path: Path) -> None:
    def lose_folder_and_fail() -> None:
        shutil.rmtree(tmp_path / HEARTBEATS)
        shutil.rmtree(tmp_path / STALLS)
        raise ValueError("the run's own")

    with (
        pytest.raises(ValueError, match="the run's own"),
        Heartbeat(tmp_path, rank=0, world_size=1, step=0, stall_s=60),
    ):
        lose_folder_and_fail()


def test_a_beat_costs_next_to_nothing(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, rank=0, world_size=1, step=0, stall_s=60) as heartbeat:
        began = time.perf_counter()
        for step in range(10_000):
            heartbeat.beat(step, "forward")
        assert (time.perf_counter() - began) / 10_000 < 50e-6
