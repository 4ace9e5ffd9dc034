"""Labels of every kind of task: shapes, classes, what is missing and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.tasks.describe import describe_label
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task
from recipes.load import RecipeError
from tests.foundation.toy_cohort import COHORT, ToyCohort, number_of


@pytest.fixture
def toy(tmp_path: Path) -> ToyCohort:
    return ToyCohort(tmp_path)


def by_subject(toy: ToyCohort, task: Task, column: str) -> list[str]:
    cells = {toy.pseudonym(row["subject"]): row[column] for row in toy.rows}
    return [cells[subject] for subject in task.subjects]


def test_text_is_binary_once_the_positive_value_is_named(toy: ToyCohort) -> None:
    task = toy.task(label={"column": "sex", "positive": "F"})
    assert task.label.tolist() == [float(sex == "F") for sex in by_subject(toy, task, "sex")]
    assert (task.outputs, task.classes) == (("1",), ("0", "1"))
    assert describe_label(task) == "column sex is F"
    with pytest.raises(TaskError, match=r"label\.positive is 'f', 'sex' holds only F, M"):
        toy.task(label={"column": "sex", "positive": "f"})


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (None, ("10", "2", "b")),
        ([2, "b", 10], ("2", "b", "10")),
        ({"low": 2, "high": 10, "other": "b"}, ("low", "high", "other")),
    ],
)
def test_multiclass(toy: ToyCohort, classes: Any, names: tuple[str, ...]) -> None:
    renamed = {"2": "low", "10": "high", "b": "other"} if isinstance(classes, dict) else {}
    toy.add(grade=lambda row: (2, 10, "b")[number_of(row) % 3])
    task = toy.task(kind="multiclass", label={"column": "grade", "classes": classes})
    assert task.outputs == task.classes == names
    assert task.label.dtype == np.float64
    place_of = {cell: float(names.index(renamed.get(cell, cell))) for cell in ("2", "10", "b")}
    cells = by_subject(toy, task, "grade")
    assert task.label.tolist() == [place_of[cell] for cell in cells]
    assert task.card.metric == "macro_auroc"


def test_whole_numbers_are_sorted_as_numbers(toy: ToyCohort) -> None:
    toy.add(grade=lambda row: (2, 10, 3)[number_of(row) % 3])
    task = toy.task(kind="multiclass", label={"column": "grade"})
    assert task.classes == ("2", "3", "10")


def test_ordinal_levels_keep_their_order(toy: ToyCohort) -> None:
    toy.add(stage=lambda row: ("mild", "none", "severe")[number_of(row) % 3])
    label = {"column": "stage", "levels": ["none", "mild", "severe"]}
    task = toy.task(kind="ordinal", label=label)
    assert task.outputs == ("none", "mild", "severe")
    rank = {"none": 0.0, "mild": 1.0, "severe": 2.0}
    assert task.label.tolist() == [rank[cell] for cell in by_subject(toy, task, "stage")]


def test_multilabel_keeps_missing_labels_and_leaves_out_who_has_none(toy: ToyCohort) -> None:
    toy.add(
        a=lambda row: "" if number_of(row) in (3, 5) else number_of(row) % 2,
        b=lambda row: "" if number_of(row) == 5 else (number_of(row) // 2) % 2,
    )
    task = toy.task(kind="multilabel", label={"columns": ["a", "b"]})
    assert task.label.shape == (71, 2)
    assert (task.outputs, task.num_unlabelled) == (("a", "b"), 1)
    at = task.subjects.index(toy.pseudonym("patient003"))
    np.testing.assert_array_equal(task.label[at], [np.nan, 1.0])
    assert np.isnan(task.label).sum() == 1


def test_survival(toy: ToyCohort) -> None:
    toy.add(
        days=lambda row: "" if number_of(row) == 4 else 10 + number_of(row),
        died=lambda row: ("yes", "no")[number_of(row) % 2],
    )
    label = {"time_days": "days", "event": "died", "positive": "yes"}
    task = toy.task(kind="survival", label=label)
    assert task.label.shape == (71, 2)
    assert task.outputs == ("risk",)
    days = [float(cell) for cell in by_subject(toy, task, "days")]
    assert task.label[:, 0].tolist() == days
    assert task.label[:, 1].tolist() == [float(day % 2 == 0) for day in days]
    toy.add(days=lambda row: 0 if number_of(row) == 4 else 7)
    with pytest.raises(TaskError, match="'days' holds 0; a time to an event"):
        toy.task(kind="survival", label=label)


def test_retrieval_has_classes_and_its_own_outputs(toy: ToyCohort) -> None:
    task = toy.task(kind="retrieval", label={"column": "sex"}, few_shot=False)
    assert task.outputs == ("average_precision", "hit_at_1", "hit_at_5")
    assert task.classes == ("F", "M")
    assert task.label.tolist() == [float(sex == "M") for sex in by_subject(toy, task, "sex")]


def test_segmentation_reads_the_mask_the_card_names(toy: ToyCohort) -> None:
    label = {"classes": {"corner": 1, "rest": 2}}
    task = toy.task(kind="segmentation", label=label)
    assert task.label.tolist() == [0.0] * 72
    assert task.outputs == ("corner", "rest")
    assert task.card.label.mask_values == {"corner": 1, "rest": 2}
    assert all(str(row.mask).endswith("_mask.nii") for scans in task.scans for row in scans)

    toy.add(other=lambda row: "" if number_of(row) == 6 else row["mask"])
    toy.recipe = {**COHORT, "mask": None, "masks": {"other": "{other}"}}
    task = toy.task(kind="segmentation", label={**label, "mask": "other"})
    assert (len(task.subjects), task.num_unlabelled) == (71, 1)
    assert all(row.mask == row.masks["other"] for scans in task.scans for row in scans)
    for name, words in (("othr", "did you mean 'other'"), (None, "name one of its masks")):
        with pytest.raises(TaskError, match=words):
            toy.task(kind="segmentation", label={**label, "mask": name})


def test_an_empty_mask_cell_is_no_mask(toy: ToyCohort) -> None:
    toy.add(mask=lambda row: "" if number_of(row) == 6 else row["mask"])
    task = toy.task(kind="segmentation", label={"classes": {"corner": 1}})
    assert (len(task.subjects), task.num_unlabelled) == (71, 1)
    task = toy.task()
    at = task.subjects.index(toy.pseudonym("patient006"))
    assert task.scans[at][0].mask is None


def test_sequences_of_a_visit_are_scans_of_a_subject(toy: ToyCohort) -> None:
    toy.add(second=lambda row: "" if number_of(row) == 8 else row["mask"])
    toy.recipe = {
        **COHORT,
        "scan": None,
        "sequences": {"t1": "{scan}", "t2": "{second}"},
        "modality": {"t1": "MR", "t2": "OT"},
    }
    task = toy.task()
    assert len(task.subjects) == 72
    assert sorted({len(scans) for scans in task.scans}) == [1, 2]
    assert len(task.candidates) == 143
    first = task.scans[0]
    assert [row.modality for row in first] in (["MR", "OT"], ["OT", "MR"])
    assert all(row.sequences == {} for row in task.candidates)
    only = toy.task(sequences=["t2"])
    assert len(only.subjects) == 71
    assert {row.modality for row in only.candidates} == {"OT"}
    with pytest.raises(TaskError, match="no sequence 't3'; did you mean"):
        toy.task(sequences=["t3"])


@pytest.mark.parametrize(
    ("kind", "label", "words"),
    [
        ("multiclass", {"column": "size"}, "a number is predicted by kind: regression"),
        ("multiclass", {"column": "sex", "classes": ["F", "X"]}, r"label\.classes does not name"),
        ("ordinal", {"column": "sex", "levels": ["F", "X"]}, r"label\.levels does not name"),
        ("multiclass", {"column": "sex", "classes": ["F", "M", "X"]}, "no subject of class 'X'"),
        ("multiclass", {"column": "part"}, r"one class \(all 40 are head\)"),
        ("multilabel", {"columns": ["bright", "zero"]}, "no subject whose 'zero' is 1"),
        ("multilabel", {"columns": ["bright", "sex"]}, "a label of a multilabel task is 0 or 1"),
        ("regression", {"column": "sex"}, "'sex' holds '.', not a number"),
        ("regression", {"column": "zero"}, r"one value \(all 40 are 0\)"),
        ("survival", {"time_days": "size", "event": "zero"}, "the train split has no event"),
        ("retrieval", {"column": "part"}, "no two subjects of one class beside another"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_one_clear_line(
    toy: ToyCohort, kind: str, label: dict[str, Any], words: str
) -> None:
    toy.add(zero=lambda _: 0)
    with pytest.raises(TaskError, match=words) as caught:
        toy.task(kind=kind, label=label)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "label", "words"),
    [
        ("ordinal", {"column": "sex"}, "needs levels"),
        ("ordinal", {"column": "sex", "levels": ["F", "F"]}, "twice"),
        ("multilabel", {"columns": []}, "needs columns"),
        ("survival", {"column": "size"}, "needs event and time_days"),
        ("segmentation", {"classes": ["liver"]}, "is a mapping"),
        ("segmentation", {"classes": {"liver": 0}}, "0 is the background"),
        ("segmentation", {"column": "size", "classes": {"liver": 1}}, "has no column; it takes"),
        ("multiclass", {"column": "sex", "classes": ["F"]}, "at least two classes"),
        ("binary", {"column": "sex", "positive": True}, "quote yes, no"),
        ("ordinal", {"column": "sex", "levels": ["F", False]}, "quote yes, no"),
        ("multiclass", {"column": "sex", "classes": {"a": "F", "b": True}}, "quote yes, no"),
        ("multiclass", {"column": "sex", "classes": 5}, r"label\.classes"),
        ("mulitclass", {"column": "sex"}, "kind"),
    ],
)  # fmt: skip
def test_a_label_of_another_kind_is_refused_by_the_card(
    toy: ToyCohort, kind: str, label: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        toy.task(kind=kind, label=label)


def test_no_floor_reads_the_mask_that_is_predicted(toy: ToyCohort) -> None:
    for floors in ({"volume": "mask"}, {"radiomics": "mask"}, {"mask_intensity": True}):
        with pytest.raises(RecipeError, match="no floor may read it"):
            toy.task(kind="segmentation", label={"classes": {"a": 1}}, floors=floors)


def test_folds_need_events_and_rare_labels(toy: ToyCohort) -> None:
    cv = {"repeated_cv": {"folds": 5}}
    toy.add(rare=lambda row: int(number_of(row) < 3), days=lambda row: 3 + number_of(row))
    with pytest.raises(TaskError, match="3 subjects of those with an event do not fill 5 folds"):
        toy.task(kind="survival", label={"time_days": "days", "event": "rare"}, protocol=cv)
    with pytest.raises(TaskError, match="3 subjects of the rarer value of 'rare' do not fill 5"):
        toy.task(kind="multilabel", label={"columns": ["rare"]}, protocol=cv)
