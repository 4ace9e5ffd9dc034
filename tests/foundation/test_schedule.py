import pytest
from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule

from foundation.running.schedule import cosine, linear


def test_cosine_agrees_with_lightly_from_first_to_last_step() -> None:
    for step in range(20):
        want = cosine_schedule(step, 20, 0.994, 1.0)
        assert cosine(step, total=20, start=0.994, end=1.0) == pytest.approx(want, abs=1e-12)


def test_warm_up_agrees_with_lightly() -> None:
    for step in range(20):
        want = cosine_warmup_schedule(step, 20, 3e-4, 1e-6, 5, 0.0)
        got = cosine(step, total=20, start=3e-4, end=1e-6, warmup=5)
        assert got == pytest.approx(want, abs=1e-15)


def test_warm_up_rises_linearly_and_wastes_no_step() -> None:
    values = [cosine(step, total=10, start=1.0, end=0.0, warmup=4) for step in range(5)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_end_is_reached_and_kept() -> None:
    assert cosine(9, total=10, start=1.0, end=0.1) == 0.1
    assert cosine(50, total=10, start=1.0, end=0.1, warmup=3) == 0.1
    assert cosine(0, total=1, start=1.0, end=0.1) == 0.1


def test_linear_goes_from_start_to_end() -> None:
    values = [linear(step, total=5, start=0.04, end=0.08) for step in range(7)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08, 0.08, 0.08])
    assert linear(0, total=0, start=0.04, end=0.08) == 0.08
