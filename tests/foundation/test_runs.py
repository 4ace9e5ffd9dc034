"""A run's folder knows which recipe and which shards it belongs to."""

import json
from pathlib import Path
from typing import Literal

import pytest

from foundation.running.job import JobError, portions_of
from foundation.running.runs import (
    ResumeConfig,
    RunError,
    RunState,
    keep_group,
    kept_group,
    open_run,
)
from recipes.load import Section


class Train(Section):
    steps: int = 10
    workers: int = 0


class Recipe(Section):
    name: str = "small"
    out: str = "runs"
    lr: float = 0.1
    train: Train = Train()


FRESH = RunState(finished=False, step=0, checkpoint=None)


def open_small(
    folder: Path,
    recipe: Recipe | None = None,
    *,
    shards: str = "a" * 64,
    if_changed: Literal["refuse", "restart"] = "refuse",
    allow_changes: tuple[str, ...] = (),
    said: list[str] | None = None,
) -> RunState:
    return open_run(
        folder,
        recipe=recipe or Recipe(),
        shards_digest=shards,
        resume=ResumeConfig(if_changed=if_changed, allow_changes=allow_changes),
        say=pytest.fail if said is None else said.append,
    )


def test_a_new_run_keeps_its_recipe(tmp_path: Path) -> None:
    assert open_small(tmp_path / "small") == FRESH
    assert "steps: 10" in (tmp_path / "small" / "recipe.yaml").read_text()
    assert open_small(tmp_path / "small") == FRESH


def test_each_changed_field_is_named(tmp_path: Path) -> None:
    open_small(tmp_path / "small")
    recipe = Recipe(lr=0.2, train=Train(steps=12, workers=4), out="elsewhere")
    with pytest.raises(RunError) as caught:
        open_small(tmp_path / "small", recipe, shards="b" * 64)
    line = str(caught.value)
    assert "shards (digest aaaaaaaa -> bbbbbbbb)" in line
    assert "resume.allow_changes=[shards,lr,train.steps]" in line
    assert "lr (0.1 -> 0.2)" in line
    assert "train.steps (10 -> 12)" in line
    assert "resume.if_changed=restart" in line
    assert "workers" not in line
    assert "elsewhere" not in line


def test_workers_and_places_may_change(tmp_path: Path) -> None:
    open_small(tmp_path / "small")
    recipe = Recipe(train=Train(workers=4), out="elsewhere")
    assert open_small(tmp_path / "small", recipe) == FRESH


def test_a_command_may_free_further_fields(tmp_path: Path) -> None:
    open_small(tmp_path / "small")
    again = open_run(
        tmp_path / "small",
        recipe=Recipe(lr=0.2),
        shards_digest="a" * 64,
        resume=ResumeConfig(),
        say=pytest.fail,
        free=("lr",),
    )
    assert again == FRESH
    with pytest.raises(RunError, match="shards"):
        open_run(
            tmp_path / "small",
            recipe=Recipe(lr=0.2),
            shards_digest="b" * 64,
            resume=ResumeConfig(),
            say=pytest.fail,
            free=("lr", "shards"),
        )


def test_restart_moves_the_old_run_aside(tmp_path: Path) -> None:
    for lr in (0.1, 0.2, 0.3):
        said: list[str] = []
        folder = tmp_path / "small"
        state = open_small(folder, Recipe(lr=lr), if_changed="restart", said=said)
        assert state == FRESH
        (folder / "log.jsonl").write_text(f"{lr}")
        assert len(said) == (lr > 0.1)
    names = {path.name: (path / "log.jsonl").read_text() for path in tmp_path.iterdir()}
    assert names == {"small": "0.3", "small.1": "0.1", "small.2": "0.2"}


def test_a_finished_run_is_up_to_date_on_any_number_of_ranks(tmp_path: Path) -> None:
    open_small(tmp_path / "small")
    (tmp_path / "small" / "backbone").mkdir()
    assert open_small(tmp_path / "small").finished
    with pytest.raises(RunError, match="lr"):
        open_small(tmp_path / "small", Recipe(lr=0.2))


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "small" / "backbone").mkdir(parents=True)
    with pytest.raises(RunError, match=r"has no run\.json"):
        open_small(tmp_path / "small", if_changed="restart")


def test_allowed_changes_go_on_and_are_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    open_small(folder)
    keep_group(folder, 8)
    recipe = Recipe(lr=0.2, train=Train(steps=12))
    with pytest.raises(RunError, match=r"differs in lr \(0.1 -> 0.2\); choose"):
        open_small(folder, recipe, allow_changes=("train",))
    said: list[str] = []
    state = open_small(folder, recipe, allow_changes=("train", "lr"), said=said)
    assert state == FRESH._replace(group=8)
    assert said == [
        "goes on with changes from step 0: lr (0.1 -> 0.2); train.steps (10 -> 12)",
    ]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["changes"] == [{"step": 0, "fields": {"lr": [0.1, 0.2], "train.steps": [10, 12]}}]
    # From now on the changed recipe is the run's own.
    assert open_small(folder, recipe) == FRESH._replace(group=8)
    with pytest.raises(RunError, match=r"lr \(0.2 -> 0.1\)"):
        open_small(folder)


def test_a_finished_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    open_small(folder)
    (folder / "backbone").mkdir()
    longer = Recipe(train=Train(steps=20))
    said: list[str] = []
    assert open_small(folder, longer, allow_changes=("train.steps",), said=said) == FRESH
    assert said[0] == f"moved the backbone of before to {folder / 'backbone.1'}"
    assert not (folder / "backbone").exists()
    assert open_small(folder, longer) == FRESH


def test_scans_that_are_compared_stay_as_many(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    assert kept_group(folder) is None
    open_small(folder)
    keep_group(folder, 8)
    assert kept_group(folder) == 8
    assert portions_of(32, micro_batch=2, world_size=2, group=8) == (4, 4)
    assert portions_of(32, micro_batch=2, world_size=8, group=8) == (1, 4)
    assert portions_of(32, micro_batch=2, world_size=4) == (2, 4)
    with pytest.raises(JobError, match="compares 8 scans with each other, which 3 ranks"):
        portions_of(24, micro_batch=2, world_size=3, group=8)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b"flipped"])
def test_a_damaged_run_file_is_named(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "small"
    open_small(folder)
    path = folder / "run.json"
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2") if damage == b"flipped" else damage)
    for call in (open_small, kept_group):
        with pytest.raises(RunError, match=r"small/run.json: not what was written") as told:
            call(folder)
        assert "\n" not in str(told.value)


def test_the_recipe_for_people_is_no_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    open_small(folder)
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert open_small(folder) == FRESH
