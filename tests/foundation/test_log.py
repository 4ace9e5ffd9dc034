"""The log has each step once, whatever a run went through."""

import time
from pathlib import Path

import pytest
import torch

from foundation.log import LogConfig, LogError, Progress, RunLog, Stopwatch, check_log, read_log


def open_log(path: Path, *, start: int) -> RunLog:
    return RunLog(path, start=start, wandb=False, name="run", recipe={})


def test_a_resumed_run_cuts_the_lines_past_its_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = open_log(path, start=0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 6, "los')  # a kill in the middle of a line
    wall_s = read_log(path)[2]["wall_s"]
    log = open_log(path, start=3)
    assert log.wall_s == wall_s
    log.write({"step": 4, "loss": 0.5})
    log.close()
    lines = read_log(path)
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.5),
    ]
    assert lines[3]["wall_s"] >= wall_s


def test_each_line_is_there_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.jsonl", start=0)
    log.write({"step": 1, "loss": 0.25})
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == 0.25
    log.close()


def test_a_torn_last_line_is_left_out_when_reading(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


def test_the_watch_gives_each_stretch_to_its_name() -> None:
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.02)
    watch.lap("wait")
    watch.lap("forward")
    watch.add("read", 0.5)
    watch.add("read", 0.25)
    taken = watch.take()
    assert set(taken) == {"wait", "forward", "read"}
    assert 0.02 <= taken["wait"] < 0.2
    assert taken["forward"] < 0.02
    assert taken["read"] == 0.75
    assert watch.take() == {}


def test_progress_says_a_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(start=2, total=4)
    progress.show(3, {"loss": 0.5})
    assert capsys.readouterr().err == ""
    progress.show(4, {"loss": 0.25})
    assert capsys.readouterr().err == "step 4/4  loss 0.25  left 0:00\n"


def test_wandb_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check_log(LogConfig())
    with pytest.raises(LogError, match="wandb is not installed"):
        check_log(LogConfig(wandb=True))
