"""From a folder of scans and a table: what is guessed, what is written, and one scored row."""

import argparse
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from evaluation import quick
from foundation.tasks.guesses import guess_event, guess_label, guess_subject
from foundation.tasks.labels import TaskError
from foundation.tasks.matching import find_scans, match_names, path_column
from foundation.tasks.task import Task, load_task
from shards.phantom.cohort import write_subject
from shards.pseudonym import load_key
from shards.scan import read_scan


@pytest.mark.parametrize(
    ("cells", "kind", "label"),
    [
        ([0, 1, 1, None], "binary", {}),
        ([1, 2, 2], "binary", {"positive": 2}),
        (["no", "yes", "no"], "binary", {"positive": "yes"}),
        (["control", "case"], "binary", {"positive": "case"}),
        (["F", "M"], "binary", {"positive": "M"}),
        (["a", "b", "c", "a"], "multiclass", {}),
        ([0, 1, 2, 3], "multiclass", {}),
        (list(range(30)), "regression", {}),
        ([0.5, 1.5, 2.25], "regression", {}),
    ],
)
def test_the_kind_follows_from_the_values(
    cells: list[Any], kind: str, label: dict[str, Any]
) -> None:
    guess = guess_label({"x": cells}, ["x"], None)
    assert guess.kind == kind
    assert guess.label == {"column": "x", **label}


