"""A cohort's table, its split by subject, and what it refuses."""

import sys
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from recipes.load import RecipeError
from shards.sources.cohort import Cohort, CohortError, SplitConfig, load_cohort, random_split

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
        ("npz: a.npz\n", "either table or npz or msd"),
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
    spelt_out = _cohort(tmp_path / "two", TABLE + "npz: null\nmasks: {}\n", "case\n1\n")
    assert spelt_out.digest == one.digest


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


SEQUENCES = HEAD + (
    'table: toy/table.csv\nsubject: "{who}"\nvisit: "{day}"\n'
    'sequences: {t1w: "{t1}", flair: "{who}/{fl}.nii"}\n'
    'masks: {lesion: "{who}/lesion.nii", face: "{face}"}\n'
    "modality: {t1w: MR, flair: '{kind}'}\n"
)


def test_several_sequences_and_masks(tmp_path: Path) -> None:
    table = "who,t1,fl,face,kind,day\na,a/t1.nii,f,a/face.nii,MR,3\nb,,f2,,PT,-4\nc,c.nii,,,,\n"
    first, second, third = _cohort(tmp_path, SEQUENCES, table).rows
    folder = tmp_path / "toy"
    assert first.sequences == {"t1w": str(folder / "a/t1.nii"), "flair": str(folder / "a/f.nii")}
    assert first.masks == {
        "lesion": str(folder / "a/lesion.nii"),
        "face": str(folder / "a/face.nii"),
    }
    assert first.modalities == {"t1w": "MR", "flair": "MR"}
    assert second.sequences == {"flair": str(folder / "b/f2.nii")}
    assert (second.scan, second.modality) == (str(folder / "b/f2.nii"), "PT")
    assert second.masks == {"lesion": str(folder / "b/lesion.nii")}
    assert third.sequences == {"t1w": str(folder / "c.nii")}
    assert [row.visit for row in (first, second, third)] == [3, -4, None]
    assert first.mask is None


def test_an_empty_cell_is_no_mask(tmp_path: Path) -> None:
    rows = _cohort(tmp_path, TABLE + 'mask: "{m}"\n', "case,m\n1,a.nii\n2,\n").rows
    assert [row.mask for row in rows] == [str(tmp_path / "toy/a.nii"), None]


def test_a_row_without_any_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="'b' has a row without any of the sequences t1w, flair"):
        _cohort(tmp_path, SEQUENCES, "who,t1,fl,face,kind,day\na,x,,,,\nb,,,,,\n")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("12", 12), ("2024-02-29", date(2024, 2, 29)), ("", None)],
)
def test_visits(tmp_path: Path, cell: str, expected: int | date | None) -> None:
    text = TABLE + 'visit: "{day}"\n'
    assert _cohort(tmp_path, text, f"case,day\n1,{cell}\n").rows[0].visit == expected


@pytest.mark.parametrize("cell", ["20240229", "44940", "2024-02-30", "soon", "1.5"])
def test_a_visit_that_hides_a_date_or_is_none(tmp_path: Path, cell: str) -> None:
    text = TABLE + 'visit: "{day}"\n'
    with pytest.raises(CohortError, match="neither a number of days up to 36525 nor a date"):
        _cohort(tmp_path, text, f"case,day\n1,{cell}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE + "sequences: {t1w: '{case}'}\n", "either scan or sequences"),
        (SEQUENCES + "scan: x\n", "either scan or sequences"),
        (SEQUENCES.replace("flair: '{kind}'", "flare: MR"), "names other sequences"),
        (SEQUENCES.replace("t1w:", "T1.w:"), "should match pattern"),
        (HEAD + "npz: a.npz\nmasks: {lesion: x}\n", "brings its own"),
    ],
)
def test_a_wrong_recipe_of_sequences_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _cohort(tmp_path, text, "case\n1\n")


def test_a_parquet_table_is_as_a_csv(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "case": [7, 12],
        "kind": ["CT", " MR "],
        "age": [61.5, None],
        "count": [3.0, float("nan")],
        "when": [date(2024, 1, 31), None],
        "flag": [True, False],
    }
    (tmp_path / "toy").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "toy/table.parquet")
    text = TABLE.replace("csv", "parquet") + "modality: '{kind}'\nvisit: '{when}'\n"
    first, second = _cohort(tmp_path, text).rows
    assert first.scan == str(tmp_path / "toy/images/007.nii.gz")
    assert (first.modality, second.modality) == ("CT", "MR")
    assert (first.visit, second.visit) == (date(2024, 1, 31), None)
    assert dict(second.values) == {
        "case": 12,
        "kind": "MR",
        "age": None,
        "count": None,
        "when": None,
        "flag": "False",
    }
    assert first.values["count"] == 3
    assert isinstance(first.values["count"], int)


def test_what_is_no_parquet_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "toy/table.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 and then nothing")
    text = TABLE.replace("csv", "parquet")
    with pytest.raises(CohortError, match="not a Parquet table"):
        _cohort(tmp_path, text)
    pyarrow.parquet.write_table(pyarrow.table({"case": [[1, 2]]}), path)
    with pytest.raises(CohortError, match="column 'case' holds list"):
        _cohort(tmp_path, text)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CohortError, match="needs pyarrow: pip install pyarrow"):
        _cohort(tmp_path, text)
