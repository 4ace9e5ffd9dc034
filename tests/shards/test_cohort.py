"""A cohort's table, its split by subject, and what it refuses."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes.load import RecipeError
from shards.cohort import Cohort, CohortError, SplitConfig, load_cohort, random_split

HEAD = "name: toy\nlicence: CC0\nsource: written by this test\n"
TABLE = HEAD + 'table: toy/table.csv\nsubject: "s{case}"\nscan: "images/{case:03d}.nii.gz"\n'


def _cohort(folder: Path, text: str, table: str | None = None) -> Cohort:
    (folder / "toy").mkdir(exist_ok=True)
    if table is not None:
        (folder / "toy" / "table.csv").write_text(table)
    (folder / "toy.yaml").write_text(text)
    return load_cohort(folder / "toy.yaml", data_root=folder)


def test_columns_are_typed_and_templates_filled(tmp_path: Path) -> None:
    text = TABLE + 'mask: "masks/{case}.nii"\nmodality: "{kind}"\n'
    table = "case,kind,age,code,note\n7,CT,61.5,007,a\n12,MR,,010,\n"
    first, second = _cohort(tmp_path, text, table).rows
    assert first.subject == "s7"
    assert first.scan == str(tmp_path / "toy/images/007.nii.gz")
    assert first.mask == str(tmp_path / "toy/masks/7.nii")
    assert (first.modality, second.modality) == ("CT", "MR")
    assert first.values == {"case": 7, "kind": "CT", "age": 61.5, "code": "007", "note": "a"}
    assert second.values["age"] is None
    assert second.values["note"] is None
    assert first.split is None


def test_random_split_keeps_subjects_together_and_ignores_their_order() -> None:
    split = SplitConfig(train=0.6, val=0.2, test=0.2, seed=3)
    subjects = [f"s{number}" for number in range(50)]
    parts = random_split(subjects * 2, split=split)
    assert [list(parts.values()).count(name) for name in ("train", "val", "test")] == [30, 10, 10]
    assert random_split(reversed(subjects), split=split) == parts
    assert random_split(subjects, split=split.model_copy(update={"seed": 4})) != parts


def test_split_from_a_column(tmp_path: Path) -> None:
    table = "case,part\n1,train\n2,test\n2,test\n"
    text = TABLE + "split: {column: part}\n"
    with pytest.raises(CohortError, match="repeats subject 's2'"):
        _cohort(tmp_path, text, table)
    rows = _cohort(tmp_path, text, "case,part\n1,train\n2,test\n").rows
    assert [row.split for row in rows] == ["train", "test"]
    with pytest.raises(CohortError, match="'dev'; expected one of train, val, test"):
        _cohort(tmp_path, text, "case,part\n1,dev\n")


def test_a_subject_in_two_parts_is_refused(tmp_path: Path) -> None:
    text = TABLE.replace("images/{case:03d}", "{visit}") + "split: {column: part}\n"
    with pytest.raises(CohortError, match="'s1' is in both train and test"):
        _cohort(tmp_path, text, "case,part,visit\n1,train,a\n1,test,b\n")


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        (TABLE, "", "has no rows"),
        (TABLE, "case\n", "has no rows"),
        (TABLE, "cse\n1\n", "no column 'case'; did you mean 'cse'"),
        (TABLE, "case,case\n1,1\n", "column 'case' twice"),
        (TABLE, "case,x\n1\n", "row 1: 1 cells, expected 2"),
        (TABLE, "case,x\n,1\n", "empty 'case' cell"),
        (TABLE, "case\nabc\n", "does not fit its columns"),
        (TABLE + "modality: XR\n", "case\n1\n", "modality 'XR'; expected one of CT"),
        (TABLE, None, "does not exist; its data is: written by this test"),
    ],
)
def test_one_clear_line_for_each_fault(
    tmp_path: Path, text: str, table: str | None, message: str
) -> None:
    with pytest.raises(CohortError, match=message) as caught:
        _cohort(tmp_path, text, table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("split: {train: 0.5, val: 0.2}\n", "add up to 1, got 0.7"),
        ("split: {column: part, train: 1}\n", "not both"),
        ("npz: a.npz\n", "either table or npz"),
        ("license: x\n", "did you mean 'licence'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _cohort(tmp_path, TABLE + extra, "case\n1\n")


def test_medmnist_archive(tmp_path: Path) -> None:
    arrays = {}
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        arrays[f"{split}_images"] = np.zeros((count, 2, 3, 4), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count).reshape(-1, 1) % 2
    np.savez(tmp_path / "toy.npz", **arrays)
    cohort = _cohort(tmp_path, HEAD + "npz: toy.npz\nmodality: OT\n")
    assert [row.split for row in cohort.rows] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert cohort.rows[1].subject == "train-1"
    assert cohort.rows[1].scan == f"{tmp_path / 'toy.npz'}#train/1"
    assert cohort.rows[1].values == {"label": 1}


def test_digest_follows_the_table_and_not_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = _cohort(tmp_path / "one", TABLE, "case\n1\n")
    two = _cohort(tmp_path / "two", TABLE, "case\n1\n")
    other = _cohort(tmp_path / "two", TABLE, "case\n2\n")
    assert one.digest == two.digest
    assert one.digest != other.digest


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("adrenal_28", {"train": 1188, "val": 98, "test": 298}),
        ("adrenal_64", {"train": 1188, "val": 98, "test": 298}),
        ("hippocampus", {"train": 156, "val": 52, "test": 52}),
        ("sarcoma", {None: 51}),
    ],
)
def test_the_real_cohorts(
    project: Path, real_data: Path, name: str, splits: dict[str | None, int]
) -> None:
    rows = load_cohort(project / f"recipes/cohorts/{name}.yaml", data_root=real_data).rows
    assert Counter(row.split for row in rows) == splits
    for row in rows[::20]:
        assert Path(row.scan.partition("#")[0]).is_file()
        assert row.mask is None or Path(row.mask).is_file()