def test_what_the_user_says_stands_above_the_guess() -> None:
    columns = {"stage": [2, 0, 1], "a": [0, 1, None], "b": [1, 0, 0]}
    assert guess_label(columns, ["stage"], "ordinal").label["levels"] == [0, 1, 2]
    assert guess_label(columns, ["stage"], "regression").kind == "regression"
    assert guess_label(columns, ["a", "b"], None).label == {"columns": ["a", "b"]}
    dead = guess_event({"t": [3, 4], "e": ["alive", "dead"]}, "t", "e")
    assert dead.label == {"time_days": "t", "event": "e", "positive": "dead"}


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        ([1, 1, None], None, "holds 1 different values"),
        ([f"note {number}" for number in range(30)], None, "too many for classes"),
        ([*(f"{number}.5" for number in range(30)), "n/a"], None, "such as 'n/a', too many"),
        ([0, 1, 2], "binary", "holds 3 different values, a 0/1 label two"),
    ],
)
def test_what_is_no_label_is_refused(cells: list[Any], kind: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        guess_label({"x": cells}, ["x"], kind)


def test_the_subject_is_named_so_or_the_first_column_without_repeats() -> None:
    assert guess_subject({"age": [1, 2], "Patient ID": ["a", "b"], "id": [7, 8]}) == "Patient ID"
    assert guess_subject({"sex": ["F", "F"], "code": ["x", "y"]}) == "code"
    with pytest.raises(TaskError, match="say which with --subject: sex"):
        guess_subject({"sex": ["F", "F"]})


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_names_of_files_and_folders_tell_whose_a_scan_is(tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii.gz", "p10_t1.nii.gz", "p10_mask.nii.gz", "site/p2/t1.nrrd",
          "site/p2/flair.mha", "7.nii", "other.nii", "p3/series/IM1.dcm", "notes.txt")  # fmt: skip
    found = match_names(tmp_path, ["p1", "p10", "p2", 7, "p3", "p4"], "id")
    names = {(match.row, str(match.scan.relative_to(tmp_path))) for match in found.matches}
    assert names == {
        (0, "p1.nii.gz"),
        (1, "p10_t1.nii.gz"),
        (2, "site/p2/t1.nrrd"),
        (2, "site/p2/flair.mha"),
        (3, "7.nii"),
        (4, "p3/series"),
    }
    assert [match.is_dicom for match in found.matches].count(True) == 1
    assert (found.spare_scans, found.spare_rows) == (1, 1)
    with pytest.raises(TaskError, match=r"none of its 7 scans is named .* first cell 'x'"):
        match_names(tmp_path, ["x"], "id")
    with pytest.raises(TaskError, match="holds 'p1' twice"):
        match_names(tmp_path, ["p1", "p1"], "id")
    with pytest.raises(TaskError, match="no NIfTI"):
        match_names(tmp_path / "p3/series/none", ["p1"], "id")


def test_a_column_of_paths_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.nii", "b/1.nii")
    columns = {"id": ["1", "2"], "where": ["a/1.nii", "b/1.nii"], "bad": ["a/1.nii", "none"]}
    assert path_column(tmp_path, columns) == "where"
    assert path_column(tmp_path, {"id": [1, 2], "bad": columns["bad"]}) is None
    # A folder of a subject that holds its scans deeper down is no scan.
    assert path_column(tmp_path, {"id": ["a", "b"]}) is None


def test_links_are_followed_and_no_circle_is_walked(tmp_path: Path) -> None:
    touch(tmp_path, "archive/x/1.dcm", "archive/notes.txt")
    (tmp_path / "scans/p1").mkdir(parents=True)
    (tmp_path / "scans/p1/series").symlink_to(tmp_path / "archive/x")
    (tmp_path / "scans/p1/again").symlink_to(tmp_path / "scans")
    found = list(find_scans(tmp_path / "scans"))
    assert found == [tmp_path / "scans/p1/series"]


def test_dicom_folders_and_files_are_scans(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "scans").mkdir()
    name = write_subject(1, folder=tmp_path, seed=5).rows[0]["subject"]
    found = {path.name: path for path in find_scans(tmp_path / "scans")}
    assert set(found) == {"head.nii.gz", "chest"}
    assert read_scan(found["chest"]).modality == "CT"
    matches = match_names(tmp_path / "scans", [name], "subject").matches
    assert sorted(match.is_dicom for match in matches) == [False, True]


class Case:
    """A folder of small scans and a table beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[dict[str, Any]] = []

    def fill(self, count: int, *, label: Callable[[int], object], **columns: Any) -> None:
        rng = np.random.default_rng(0)
        (self.root / "scans").mkdir()
        for number in range(count):
            voxels = rng.normal(100, 20, (11, 9, 7)).astype(np.float32)
            voxels[:4, :4, :3] += 60 * (number % 2)  # odd ones have a bright corner
            image = nibabel.nifti1.Nifti1Image(voxels, np.diag([1.5, 1.0, 2.0, 1.0]))
            nibabel.nifti1.save(image, self.root / f"scans/p{number:02d}.nii")
            row = {"patient": f"p{number:02d}", "ill": label(number)}
            self.rows.append(row | {name: make(number) for name, make in columns.items()})

    def given(self, *words: str) -> argparse.Namespace:
        with (self.root / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        return quick._parser().parse_args(
            [
                "{function: 'nowhere:none', preprocessing: null}", str(self.root / "scans"),
                str(self.root / "labels.csv"), "--out", str(self.root / "stores/ill"), *words,
            ]
        )  # fmt: skip

    def task(self, *words: str) -> Task:
        recipe = quick.write_recipes(self.given(*words))
        (path,) = yaml.safe_load(recipe.read_text())["tasks"]
        key = load_key(recipe.parent / "pseudonym.key")
        return load_task(path, data_root=recipe.parent, key=key)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_few_subjects_are_cross_validated(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.fill(12, label=lambda n: "" if n == 11 else n % 3 % 2, age=lambda n: 50 + n)
    task = case.task("--label", "ill", "--modality", "MR", "--clinical", "age", "--groups", "age")
    assert task.card.protocol.repeated_cv is not None
    assert task.card.protocol.repeated_cv.folds == 4
    assert (len(task.subjects), task.num_unlabelled) == (11, 1)
    assert task.card.floors.clinical == ("age",)
    assert task.candidates[0].modality == "MR"
    assert task.candidates[0].scan == str(case.root / "scans/p00.nii")
    out = capsys.readouterr().out
    assert "guessed binary: ill holds 0, 1" in out
    assert "guessed 12 scans by names as in column 'patient'; 0 scans and 0 rows" in out


def test_a_split_of_the_table_is_taken(case: Case) -> None:
    part = ("Training", "train", "validation", "test")
    case.fill(16, label=lambda n: ("a", "b")[n // 4 % 2], part=lambda n: part[n % 4])
    task = case.task("--label", "ill", "--modality", "OT", "--split", "part")
    assert [len(task.rows(split)) for split in ("train", "val", "test")] == [8, 4, 4]
    assert task.card.label.positive == "b"


def test_survival_and_several_labels(case: Case) -> None:
    case.fill(12, label=lambda n: n % 2, days=lambda n: 5 + n, other=lambda n: n // 2 % 2)
    task = case.task("--time", "days", "--event", "ill", "--modality", "MR")
    assert (task.card.kind, task.label.shape) == ("survival", (12, 2))
    task = case.task("--label", "ill,other", "--modality", "MR")
    assert (task.card.kind, task.label.shape) == ("multilabel", (12, 2))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--label", "il", "--modality", "MR"), "has no column 'il'; it has patient, ill"),
        (("--label", "ill"), "say --modality CT, MR, PT, OT"),
        (("--modality", "MR"), "say what is predicted: --label COLUMN"),
        (("--label", "patient", "--modality", "MR"), "'patient' is 'p00' in 1 subjects"),
        (("--label", "ill", "--modality", "MR", "--split", "ill"), "'ill' holds 0; a split is"),
        (("--label", "ill", "--modality", "MR", "--out", "Ill-1"), "small letters, digits and _"),
    ],
)
def test_what_is_wrong_is_one_line_and_ends_the_command(
    case: Case, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    case.fill(6, label=lambda n: n % 2)
    case.given("--label", "ill")  # writes the table
    start = ["{function: 'nowhere:none'}", str(case.root / "scans"), str(case.root / "labels.csv")]
    with pytest.raises(SystemExit) as caught:
        quick.main([*start, "--out", str(case.root / "ill"), *words])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert error in shown
    assert shown.count("\n") == 1


def test_rows_show_backbones_first_and_say_why_a_score_is_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def model(name: str, kind: str, **score: Any) -> dict[str, Any]:
        empty = {"value": None, "low": None, "high": None, "reason": None}
        return {
            "model": name, "kind": kind, "protocol": "linear", "scores": {"auroc": empty | score},
        }  # fmt: skip

    models = [
        model("volume", "floor", value=0.5, reason="a constant"),
        model("mae", "backbone", value=0.75, low=0.61234, high=0.9),
        model("age", "floor", reason="the split has one class"),
    ]
    found = {"metric": "auroc", "split": "val", "n": 12, "models": models}
    monkeypatch.setattr(quick, "read_run", lambda _: {"tasks": {"ill": {}}})
    monkeypatch.setattr(quick, "read_statistics", lambda *_: found)
    assert quick.scored_rows(Path("stores/ill")).splitlines()[1:] == [
        "ill: auroc on val, 12 subjects",
        "  mae     linear  0.750 [0.612, 0.900]",
        "  volume  linear  0.500 (no interval: a constant)",
        "  age     linear  null: the split has one class",
    ]


@pytest.mark.slow
def test_one_command_from_scans_and_labels_to_a_scored_row(
    case: Case, place: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    case.fill(24, label=lambda n: ("no", "yes")[n % 2], age=lambda n: 50 + n % 7)
    given = case.given("--label", "ill")
    report = case.root / "reports/ill"
    quick.main(
        [
            str(place.backbone("toy")), str(given.scans), str(given.labels), "--label", "ill",
            "--modality", "MR", "--clinical", "age", "--out", str(given.out),
            "--report", str(report),
        ]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"\n  toy +linear +(1\.000|0\.[6-9]\d\d) \[0\.", out), out
    assert re.search(r"\n  clinical +linear +0\.\d", out)
    assert report.with_suffix(".html").is_file()
    quick.score(given.out.with_name("ill_recipe") / "ill.yaml")
    assert "up to date" in capsys.readouterr().out


def test_a_backbone_is_a_folder_a_run_or_a_line(tmp_path: Path) -> None:
    touch(tmp_path, "mae/backbone/model.safetensors", "early/log.jsonl")
    published = {"mae": str(tmp_path / "mae/backbone")}
    assert quick._backbone(str(tmp_path / "mae")) == published
    assert quick._backbone(str(tmp_path / "mae/backbone")) == published
    assert quick._backbone(str(tmp_path / "early")) == {"early": {"run": str(tmp_path / "early")}}
    line = {"timm": "resnet18", "weights": None}
    assert quick._backbone("{timm: resnet18, weights: null}") == {"backbone": line}
    assert quick._backbone("demo") == {"demo": "demo"}
    assert quick._backbone("hf://lab/vit.large@v2") == {"vit": "hf://lab/vit.large@v2"}
    with pytest.raises(TaskError, match="is no line of a recipe"):
        quick._backbone("{timm: [")
