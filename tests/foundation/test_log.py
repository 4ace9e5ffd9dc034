"""The log has each step once, whatever a run went through."""

import io
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.log import LogConfig, LogError, Progress, RunLog, check_log, clock, read_log


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


def test_a_damaged_line_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    lines = [b'{"step": 1}', b'{"st\xffp": 2}', b"[3]", b'{"step": 4}', b'{"step": 5']
    path.write_bytes(b"\n".join(lines))
    assert read_log(path) == [{"step": 1}, {"step": 4}]
    open_log(path, start=9).close()
    assert "log.jsonl: 2 damaged lines are left out" in capsys.readouterr().err
    open_log(path, start=9).close()
    assert not capsys.readouterr().err


def test_a_full_disk_is_told_with_the_place(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.jsonl", start=0)
    with Path("/dev/full").open("ab", buffering=0) as full:
        log._file = io.TextIOWrapper(full)
        with pytest.raises(OSError, match=r"No space left on device: '.*log\.jsonl'"):
            log.write({"step": 1, "loss": 0.5})
        log._file.detach()


def test_what_went_wrong_stays_told(tmp_path: Path) -> None:
    """Whatever step the run goes on from, or goes back to."""
    log = open_log(tmp_path / "log.jsonl", start=0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0})
    log.write({"step": 6, "incident": "loss"})
    log.rewind(2)
    log.write({"step": 3, "loss": 2.0})
    log.close()
    found = [(line["step"], line.get("loss")) for line in read_log(tmp_path / "log.jsonl")]
    assert found == [(1, 1.0), (2, 1.0), (6, None), (3, 2.0)]


def test_progress_says_a_line_at_first_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(start=2, total=5, scans_per_step=8)
    progress.show(3, {"loss": 0.5})
    assert re.fullmatch(
        r"step 3/5  loss 0\.5  [0-9.e+]+ scans/s  left 0:00\n", capsys.readouterr().err
    )
    progress.show(4, {"loss": 0.4})
    assert capsys.readouterr().err == ""
    progress.show(5, {"loss": 0.25}, note="rank 1 is slow")
    assert "scans/s  rank 1 is slow  left 0:00" in capsys.readouterr().err


def test_progress_tells_the_speed_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four seconds an update, of 8 scans; a line every third update."""
    now = [0.0]
    monkeypatch.setattr("foundation.log.time.monotonic", lambda: now[0])
    progress = Progress(start=0, total=100_000, scans_per_step=8)
    for step in range(1, 8):
        now[0] += 4
        progress.show(step, {})
    told = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in told] == [f"step {n}/100000" for n in (1, 4, 7)]
    assert {line.split("  ")[1] for line in told} == {"2 scans/s"}
    assert told[-1].endswith("left 4 days 15:06:12")  # (100000 - 7) * 4 s


def test_a_run_taken_back_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(start=0, total=9, scans_per_step=1)
    for step in (1, 2, 3, 2, 9):
        progress.show(step, {})
    assert capsys.readouterr().err.splitlines()[-1].startswith("step 9/9")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(9.7, "0:09"), (3599, "59:59"), (3600, "1:00:00"), (90061, "1 day 1:01:01")],
)
def test_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


class FakeRun:
    """What wandb's run is told."""

    def __init__(self) -> None:
        self.metrics: list[tuple] = []
        self.lines: list[dict] = []

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, line: dict) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        pass


def test_a_resumed_run_appends_to_the_same_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are done again are sent again, on an axis of their own; so are alarms."""
    wandb = pytest.importorskip("wandb")
    begun, run = [], FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **given: begun.append(given) or run)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for start in (0, 2):
        log = RunLog(tmp_path / "log.jsonl", start=start, wandb=True, name="run", recipe={})
        for step in (start + 1, start + 2, start + 3):
            log.write({"step": step, "loss": 1.0})
        log.write({"step": start + 3, "alarm": "rankme"})
        log.close()
    assert os.environ["WANDB_MODE"] == "offline"
    assert begun[0]["id"] == begun[1]["id"]
    assert {each["resume"] for each in begun} == {"allow"}
    assert run.metrics == [("*", "step")] * 2
    assert [line["step"] for line in run.lines] == [1, 2, 3, 3, 3, 4, 5, 5]
    assert [line["step"] for line in run.lines if "alarm" in line] == [3, 5]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Of an offline file: 7 bytes of greeting, then LevelDB's log of blocks of 32 KiB."""
    position, record = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, size, part = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if part in (1, 4):  # the whole of a record, or its last part
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_itself_keeps_both_sittings(tmp_path: Path) -> None:
    """Its offline files, read back: two of one run, in which nothing was dropped."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for start in (0, 2):
        log = RunLog(tmp_path / "log.jsonl", start=start, wandb=True, name="run", recipe={"a": 1})
        for step in range(start + 1, start + 4):
            log.write({"step": step, "loss": 1.0 / step, "seconds": {"wait": 0.5}})
        log.write({"step": start + 3, "alarm": "rankme"})
        log.close()
        time.sleep(1.1)  # a folder is named by the second
    runs, steps, axes = set(), [], set()
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
            elif kind == "metric":
                axes.add((record.metric.glob_name or record.metric.name, record.metric.step_metric))
            elif kind == "history":
                items = {item.key or item.nested_key[0]: item for item in record.history.item}
                steps.append(int(items["step"].value_json))
    assert len(runs) == 1
    assert steps == [1, 2, 3, 3, 3, 4, 5, 5]
    assert ("*", "step") in axes


def test_wandb_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check_log(LogConfig())
    with pytest.raises(LogError, match="wandb is not installed"):
        check_log(LogConfig(wandb=True))
