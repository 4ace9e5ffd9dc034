"""A run in trouble, one rank: what is written down, and where it goes back to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from foundation.checkpoint import CheckpointWriter, Keep, Snapshot, write_checkpoint
from foundation.log import RunLog, read_log
from foundation.safety import Incident, SafetyConfig, read_incidents
from foundation.watching.alarms import Alarm, Unhealthy
from foundation.watching.finite import MicroBatch, agree
from foundation.watching.guard import Guard, NotFinite, Update

NAN = float("nan")
COLLAPSE = Alarm(170, "feature_std", 0.01, for_steps=50)
Start = Callable[..., Guard]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(steps of healthy checkpoints)``: a guard, whose log holds lines up to step 170."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    keep = Keep(9)

    def begin(*healthy: int, step: int = 0, unhealthy: int | None = None, **limits: int) -> Guard:
        for done in healthy:
            write_checkpoint(tmp_path / "checkpoints", Snapshot(done, {}, {}, {}, ""), keep=keep)
        if unhealthy:
            state = {"healthy": False}
            snapshot = Snapshot(unhealthy, {}, {}, state, "")
            write_checkpoint(tmp_path / "checkpoints", snapshot, keep=keep)
        log = RunLog(tmp_path / "log.jsonl", start=step, wandb=False, name="small", recipe={})
        for done in range(step + 10, 180, 10):
            log.write({"step": done, "loss": 2.0})
        return Guard(
            SafetyConfig(cool_steps=20, tolerance=1, **limits),
            folder=tmp_path,
            step=step,
            recent_losses=[],
            rolls_back_on_collapse=True,
            writer=CheckpointWriter(tmp_path / "checkpoints", keep=keep),
            log=log,
        )

    yield begin
    dist.destroy_process_group()


def update(done: int, *, loss: float = 2.0, norm: float = 1.0, alarms: tuple = ()) -> Update:
    seen = [MicroBatch({"loss": torch.tensor(loss)}, [f"scan-{done}"], 0.0)]
    return Update(done, loss, norm, alarms, seen)


def test_nothing_is_wrong(start: Start, tmp_path: Path) -> None:
    guard = start(100)
    for done in range(1, 170):
        assert guard.after(update(done)) is None
    quality = Alarm(170, "knn_auroc", 0.1, for_steps=50)
    assert guard.after(update(170, alarms=(quality,))) is None
    assert not (tmp_path / "incidents.json").exists()


@pytest.mark.parametrize(("loss", "norm", "kind"), [(NAN, 1.0, "loss"), (2.0, NAN, "gradient")])
def test_numbers_that_are_none(
    start: Start, tmp_path: Path, loss: float, norm: float, kind
) -> None:
    guard = start(40, 100, 160)
    assert guard.after(update(171, loss=loss, norm=norm)) is None
    [line] = [line for line in read_log(tmp_path / "log.jsonl") if "incident" in line]
    assert (line["step"], line["incident"], line["applied"]) == (171, kind, False)
    assert line["samples"] == [{"rank": 0, "loss": repr(loss), "scans": ["scan-171"]}]
    assert line["lr_scale"] == 0.5

    assert guard.after(update(172, loss=loss, norm=norm)) == 160
    assert guard.ladder.passed == 12
    steps = [each["step"] for each in read_log(tmp_path / "log.jsonl") if "incident" not in each]
    assert steps == list(range(10, 161, 10))
    assert read_incidents(tmp_path / "incidents.json", up_to=160) == [Incident(160, "rollback", 12)]

    # Again at once: an older one, and what came after it is gone.
    assert [guard.after(update(done, loss=loss, norm=norm)) for done in (162, 163)] == [None, 100]
    assert guard.ladder.passed == 12 + 63
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-000040", "step-000100"]
    # A resumed run knows of both.
    assert [each.kind for each in start(step=100).ladder.incidents] == ["rollback", "rollback"]

    assert guard.after(update(102, loss=loss, norm=norm)) is None
    with pytest.raises(NotFinite, match="rolled back 2 times"):
        guard.after(update(103, loss=loss, norm=norm))


def test_without_a_way_back_it_stops(start: Start) -> None:
    guard = start(unhealthy=100)
    assert guard.after(update(171, loss=NAN)) is None
    with pytest.raises(NotFinite, match=r"after 172 steps .* no healthy checkpoint to go back to"):
        guard.after(update(172, loss=NAN))


def test_a_spike_cools_and_a_second_one_goes_back(start: Start, tmp_path: Path) -> None:
    guard = start(100)
    generator = torch.Generator().manual_seed(0)
    noise = (0.01 * torch.randn(400, generator=generator)).tolist()
    found = {}
    for done in range(1, 300):
        loss = 2 + noise[done] + (3 if done > 150 else 0) + (3 if done > 262 else 0)
        before = guard.ladder.num_rollbacks
        back = guard.after(update(done, loss=loss))
        if back or guard.ladder.incidents[-1:] == [Incident(done, "spike")]:
            found[done] = (back, guard.ladder.num_rollbacks - before)
    assert found == {153: (None, 0), 265: (None, 0)}
    assert guard.ladder.lr_scale(265) == 0.5
    assert "the loss has jumped" not in (tmp_path / "log.jsonl").read_text()


def test_collapsed_features_go_back_to_before_they_were(start: Start) -> None:
    guard = start(40, 100, 160)
    assert guard.after(update(170, alarms=(COLLAPSE,))) == 100
    assert guard.ladder.lr_scale(100) == 0.5


def test_collapse_without_a_way_back_is_an_alarm_only(start: Start) -> None:
    guard = start(160)
    assert guard.after(update(170, alarms=(COLLAPSE,))) is None
    with pytest.raises(Unhealthy, match=r"collapse \(feature_std\); .*max_rollbacks is 0"):
        start(40, step=160, max_rollbacks=0).after(update(170, alarms=(COLLAPSE,)))


def test_one_call_agrees_on_means_and_on_stopping(start: Start) -> None:
    start()
    seen = [
        MicroBatch({"loss": torch.tensor(value), "other": torch.tensor(1.0)}, ["a"], 0.0)
        for value in (1.0, 4.0)
    ]
    assert agree(seen, stop=False) == ({"loss": 2.5, "other": 1.0}, False)
    assert agree(seen, stop=True) == ({"loss": 2.5, "other": 1.0}, True)
