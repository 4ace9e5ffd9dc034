"""What there is to embed, what its rows are called, and which scans a backbone is for."""

import gzip
import runpy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from foundation.backbone import random_backbone, save_backbone
from foundation.embedding.coverage import Coverage, coverage_of, is_oriented
from foundation.embedding.features import InputError
from foundation.embedding.inputs import Item, JobError, find_items
from foundation.embedding.names import by_key, by_place
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from shards.phantom.cohort import write_subject
from shards.pseudonym import pseudonym
from shards.scan import Scan
from shards.sources.cohort import CohortError

KEY = bytes(32)
AFFINE = np.diag([1.5, 1.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subjects 0 and 2: a chest and a head in DICOM; subject 1: a chest in DICOM, a NIfTI head."""
    folder = tmp_path_factory.mktemp("phantom")
    for name in ("scans", "masks"):
        (folder / name).mkdir()
    rows = [row for index in range(3) for row in write_subject(index, folder=folder, seed=3).rows]
    names = ("subject", "scan", "modality", "body_part")
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder


def scan_of(**about: Any) -> Scan:
    given = {
        "voxels": np.zeros((8, 9, 10), np.int16),
        "spacing_mm": (3.0, 1.0, 1.5),
        "modality": "CT",
        "affine": np.eye(4),
    }
    return Scan(**(given | about))


def test_dicom_and_images_of_a_folder(phantom: Path) -> None:
    found = find_items(phantom / "scans", modality="MR")
    items = by_place(found.items)
    assert [(item.name, item.subject) for item in items] == [
        ("phantom-3-0000/chest", "phantom-3-0000"),
        ("phantom-3-0000/head", "phantom-3-0000"),
        ("phantom-3-0001/chest", "phantom-3-0001"),
        ("phantom-3-0001/head.nii.gz", "phantom-3-0001"),
        ("phantom-3-0002/chest", "phantom-3-0002"),
        ("phantom-3-0002/head", "phantom-3-0002"),
    ]
    assert [next(item.read()).modality for item in items[1:4]] == ["CT", "CT", "MR"]
    assert len(items[0].files) > 8
    assert not found.skipped


def test_a_cohort_and_a_table_of_the_same_scans(phantom: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "cohort.yaml"
    recipe.write_text(
        f"name: lab\ntable: {phantom.name}/cohort.csv\nsubject: '{{subject}}'\nscan: '{{scan}}'\n"
        "modality: '{modality}'\nlicence: CC0\nsource: made here\n"
    )
    of_cohort = find_items(recipe, data_root=phantom.parent)
    of_table = find_items(phantom / "cohort.csv")
    assert of_cohort.namespace == "lab"
    names = [item.name for item in of_table.items]
    assert names[:2] == ["scans/phantom-3-0000/head", "scans/phantom-3-0000/chest"]
    assert [item.name for item in of_cohort.items] == [f"{phantom.name}/{name}" for name in names]
    for one, other in zip(of_cohort.items, of_table.items, strict=True):
        assert one.subject == other.subject
        assert one.files == other.files
        np.testing.assert_array_equal(next(one.read()).voxels, next(other.read()).voxels)
    with pytest.raises(CohortError, match="does not exist"):
        find_items(recipe, data_root=tmp_path)


def test_the_example_runs_and_its_probe_tells_heads_from_chests(
    phantom: Path,
    tmp_path: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    config = VitConfig(size="toy", depth=1, patch_size=(4, 8, 6))
    save_backbone(
        tmp_path / "backbone",
        vit=build_vit(config),
        vit_config=config,
        preprocessing=Preprocessing(crop_shape=(16, 32, 24), spacing_mm=(8.0, 5.0, 6.0)),
        recipe={},
        provenance={},
    )
    monkeypatch.setenv("BACKBONE", str(tmp_path / "backbone"))
    monkeypatch.setenv("TABLE", str(phantom / "cohort.csv"))
    found = runpy.run_path(str(project / "examples/embed_and_probe.py"))
    assert found["x"].shape == (6, 2 * 96)
    assert found["auroc"] == 1.0
    assert "AUROC 1.000 of 6 scans, 3 subjects" in capsys.readouterr().out


def test_sequences_of_a_cohort_are_scans_of_one_subject(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,t1,t2\np1,a.nii,b.nii\np2,c.nii,\n")
    recipe = tmp_path / "cohort.yaml"
    recipe.write_text(
        "name: lab\ntable: t.csv\nsubject: '{who}'\nsequences: {t1w: '{t1}', t2w: '{t2}'}\n"
        "modality: MR\nlicence: CC0\nsource: made here\n"
    )
    items = find_items(recipe, data_root=tmp_path).items
    told = [(item.name, item.subject, item.sequence) for item in items]
    assert told == [("a.nii", "p1", "t1w"), ("b.nii", "p1", "t2w"), ("c.nii", "p2", "t1w")]


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for text, said in (
        ("path\na.nii\n", "no column 'scan', it has path"),
        ("scan,modality\na.nii,XR\n", "row 1: modality 'XR', expected one of CT, MR, PT, OT"),
        ("scan,subject\na.nii,p\n,p\n", "row 2: the cell of 'scan' is empty"),
    ):
        table.write_text(text)
        with pytest.raises(JobError, match=said):
            find_items(table)
    table.write_text("scan\na.nii\na.nii\n")
    with pytest.raises(JobError, match=r"a\.nii stands 2 times"):
        by_place(find_items(table).items)


def test_nrrd_and_metaimage_and_the_subject_in_a_name(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((9, 10, 11), np.int16))
    for name in ("p01_ct.nrrd", "p02_ct.mha", "p02_late.mhd"):
        SimpleITK.WriteImage(image, tmp_path / name)
    found = find_items(tmp_path, modality="CT", subject=r"(p\d+)_")
    told = [(item.name, item.subject) for item in found.items]
    assert told == [("p01_ct.nrrd", "p01"), ("p02_ct.mha", "p02"), ("p02_late.mhd", "p02")]
    assert [path.name for path in found.items[2].files] == ["p02_late.mhd", "p02_late.raw"]
    with pytest.raises(JobError, match="finds nothing in the name"):
        find_items(tmp_path, subject=r"sub-\d+")


def item_of(name: str, patient: str = "") -> Item:
    return Item(name, name.split("/")[0], lambda: iter(()), patient=patient)


def test_a_patient_id_groups_scans_and_is_never_written() -> None:
    items = [
        item_of("site/day1/ct", "DOE"),
        item_of("site/day2/ct", "DOE"),
        item_of("site/day3/ct", "ROE"),
        item_of("site/extra/ct", "DOE"),
        item_of("flat", "POE"),
    ]
    assert [item.subject for item in by_place(items)] == [
        "site",
        "site",
        "site/day3",
        "site",
        "flat",
    ]
    mixed = by_place([item_of("mixed", "DOE"), item_of("mixed#2", "ROE")])
    assert [item.subject for item in mixed] == ["mixed", "mixed#2"]


def test_pseudonyms_are_those_of_the_shards() -> None:
    named = by_key([item_of("a/ct", "DOE"), item_of("b.nii")], key=KEY, namespace="archive")
    subjects = {item.subject for item in named}
    assert subjects == {pseudonym(KEY, "archive", "DOE"), pseudonym(KEY, "archive", "b.nii")}
    assert [item.name for item in named] == sorted(item.name for item in named)


def test_coverage_is_what_contract_and_provenance_tell() -> None:
    config = VitConfig(size="toy", depth=1, patch_size=(4, 8, 6))
    fixed = Preprocessing(crop_shape=(8, 16, 18), spacing_mm=(4.0, 2.0, 2.0))
    backbone = random_backbone(config, preprocessing=fixed, seed=0)
    assert coverage_of(backbone) == Coverage(target_mm=(4.0, 2.0, 2.0))
    limits = {"low": [2, 0.5, 0.5], "high": [6, 1, 1]}
    backbone.provenance = {"shards": {"modalities": {"CT": 2, "MR": 1}, "spacing_mm": limits}}
    assert coverage_of(backbone) == Coverage(
        frozenset({"CT", "MR"}), (4.0, 2.0, 2.0), (2.0, 0.5, 0.5), (6.0, 1.0, 1.0)
    )
    for wrong in ({"modalities": 3}, {"spacing_mm": [1, 2]}, {"spacing_mm": {"low": [1, 2]}}, "x"):
        backbone.provenance = {"shards": wrong}
        with pytest.raises(InputError, match="does not say what it has seen"):
            coverage_of(backbone)


def test_reasons_by_modality_spacing_and_orientation() -> None:
    anything = Coverage()
    assert anything.reasons(scan_of(modality="PT", spacing_mm=(90.0, 1.0, 1.0))) == []
    seen = Coverage(frozenset({"CT", "MR"}), None, (2.0, 0.9, 1.0), (6.0, 1.0, 2.0))
    assert seen.reasons(scan_of()) == []
    # Ten percent beyond what was recorded is still covered.
    assert seen.reasons(scan_of(spacing_mm=(6.5, 1.0, 0.95))) == []
    assert seen.reasons(scan_of(modality="PT", spacing_mm=(7.0, 1.0, 0.5))) == [
        "modality PT, the backbone has seen CT and MR",
        "spacing of 7 mm along D, covered is 1.82 to 6.6",
        "spacing of 0.5 mm along W, covered is 0.909 to 2.2",
    ]
    target = Coverage(target_mm=(3.0, 2.0, 2.0))
    assert target.reasons(scan_of(spacing_mm=(0.5, 0.5, 4.0))) == []
    assert target.reasons(scan_of(spacing_mm=(3.0, 2.0, 4.5))) == [
        "spacing of 4.5 mm along W, covered is at most 4"
    ]
    unknown = ["the file does not say how the scan lies in the body"]
    assert anything.reasons(scan_of(affine=None)) == unknown
    assert anything.reasons(scan_of(), is_oriented=False) == unknown


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_nifti_file_may_leave_its_orientation_open(tmp_path: Path, kind: Any) -> None:
    image = kind(np.zeros((4, 5, 6), np.int16), AFFINE)
    stated = tmp_path / "stated.nii"
    nib.save(image, stated)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    open_ = tmp_path / "open.nii.gz"
    nib.save(image, open_)
    assert is_oriented(str(stated))
    assert not is_oriented(str(open_))
    assert not is_oriented(f"{open_}#0")
    image.set_qform(AFFINE, code=1)
    nib.save(image, open_)
    assert is_oriented(str(open_))
    open_.write_bytes(gzip.compress(b"short"))
    assert is_oriented(str(open_))  # the reader tells what is wrong with it
    assert is_oriented(str(tmp_path / "nowhere.nii"))
