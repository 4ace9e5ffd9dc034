"""Every stretch gets its time, and a GPU is never made to wait for the clock."""

import time

import pytest
import torch

from foundation.watching.stopwatch import Stopwatch


def test_the_watch_gives_each_stretch_to_its_name() -> None:
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.02)
    watch.lap("wait")
    watch.lap("forward")
    watch.add("read", 0.5)
    watch.add("read", 0.25)
    whole, waiting = watch.take()
    assert set(whole) == {"wait", "forward", "read"}
    assert 0.02 <= whole["wait"] < 0.5
    assert whole["forward"] < 0.02
    assert whole["read"] == 0.75
    assert waiting == {}
    assert watch.take() == ({}, {})


def test_time_in_collective_calls_is_told_for_the_stretch_around_them() -> None:
    """Once, where one call makes another."""
    watch = Stopwatch(torch.device("cpu"))
    watch.lap("forward")
    with watch.collective(), watch.collective():
        time.sleep(0.02)
    time.sleep(0.02)
    watch.lap("backward")
    whole, waiting = watch.take()
    assert set(waiting) == {"backward"}
    assert 0.02 <= waiting["backward"] <= whole["backward"] - 0.02


class FakeEvent:
    """A device's stream: it passes an event 100 s after the host queued it."""

    now = 0.0
    waits = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def query(self) -> bool:
        return FakeEvent.now > self.at + 100

    def synchronize(self) -> None:
        FakeEvent.waits += not self.query()

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000 * (end.at - self.at)


def test_a_gpu_is_asked_only_when_the_line_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now", 0.0)
    monkeypatch.setattr(FakeEvent, "waits", 0)
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3000):
        FakeEvent.now += 0.25
        with watch.collective():
            FakeEvent.now += 0.5
        watch.lap("backward")
        FakeEvent.now += 1
        watch.lap("optimiser")
    assert FakeEvent.waits == 0
    assert len(watch._pending) < 2000, "what is done is counted on the way"
    whole, waiting = watch.take()
    assert whole == {"backward": 2250.0, "optimiser": 3000.0}
    assert waiting == {"backward": 1500.0}


@pytest.mark.gpu
def test_a_gpu_counts_work_where_it_was_queued() -> None:
    """The host returns at once, and the stretch has all the time all the same."""
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)
    (square @ square).sum().item()
    began = time.perf_counter()
    watch = Stopwatch(device)
    for _ in range(50):
        square @ square
    watch.lap("forward")
    queued_s = time.perf_counter() - began
    watch.lap("wait")
    whole = watch.take().whole
    took_s = time.perf_counter() - began
    assert whole["forward"] > 2 * queued_s
    assert whole["forward"] == pytest.approx(took_s, rel=0.3)
