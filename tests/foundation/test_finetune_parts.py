"""Who trains, who decides, who is held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.finetuning.parts import parts_of, subset
from foundation.finetuning.recipe import FinetuneConfig, part_name
from foundation.tasks.folds import nested_folds
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task
from recipes.load import RecipeError, parse
from tests.foundation.toy_cohort import ToyCohort


def config(**changes: Any) -> FinetuneConfig:
    tree: dict[str, Any] = {
        "name": "tuned",
        "tasks": ["card.yaml"],
        "data_root": "data",
        "pseudonym_key": "key",
        "backbone": "runs/mae/backbone",
        "train": {"steps": 10, "global_batch": 8},
        "optimiser": {"lr": 1e-3},
    }
    return parse({**tree, **changes}, FinetuneConfig, where="recipe")


def task_of(tmp_path: Path, **changes: Any) -> Task:
    floors = {"volume": None, "radiomics": None, "voxels": None}
    return ToyCohort(tmp_path).task(**{"floors": floors, **changes})


def test_a_split_is_one_run_and_test_subjects_are_in_none(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    (part,) = parts_of(config(), task, fraction=1.0)
    assert part.train.tolist() == task.rows("train").tolist()
    assert part.val.tolist() == task.rows("val").tolist()
    assert part.fold is None
    assert part.folder == Path("runs/tuned") / task.card.name


def test_a_smaller_fraction_is_part_of_a_larger_one_and_keeps_the_classes(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    rows = task.rows("train")
    kept = {each: subset(task, rows, fraction=each, seed=3) for each in (1.0, 0.5, 0.25, 0.01)}
    assert kept[1.0].tolist() == rows.tolist()
    for larger, smaller in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.01)):
        assert set(kept[smaller]) < set(kept[larger])
    share = task.label[rows].mean()
    for fraction in (0.5, 0.25):
        assert len(kept[fraction]) == pytest.approx(fraction * len(rows), abs=1)
        assert task.label[kept[fraction]].mean() == pytest.approx(share, abs=0.06)
    assert sorted(task.label[kept[0.01]]) == [0, 1]  # one of each class at least
    other = subset(task, rows, fraction=0.5, seed=4)
    assert set(other) != set(kept[0.5])


def test_a_fraction_that_leaves_nobody_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, kind="regression", label={"column": "size"})
    with pytest.raises(TaskError, match="take a larger fraction"):
        subset(task, task.rows("train"), fraction=0.02, seed=0)


def test_folds_are_those_of_evaluation_and_nobody_judges_what_they_taught(tmp_path: Path) -> None:
    cv = {"repeated_cv": {"folds": 4, "repeats": 3, "seed": 7}}
    task = task_of(tmp_path, protocol=cv)
    *folds, model = parts_of(config(), task, fraction=1.0)
    assert [part.fold for part in folds] == [0, 1, 2, 3]
    held_out = np.concatenate([part.held_out for part in folds])
    assert sorted(held_out) == list(range(len(task.label)))
    assert task.card.protocol.repeated_cv is not None
    outer = nested_folds(task.label, kind="binary", cv=task.card.protocol.repeated_cv)
    for part, fold in zip(folds, outer, strict=False):
        assert part.held_out.tolist() == fold.held_out.tolist()
        rows = [*part.train, *part.val, *part.held_out]
        assert sorted(rows) == list(range(len(task.label)))
        assert len(part.val) == pytest.approx(len(fold.train) / 5, abs=1)
    assert model.fold is None
    assert sorted([*model.train, *model.val]) == list(range(len(task.label)))
    alone = parts_of(config(cross_validation={"folds": False}), task, fraction=1.0)
    assert [part.fold for part in alone] == [None]


@pytest.mark.parametrize(
    ("fraction", "name"),
    [(1.0, "stroke"), (0.2, "stroke_20"), (0.05, "stroke_5"), (0.025, "stroke_2_5")],
)
def test_a_part_is_named_by_its_percent(fraction: float, name: str) -> None:
    assert part_name("stroke", fraction) == name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fractions": [0.0]}, "above 0 and is at most 1"),
        ({"fractions": [0.2, 0.2001]}, "differ by a percent"),
        ({"backbone": None}, "give a backbone, or vit and preprocessing"),
        ({"vit": {"patch_size": [4, 4, 4]}}, "give a backbone, or vit and preprocessing"),
        ({"begin": "scratch", "tune": {"mode": "head"}}, "from scratch take full"),
        ({"reading": {"crops_per_scan": 3}}, "no whole number of scans of 3 crops"),
        ({"checkpoint": {"every_steps": 5}, "log": {"every_steps": 2}}, "no multiple of log"),
        ({"deepspeed": {"stage": 3}}, "which validation needs whole"),
        ({"tune": {"mode": "last_blocks"}}, "num_blocks go together"),
        ({"trane": {}}, "unknown key 'trane'"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_clear_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        config(**changes)
