"""What incidents ask for, by hand; a spike is told from noise and from a slope."""

from pathlib import Path

import numpy as np
import pytest

from foundation.safety import (
    Incident,
    Ladder,
    SafetyConfig,
    Spikes,
    not_finite,
    read_incidents,
    write_incidents,
)

CONFIG = SafetyConfig(cool_factor=0.5, cool_steps=10, tolerance=2, max_rollbacks=2)


def test_each_incident_cools_for_a_while() -> None:
    ladder = Ladder(CONFIG)
    assert ladder.lr_scale(20) == 1
    assert not ladder.note(Incident(21, "loss"))
    assert [ladder.lr_scale(step) for step in (20, 21, 30, 31)] == [1, 0.5, 0.5, 1]
    assert not ladder.note(Incident(25, "gradient"))
    assert [ladder.lr_scale(step) for step in (25, 30, 31, 34, 35)] == [0.25, 0.25, 0.5, 0.5, 1]
    assert [ladder.is_healthy(step) for step in (20, 21, 34, 35)] == [True, False, False, True]


def test_one_too_many_in_a_stretch_rolls_back() -> None:
    ladder = Ladder(CONFIG)
    assert [ladder.note(Incident(step, "loss")) for step in (1, 2)] == [False, False]
    assert not ladder.note(Incident(12, "loss")), "those of long ago no longer count"
    assert [ladder.note(Incident(step, "loss")) for step in (13, 14)] == [False, True]


def test_the_scans_since_the_checkpoint_are_passed_over() -> None:
    ladder = Ladder(CONFIG, [Incident(5, "loss"), Incident(33, "loss"), Incident(34, "loss")])
    assert ladder.before(35) == 35
    ladder.roll_back(at=35, to=30)
    assert ladder.incidents == [Incident(5, "loss"), Incident(30, "rollback", 5)]
    assert (ladder.passed, ladder.num_rollbacks) == (5, 1)
    assert ladder.lr_scale(30) == 0.5
    assert ladder.is_healthy(30)
    assert ladder.may_roll_back()
    # Trouble again at once: that checkpoint had it in it. Update 36 saw the scans of 41.
    assert ladder.before(36) == 30
    ladder.roll_back(at=36, to=20)
    assert ladder.passed == 5 + 16
    assert ladder.num_rollbacks == 2
    assert not ladder.may_roll_back()
    assert ladder.before(60) == 60


def test_incidents_are_kept_beside_the_log(tmp_path: Path) -> None:
    path = tmp_path / "incidents.json"
    assert read_incidents(path, up_to=100) == []
    kept = [Incident(5, "loss"), Incident(30, "rollback", 5), Incident(41, "spike")]
    write_incidents(path, kept)
    assert read_incidents(path, up_to=100) == kept
    assert read_incidents(path, up_to=30) == kept[:2]


def test_which_number_is_none() -> None:
    assert not_finite(float("nan"), 1.0) == "loss"
    assert not_finite(float("inf"), float("inf")) == "loss"
    assert not_finite(1.0, float("inf")) == "gradient"
    assert not_finite(1.0, 2.0) is None


def seen(losses: np.ndarray, deviations: float | None = 10.0) -> list[int]:
    spikes = Spikes(deviations)
    return [step for step, loss in enumerate(losses) if spikes.see(float(loss))]


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_a_falling_loss_are_no_spike(seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(2000)
    assert not seen(3 + 0.3 * noise)
    assert not seen(6 * np.exp(-np.arange(2000) / 300) + 1 + 0.05 * noise)
    assert not seen(np.full(500, 2.0))


@pytest.mark.parametrize("seed", range(3))
def test_a_jump_that_stays_is_one(seed: int) -> None:
    losses = 3 + 0.1 * np.random.default_rng(seed).standard_normal(400)
    losses[250] += 50
    assert not seen(losses), "one odd batch is none"
    losses[300:] += 4
    found = seen(losses)
    assert len(found) == 1
    assert 300 < found[0] < 305
    assert not seen(losses, deviations=None)


def test_a_resumed_run_sees_the_same_spike() -> None:
    losses = 3 + 0.1 * np.random.default_rng(0).standard_normal(400)
    losses[300:] += 4
    first = Spikes(10.0)
    for loss in losses[:200]:
        first.see(float(loss))
    second = Spikes(10.0, first.recent)
    assert [n for n, loss in enumerate(losses[200:], start=200) if second.see(float(loss))] == [302]
