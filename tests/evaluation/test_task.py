from typing import Any

import numpy as np
import pytest

from evaluation.tasks.task import TaskError, count_groups, describe_label
from recipes.load import RecipeError


def test_subjects_are_pseudonyms_in_splits(place: Any) -> None:
    task = place.task()
    assert [len(task.rows(split)) for split in ("train", "val", "test")] == [40, 16, 16]
    assert set(task.subjects) == {place.pseudonym(row["subject"]) for row in place.rows()}
    assert count_groups(task) == {"sex": {"F": 36, "M": 36}}


def test_scans_of_a_subject_become_one_row(place: Any) -> None:
    place.rewrite(lambda row: {**row, "subject": f"p{int(row['subject'][-3:]) // 2}"})
    task = place.task()
    assert len(task.subjects) == 36
    assert all(len(scans) == 2 for scans in task.scans)


def test_labels_that_disagree_within_a_subject_are_refused(place: Any) -> None:
    def merge(row: dict[str, str]) -> dict[str, str]:
        return {**row, "subject": f"p{int(row['subject'][-3:]) // 4}", "split": "train"}

    place.rewrite(merge)
    with pytest.raises(TaskError, match="2 different values of 'bright'"):
        place.task()


def test_the_threshold_comes_from_the_training_split(place: Any) -> None:
    label = {"column": "size", "at_most_quantile": 0.25}
    task = place.task(label=label)
    sizes = {place.pseudonym(row["subject"]): float(row["size"]) for row in place.rows()}
    values = np.array([sizes[subject] for subject in task.subjects])
    threshold = np.quantile(values[task.rows("train")], 0.25)
    assert task.threshold == pytest.approx(threshold)
    assert task.label.tolist() == (values <= threshold).astype(float).tolist()
    assert "0.25 quantile of the training split" in describe_label(task)

    def shifted(row: dict[str, str]) -> dict[str, str]:
        moved = float(row["size"]) - (20 if row["split"] != "train" else 0)
        return {**row, "size": str(moved)}

    place.rewrite(shifted)
    assert place.task(label=label).threshold == pytest.approx(threshold)


def test_scans_without_a_label_are_counted(place: Any) -> None:
    place.rewrite(lambda row: {**row, "bright": "" if row["subject"] == "patient003" else "01"[
        int(row["bright"])]})  # fmt: skip
    task = place.task()
    assert (len(task.subjects), task.num_unlabelled, len(task.candidates)) == (71, 1, 72)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_with_one_class_is_one_clear_line(place: Any, split: str) -> None:
    place.rewrite(lambda row: {**row, "bright": "0"} if row["split"] == split else row)
    with pytest.raises(TaskError, match=rf"task bright: the {split} split has one class \(all"):
        place.task()


def test_a_rare_class_does_not_fill_the_folds(place: Any) -> None:
    place.rewrite(lambda row: {**row, "bright": str(int(row["subject"] < "patient003"))})
    with pytest.raises(TaskError, match="3 subjects of the rarer class do not fill 5 folds"):
        place.task(protocol={"repeated_cv": {"folds": 5}})


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"label": {"column": "brihgt"}}, TaskError, "did you mean 'bright'"),
        ({"groups": ["sax"]}, TaskError, "did you mean 'sex'"),
        ({"where": {"part": ["foot"]}}, TaskError, "no scan of cohort tiny"),
        ({"label": {"column": "age"}}, TaskError, "a binary label is 0 or 1"),
        ({"label": {"column": "sex"}}, TaskError, "not a number"),
        ({"protocol": {}}, RecipeError, "either split or repeated_cv"),
        ({"floors": {"voxels": {"grid": [9, 8, 8], "pool": 2}}}, RecipeError, "does not divide"),
        ({"lable": {}}, RecipeError, "did you mean 'label'"),
        (
            {"label": {"column": "size", "at_most_quantile": 0.3}, "kind": "regression"},
            RecipeError,
            "makes a binary task",
        ),
    ],
)
def test_bad_cards_are_one_clear_line(
    place: Any, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        place.task(**changes)
