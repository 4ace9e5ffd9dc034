"""An alarm comes once, after patience and warm-up, and whether the run was interrupted or not."""

import json
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from foundation.watching.alarms import HEALTHY, Alarm, Alarms, Unhealthy, stop_for

NAME = "teacher_entropy"


def alarms(first_judged: int = 10, patience_steps: int = 4) -> Alarms:
    return Alarms(first_judged=first_judged, patience_steps=patience_steps)


def alarms_after(watch: Alarms, values: list[tuple[int, float]]) -> list[Alarm]:
    return [
        alarm
        for step, value in values
        for alarm in watch.see({"step": step, NAME: value, "loss": 1.0})
    ]


def fired(watch: Alarms, values: list[tuple[int, float]]) -> list[tuple[int, int]]:
    found = alarms_after(watch, values)
    assert {alarm.name for alarm in found} <= {NAME}
    return [(alarm.step, alarm.for_steps) for alarm in found]


def test_an_alarm_comes_after_patience_once_until_healthy_again() -> None:
    bad = [(step, 0.01) for step in range(20)]
    assert fired(alarms(), bad) == [(14, 4)]
    healthy = [(step, 0.8) for step in range(20, 25)]
    again = [(step, 0.999) for step in range(25, 35)]
    # Five readings span four steps, and three of them decide.
    assert fired(alarms(), bad + healthy + again) == [(14, 4), (27, 4)]


def test_the_median_decides_not_a_step_that_looks_otherwise() -> None:
    nearly_all_bad = [(step, 0.5 if step % 4 == 0 else 0.01) for step in range(30)]
    assert len(fired(alarms(), nearly_all_bad)) == 1
    nearly_all_good = [(step, 0.01 if step % 4 == 0 else 0.5) for step in range(30)]
    assert fired(alarms(), nearly_all_good) == []


def test_two_readings_are_needed_however_rare_they_are() -> None:
    assert fired(alarms(patience_steps=1), [(50, 0.01)]) == []
    assert fired(alarms(patience_steps=1), [(50, 0.01), (150, 0.03)]) == [(150, 100)]
    (alarm,) = alarms_after(alarms(patience_steps=1), [(50, 0.01), (150, 0.03)])
    assert alarm.value == pytest.approx(0.02)


def test_what_is_no_number_is_not_healthy() -> None:
    nan = float("nan")
    watch = alarms()
    assert not watch.see({"step": 10, NAME: nan})
    (alarm,) = watch.see({"step": 14, NAME: nan})
    assert "nan" in str(alarm)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_resumed_run_gives_the_alarms_of_an_undisturbed_one(cut: int) -> None:
    """The log's lines, alarms among them, are all that the second sitting knows."""
    values = [(step, 0.01 if step % 17 > 5 else 0.8) for step in range(40)]
    whole = fired(alarms(), values)
    assert len(whole) >= 2
    log: list[dict] = []
    first = alarms()
    for step, value in values[:cut]:
        log.append({"step": step, NAME: value})
        log += [alarm.line for alarm in first.see(log[-1])]
    second = alarms()
    for line in map(json.loads, map(json.dumps, log)):
        second.see(line)
    earlier = [(line["step"], line["for_steps"]) for line in log if "alarm" in line]
    assert earlier + fired(second, values[cut:]) == whole


def test_the_line_and_the_words_say_what_is_healthy_and_what_helps() -> None:
    watch = alarms(first_judged=0)
    watch.see({"step": 1, "ln_k_distance": 0.0, "gram_off_diagonal": 1.0})
    found = watch.see({"step": 6, "ln_k_distance": 0.0, "gram_off_diagonal": 1.0})
    by_name = {alarm.name: alarm for alarm in found}
    assert by_name["ln_k_distance"].line == {
        "step": 6,
        "alarm": "ln_k_distance",
        "value": 0.0,
        "healthy": [0.002, 0.95],
        "for_steps": 5,
    }
    assert "uniform collapse" in str(by_name["ln_k_distance"])
    assert "teacher_temp" in str(by_name["ln_k_distance"])
    assert "is 1, the median over 5 steps, and healthy is -1 to 0.9975: all scans" in str(
        by_name["gram_off_diagonal"]
    )
    assert "same features" in str(by_name["gram_off_diagonal"])


def test_every_range_has_words_for_each_side_that_can_be_reached() -> None:
    lowest = {
        name: -1.0 if name in ("gram_off_diagonal", "cls_patch_cosine") else 0.0 for name in HEALTHY
    }
    lowest["ln_k_distance"] = -99.0
    for name, healthy in HEALTHY.items():
        assert healthy.low < healthy.high
        assert bool(healthy.below) == (healthy.low > lowest[name])
        assert bool(healthy.above) == (healthy.high < 1.0)


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_run_stops_for_an_alarm_only() -> None:
    stop_for([])
    watch = alarms(first_judged=0)
    watch.see({"step": 1, NAME: 0.0})
    with pytest.raises(Unhealthy, match=r"after 9 steps .*constant output.*on_alarm=warn goes on"):
        stop_for(watch.see({"step": 9, NAME: 0.0}))
