"""The subjects of a task: who, in which split, and what is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.scoring.record import task_notes
from evaluation.scoring.statistics import _groups as stored_groups
from foundation.tasks.describe import count_groups, describe_label, groups_of
from foundation.tasks.labels import TaskError
from foundation.tasks.task import load_task
from recipes.load import RecipeError
from tests.foundation.toy_cohort import KEY, ToyCohort


@pytest.fixture
def toy(tmp_path: Path) -> ToyCohort:
    return ToyCohort(tmp_path)


def test_subjects_are_pseudonyms_in_splits(toy: ToyCohort) -> None:
    task = toy.task()
    assert [len(task.rows(split)) for split in ("train", "val", "test")] == [40, 16, 16]
    assert set(task.subjects) == {toy.pseudonym(row["subject"]) for row in toy.rows}
    assert count_groups(task) == {"sex": {"F": 36, "M": 36}}


def test_scans_of_a_subject_become_one_row(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "subject": f"p{int(row['subject'][-3:]) // 2}"})
    task = toy.task()
    assert len(task.subjects) == 36
    assert all(len(scans) == 2 for scans in task.scans)


def test_labels_that_disagree_within_a_subject_are_refused(toy: ToyCohort) -> None:
    def merge(row: dict[str, str]) -> dict[str, str]:
        return {**row, "subject": f"p{int(row['subject'][-3:]) // 4}", "split": "train"}

    toy.rewrite(merge)
    with pytest.raises(TaskError, match="2 different values of 'bright'"):
        toy.task()


def test_the_threshold_comes_from_the_training_split(toy: ToyCohort) -> None:
    label = {"column": "size", "at_most_quantile": 0.25}
    task = toy.task(label=label)
    sizes = {toy.pseudonym(row["subject"]): float(row["size"]) for row in toy.rows}
    values = np.array([sizes[subject] for subject in task.subjects])
    threshold = np.quantile(values[task.rows("train")], 0.25)
    assert task.threshold == pytest.approx(threshold)
    assert task.label.tolist() == (values <= threshold).astype(float).tolist()
    assert "0.25 quantile of the training split" in describe_label(task)

    def shifted(row: dict[str, str]) -> dict[str, str]:
        moved = float(row["size"]) - (20 if row["split"] != "train" else 0)
        return {**row, "size": str(moved)}

    toy.rewrite(shifted)
    assert toy.task(label=label).threshold == pytest.approx(threshold)


def test_scans_without_a_label_are_counted(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "bright": "" if row["subject"] == "patient003" else "01"[
        int(row["bright"])]})  # fmt: skip
    task = toy.task()
    assert (len(task.subjects), task.num_unlabelled, len(task.candidates)) == (71, 1, 72)


def test_a_training_split_with_one_class_is_one_clear_line(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "bright": "0"} if row["split"] == "train" else row)
    with pytest.raises(TaskError, match=r"task bright: the train split has one class \(all"):
        toy.task()


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_class_in_a_scored_split_is_left_to_statistics(toy: ToyCohort, split: str) -> None:
    toy.rewrite(lambda row: {**row, "bright": "0"} if row["split"] == split else row)
    task = toy.task()
    assert set(task.label[task.rows(split)]) == {0.0}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_subjects_is_one_clear_line(toy: ToyCohort, split: str) -> None:
    toy.rewrite(lambda row: None if row["split"] == split else row)
    with pytest.raises(TaskError, match=rf"the {split} split has no subject"):
        toy.task()


def test_whoever_only_trains_needs_no_test_subject(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: None if row["split"] == "test" else row)
    with pytest.raises(TaskError, match="the test split has no subject"):
        toy.task()
    card, root = toy.root / "card.yaml", toy.root
    assert not len(load_task(card, data_root=root, key=KEY, needs_test=False).rows("test"))
    toy.rewrite(lambda row: None if row["split"] == "val" else row)
    with pytest.raises(TaskError, match="the val split has no subject"):
        toy.task()


def test_a_rare_class_does_not_fill_the_folds(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "bright": str(int(row["subject"] < "patient003"))})
    with pytest.raises(TaskError, match="3 subjects of class '1' do not fill 5 folds"):
        toy.task(protocol={"repeated_cv": {"folds": 5}})


def test_more_folds_than_subjects_are_refused(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: row if row["subject"] < "patient005" else None)
    size: dict[str, Any] = {"kind": "regression", "label": {"column": "size"}}
    toy.task(**size, protocol={"repeated_cv": {"folds": 5}})
    with pytest.raises(TaskError, match="5 subjects are too few for 6 folds"):
        toy.task(**size, protocol={"repeated_cv": {"folds": 6}})


@pytest.mark.parametrize("cell", ["big", "inf", "nan"])
def test_the_cell_that_is_no_number_is_named(toy: ToyCohort, cell: str) -> None:
    toy.rewrite(lambda row: {**row, "size": cell} if row["subject"] == "patient033" else row)
    with pytest.raises(TaskError, match=f"'size' holds '{cell}', not a number"):
        toy.task(kind="regression", label={"column": "size"})


def test_the_cell_that_is_neither_0_nor_1_is_named(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "bright": "x"} if row["subject"] == "patient033" else row)
    with pytest.raises(TaskError, match="'bright' holds 'x'"):
        toy.task()


def test_a_mask_that_a_floor_reads_is_missed_before_anything_is_read(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "mask": ""} if row["subject"] == "patient033" else row)
    toy.task()
    with pytest.raises(TaskError, match=r"1 of 72 scans have none, such as .*033_scan\.nii"):
        toy.task(floors={"volume": "mask"})


def test_a_clinical_column_of_numbers_and_a_word_is_noted(toy: ToyCohort) -> None:
    assert not task_notes(toy.task(floors={"clinical": ["age", "sex"]}))
    toy.rewrite(lambda row: {**row, "age": "old"} if row["subject"] == "patient033" else row)
    (note,) = task_notes(toy.task(floors={"clinical": ["age", "sex"]}))
    assert "age is read as text" in note
    assert "1 of its 72 cells are no numbers, such as 'old'" in note


def test_other_data_than_the_cards_is_refused(toy: ToyCohort) -> None:
    found = toy.task().cohort.digest
    assert toy.task(data_digest=found[:12]).cohort.digest == found
    toy.rewrite(lambda row: {**row, "part": "neck"})
    with pytest.raises(TaskError, match=f"the card asks for {found[:12]}"):
        toy.task(data_digest=found)


def test_groups_name_a_missing_value(toy: ToyCohort) -> None:
    toy.rewrite(lambda row: {**row, "sex": "" if row["subject"] == "patient003" else row["sex"]})
    task = toy.task()
    assert count_groups(task) == {"sex": {"F": 35, "M": 36, "missing": 1}}
    at = task.subjects.index(toy.pseudonym("patient003"))
    assert groups_of(task)["sex"][at] == "missing"
    stored = stored_groups(task).set_index("subject")["value"]
    assert stored[toy.pseudonym("patient003")] == "missing"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"label": {"column": "brihgt"}}, TaskError, "did you mean 'bright'"),
        ({"groups": ["sax"]}, TaskError, "did you mean 'sex'"),
        ({"where": {"part": ["foot"]}}, TaskError, "no scan of cohort tiny"),
        ({"label": {"column": "age"}}, TaskError, "a label of a binary task is 0 or 1"),
        (
            {"label": {"column": "sex"}},
            TaskError,
            "say which value counts as 1 with label.positive",
        ),
        ({"protocol": {}}, RecipeError, "either split or repeated_cv"),
        ({"floors": {"voxels": {"grid": [9, 8, 8], "pool": 2}}}, RecipeError, "does not divide"),
        ({"lable": {}}, RecipeError, "did you mean 'label'"),
        ({"label": {}}, RecipeError, "kind binary: the label needs column"),
        (
            {"label": {"column": "bright", "levels": [0, 1], "classes": [0, 1]}},
            RecipeError,
            "has no classes and no levels; it takes at_most_quantile, column, positive",
        ),
        (
            {
                "label": {"column": "size", "at_most_quantile": 0.3},
                "protocol": {"repeated_cv": {}},
            },
            RecipeError,
            "makes a binary task of a task with a split",
        ),
        ({"primary_metric": "r2"}, RecipeError, "kind binary has no metric 'r2'; it has auroc"),
        ({"near_duplicates": "allowed"}, RecipeError, "near_duplicates_reason go together"),
        ({"data_digest": "abc"}, RecipeError, "data_digest"),
        ({"groups": ["sex", "sex"]}, RecipeError, "groups names 'sex' twice"),
        ({"floors": {"clinical": ["age", "age"]}}, RecipeError, "clinical names 'age' twice"),
        ({"floors": {"clinical": ["bright"]}}, RecipeError, "'bright' is the label"),
        (
            {"label": {"column": "size", "at_most_quantile": 0.3}, "kind": "regression"},
            RecipeError,
            "kind regression: the label has no at_most_quantile",
        ),
    ],
)
def test_bad_cards_are_one_clear_line(
    toy: ToyCohort, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        toy.task(**changes)
