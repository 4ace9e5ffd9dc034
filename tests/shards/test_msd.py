"""The Medical Segmentation Decathlon: its list of cases, its channels, and what is refused."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from recipes.load import RecipeError
from shards.policy import LENIENT
from shards.scan import ScanError, read_scan
from shards.sources.cohort import Cohort, CohortError, load_cohort
from shards.sources.source import SourceConfig, read_source
from shards.sources.visit import read_visits

SHAPE = (7, 5, 4)  # x, y, z of a file; never a cube
HEAD = (
    "name: toy\nlicence: CC BY-SA 4.0\nsource: written by this test\nmsd: Task01_Toy/dataset.json\n"
)


def write_case(folder: Path, name: str, *, channels: int) -> None:
    rng = np.random.default_rng(len(name))
    voxels = rng.normal(50, 9, (*SHAPE, channels)).astype(np.float32)
    affine = np.diag([1.5, 1.0, 3.0, 1.0])
    label = np.eye(*SHAPE[:2], dtype=np.uint8)[..., None].repeat(SHAPE[2], 2)
    arrays = {"imagesTr": voxels if channels > 1 else voxels[..., 0], "labelsTr": label}
    for kind, array in arrays.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = nibabel.nifti1.Nifti1Image(array, affine)
        nibabel.nifti1.save(image, folder / kind / f"{name}.nii.gz")


def write_task(root: Path, *, modality: dict[str, str], names: list[str]) -> None:
    folder = root / "Task01_Toy"
    for name in names:
        write_case(folder, name, channels=len(modality))
    content = {
        "name": "Toy",
        "modality": modality,
        "labels": {"0": "background", "1": "edema"},
        "numTraining": len(names),
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": ["./imagesTs/TOY_900.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def cohort(root: Path, extra: str = "") -> Cohort:
    (root / "toy.yaml").write_text(HEAD + extra)
    return load_cohort(root / "toy.yaml", data_root=root)


def test_labelled_cases_are_rows_and_the_hidden_test_is_left_out(tmp_path: Path) -> None:
    write_task(tmp_path, modality={"0": "CT"}, names=["TOY_001", "TOY_004"])
    found = cohort(tmp_path)
    first, second = found.rows
    assert (first.subject, second.subject) == ("TOY_001", "TOY_004")
    assert first.scan == str(tmp_path / "Task01_Toy/imagesTr/TOY_001.nii.gz")
    assert first.mask == str(tmp_path / "Task01_Toy/labelsTr/TOY_001.nii.gz")
    assert first.masks == {"label": first.mask}
    assert (first.modality, first.split, first.sequences) == ("CT", None, {})
    assert first.values == {"case": "TOY_001"}
    assert read_scan(first.scan, modality="CT").voxels.shape == (4, 5, 7)


def test_channels_are_sequences_in_their_order(tmp_path: Path) -> None:
    names = {"2": "t1gd", "0": "FLAIR", "1": "T1w", "3": "T2 w"}
    write_task(tmp_path, modality=names, names=["TOY_001"])
    (row,) = cohort(tmp_path, "modality: MR\n").rows
    file = str(tmp_path / "Task01_Toy/imagesTr/TOY_001.nii.gz")
    assert row.sequences == {
        "flair": f"{file}#0",
        "t1w": f"{file}#1",
        "t1gd": f"{file}#2",
        "t2_w": f"{file}#3",
    }
    assert row.scan == f"{file}#0"
    assert row.modalities == dict.fromkeys(row.sequences, "MR")


def test_a_channel_of_a_file_is_a_scan(tmp_path: Path) -> None:
    write_case(tmp_path, "TOY_001", channels=3)
    file = tmp_path / "imagesTr/TOY_001.nii.gz"
    whole = np.asarray(nibabel.nifti1.load(file).dataobj)
    for number in range(3):
        scan = read_scan(f"{file}#{number}", modality="MR")
        assert scan.spacing_mm == (3.0, 1.0, 1.5)
        expected = whole[::-1, ::-1, :, number].transpose(2, 1, 0)
        np.testing.assert_allclose(scan.voxels, expected, rtol=1e-6)
    for member, words in (("3", "no such channel"), ("-1", "not exist"), ("x", "not exist")):
        with pytest.raises(ScanError, match=words):
            read_scan(f"{file}#{member}", modality="MR")
    with pytest.raises(ScanError, match="does not exist"):
        read_scan(tmp_path / "none.nii.gz#0", modality="MR")
    with pytest.raises(ScanError, match="several volumes"):
        read_scan(file, modality="MR")


def test_the_split_is_drawn_by_case(tmp_path: Path) -> None:
    write_task(tmp_path, modality={"0": "MRI"}, names=[f"TOY_{number:03d}" for number in range(10)])
    rows = cohort(tmp_path, "split: {train: 0.6, val: 0.2, test: 0.2, seed: 0}\n").rows
    assert sorted(str(row.split) for row in rows) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    assert {row.modality for row in rows} == {"MR"}


def test_shards_hold_every_channel_and_the_label(tmp_path: Path) -> None:
    write_task(tmp_path, modality={"0": "T2", "1": "ADC"}, names=["TOY_001"])
    cohort(tmp_path, "modality: MR\n")
    config = SourceConfig(cohort=str(tmp_path / "toy.yaml"), policy=LENIENT)
    (one,) = read_source(config, data_root=tmp_path).inputs
    assert [part.name for part in one.sequences] == ["t2", "adc"]
    assert one.sequences[1].where == "Task01_Toy/imagesTr/TOY_001.nii.gz#1"
    (visit,) = read_visits(one.sequences, one.masks, root=Path(one.root), policy=config.policy)
    assert list(visit.scans) == ["t2", "adc"]
    assert visit.masks["label"].shape == visit.first.voxels.shape


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "JSONDecodeError"),
        ("[]", "not a dataset.json of the Decathlon"),
        ({"training": []}, "KeyError: 'modality'"),
        ({"modality": {"0": "CT"}, "training": ["imagesTs/a.nii.gz"]}, "not a dataset.json"),
        ({"modality": {"1": "CT"}, "training": []}, "numbers channels from 0"),
        ({"modality": {"0": "CT"}, "training": []}, "has no rows"),
    ],
)
def test_a_file_that_is_no_list_is_one_clear_line(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "Task01_Toy").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "Task01_Toy/dataset.json").write_text(text)
    with pytest.raises(CohortError, match=words) as caught:
        cohort(tmp_path)
    assert "\n" not in str(caught.value)


def test_keys_an_msd_brings_itself_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, modality={"0": "CT"}, names=["TOY_001"])
    with pytest.raises(RecipeError, match="an msd brings its own"):
        cohort(tmp_path, "mask: x\n")
    with pytest.raises(CohortError, match="an msd has no columns"):
        cohort(tmp_path, "split: {column: part}\n")
    with pytest.raises(RecipeError, match="either table or npz or msd"):
        cohort(tmp_path, "npz: a.npz\n")
    (tmp_path / "alone.yaml").write_text(HEAD)
    with pytest.raises(CohortError, match="does not exist; its data is: written by this test"):
        load_cohort(tmp_path / "alone.yaml", data_root=tmp_path / "elsewhere")
