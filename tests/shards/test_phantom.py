"""The phantom cohort on a few subjects: files, geometry, tables, determinism."""

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from recipes.load import digest
from shards.phantom.cohort import PhantomError, draw_splits, scan_digest, write_cohort
from shards.phantom.disease import LESION_LABELS, LOOK_ALIKE_SHARE, draw_lesions
from shards.phantom.simulate import simulate
from shards.phantom.space import Grid, field, region
from shards.phantom.subject import DISEASES

SUBJECTS = 5
FROZEN = "699c3516db173b1d45974f15fded43e91a84e4db6cf6956f94d0b55f5bea3cc1"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    assert write_cohort(out, subjects=SUBJECTS, seed=1, workers=1)
    return out


def _rows(folder: Path, name: str = "cohort.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as table:
        return list(csv.DictReader(table))


def _all_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_workers_write_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again", subjects=SUBJECTS, seed=1, workers=2)
    assert _all_bytes(tmp_path / "again") == _all_bytes(cohort)


def test_a_subject_does_not_depend_on_the_size_of_its_cohort(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "small", subjects=1, seed=1, workers=1)
    small = _rows(tmp_path / "small", "lesions.csv")
    assert small == _rows(cohort, "lesions.csv")[:1]
    scan = _rows(tmp_path / "small")[0]["scan"]
    assert (tmp_path / "small" / scan).read_bytes() == (cohort / scan).read_bytes()


def test_dicom_holds_the_scan_in_order_of_position(cohort: Path) -> None:
    truth = simulate(1, 1).scans[1]
    folder = cohort / "scans" / "phantom-1-0001" / "chest"
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    heights = [float(one.ImagePositionPatient[2]) for one in slices]
    assert heights != sorted(heights), "file names must not give the order away"
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    volume = np.stack(
        [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    )
    np.testing.assert_array_equal(volume, truth.voxels)
    steps = np.diff([float(one.ImagePositionPatient[2]) for one in slices])
    np.testing.assert_allclose(steps, truth.grid.spacing_mm[0], atol=1e-3)
    assert [float(v) for v in slices[0].PixelSpacing] == list(truth.grid.spacing_mm[1:])
    assert len({one.SOPInstanceUID for one in slices}) == len(slices)
    assert len({one.SeriesInstanceUID for one in slices}) == 1
    assert slices[0].PatientID == "phantom-1-0001"


def test_nifti_holds_the_scan_in_any_stored_order(cohort: Path) -> None:
    orders = set()
    for row in _rows(cohort):
        if not row["scan"].endswith(".nii.gz"):
            continue
        image = nib.load(cohort / row["scan"])
        orders.add("".join(nib.aff2axcodes(image.affine)))
        truth = simulate(1, int(row["subject"][-4:])).scans[0]
        canonical = nib.as_closest_canonical(image)
        lps = np.asarray(canonical.dataobj)[::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(lps, truth.voxels)
        zooms = tuple(float(v) for v in canonical.header.get_zooms()[::-1])
        assert zooms == pytest.approx(truth.grid.spacing_mm, abs=1e-4)
    assert len(orders) > 1


def test_masks_lie_on_the_grid_of_their_scan(cohort: Path) -> None:
    for row in _rows(cohort):
        mask, scan = nib.load(cohort / row["mask"]), cohort / row["scan"]
        if scan.is_dir():
            one = pydicom.dcmread(next(scan.iterdir()))
            shape = (one.Columns, one.Rows, len(list(scan.iterdir())))
            x, y, _ = one.ImagePositionPatient
            np.testing.assert_allclose(mask.affine[:2, 3], [-x, -y], atol=1e-3)
        else:
            image = nib.load(scan)
            shape = image.shape
            np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
        assert mask.shape == shape


def test_columns_and_splits(cohort: Path) -> None:
    rows = _rows(cohort)
    assert len(rows) == 2 * SUBJECTS
    assert Counter(row["body_part"] for row in rows) == {"head": SUBJECTS, "chest": SUBJECTS}
    assert {row[disease] for row in rows for disease in DISEASES} == {"0", "1"}
    of_subject = {(row["subject"], row["split"]) for row in rows}
    assert len(of_subject) == SUBJECTS
    assert not set(_rows(cohort, "lesions.csv")[0]) & (set(rows[0]) - {"subject"})
    assert all(int(row["survival_days"]) > 0 for row in rows)


def test_split_shares() -> None:
    assert Counter(draw_splits(20, seed=3)) == {"train": 10, "val": 4, "test": 6}
    assert draw_splits(20, seed=3) != draw_splits(20, seed=4)


def test_focal_lesions_are_in_the_mask_of_patients_alone() -> None:
    focal = {"stroke": 0, "infection": 1, "cancer": 1}
    seen = set()
    for index in range(8):
        subject, _, scans = simulate(1, index)
        for disease, scan in focal.items():
            has_lesion = bool((scans[scan].mask == LESION_LABELS[disease]).any())
            assert has_lesion == bool(subject.labels[disease])
            seen.add((disease, has_lesion))
    assert len(seen) == 6, "each disease must be seen present and absent"


def test_budgets_do_not_depend_on_the_label() -> None:
    """A patient's lesion and a healthy subject's look-alike are cut from the same amount."""
    ill, well = (
        draw_lesions(np.random.default_rng(7), dict.fromkeys(DISEASES, label)) for label in (1, 0)
    )
    share = LOOK_ALIKE_SHARE["stroke"]
    budgets = [one.stroke_volume_ml + one.benign_brain_ml / share for one in (ill, well)]
    assert budgets[0] == pytest.approx(budgets[1])
    assert well.stroke_volume_ml == 0 < ill.stroke_volume_ml


def test_region_cuts_the_volume_asked_for() -> None:
    grid = Grid((9, 14, 11), (4.0, 2.0, 3.0))
    score = field(grid, np.random.default_rng(0), wavelength_mm=12.0)
    inside = np.ones(grid.shape)
    alpha = region(score, inside=inside, volume_ml=6.0, voxel_ml=grid.voxel_ml, edge=0.01)
    # One voxel is 0.024 ml; the border is a hundredth of a deviation wide.
    assert float(alpha.sum()) * grid.voxel_ml == pytest.approx(6.0, abs=0.1)


def test_fields_have_unit_variance() -> None:
    grid = Grid((40, 50, 30), (4.0, 2.0, 3.0))
    values = [field(grid, np.random.default_rng(n), wavelength_mm=15.0) for n in range(4)]
    assert float(np.std(values)) == pytest.approx(1.0, abs=0.1)


def test_the_generator_is_frozen() -> None:
    """A change of any voxel must be meant: it raises GENERATOR_VERSION and reruns every claim.

    The generator works in float64 and rounds to integers, so a last-bit difference between two
    machines moves a voxel with a chance below 1e-6 per scan.
    """
    scans = [scan_digest(scan) for index in range(3) for scan in simulate(1, index).scans]
    assert digest(scans) == FROZEN


def test_the_same_command_again_does_nothing(cohort: Path) -> None:
    before = (cohort / "cohort.csv").stat().st_mtime_ns
    command = [sys.executable, "-m", "shards.phantom", str(cohort), "--subjects", str(SUBJECTS)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5, "two seconds on an idle machine"
    assert "up to date" in done.stdout
    assert (cohort / "cohort.csv").stat().st_mtime_ns == before


def test_other_settings_or_another_folder_are_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(PhantomError, match=r"seed 1, subjects 5, asked for .* seed 2"):
        write_cohort(cohort, subjects=SUBJECTS, seed=2, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(PhantomError, match="holds no phantom cohort"):
        write_cohort(tmp_path / "mine", subjects=1, seed=1, workers=1, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


def test_overwrite_replaces_a_cohort_and_mends_a_damaged_one(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    write_cohort(out, subjects=1, seed=1, workers=1)
    assert write_cohort(out, subjects=1, seed=2, workers=1, overwrite=True)
    assert json.loads((out / "phantom.json").read_text())["seed"] == 2
    (out / _rows(out)[0]["mask"]).unlink()
    with pytest.raises(PhantomError, match="is gone from this phantom cohort"):
        write_cohort(out, subjects=1, seed=2, workers=1)
    assert write_cohort(out, subjects=1, seed=2, workers=1, overwrite=True)
    assert not write_cohort(out, subjects=1, seed=2, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_a_failure_leaves_no_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("shards.phantom.cohort.write_dicom", fail)
    with pytest.raises(PhantomError, match="cannot be written: disk full"):
        write_cohort(tmp_path / "cohort", subjects=1, seed=1, workers=1)
    assert list(tmp_path.iterdir()) == []
