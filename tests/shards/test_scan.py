"""NIfTI and npz files come out in the patient frame, in physical units, or as a clear reason."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shards.policy import Policy
from shards.scan import Scan, ScanError, read_scan, resample

SHAPE = (7, 6, 5)  # stored axes of the test images


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_a_marked_voxel_lands_where_the_patient_has_it(tmp_path: Path, tilt: float) -> None:
    """Stored axes: backwards (1 mm), up (2 mm), to the left (3 mm), turned by ``tilt`` radians."""
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -3.0], [-1.0, 0, 0], [0, 2.0, 0]])
    voxels = np.zeros(SHAPE, np.int16)
    voxels[6, 1, 2] = 5
    scan = read_scan(_save(tmp_path / "a.nii.gz", voxels, affine), modality="MR")
    assert scan.voxels.shape == (6, 7, 5)
    np.testing.assert_allclose(scan.spacing_mm, (2.0, 1.0, 3.0), rtol=1e-6)
    assert np.argwhere(scan.voxels == 5).tolist() == [[1, 6, 2]]


def test_right_and_front_come_first(tmp_path: Path) -> None:
    """An RAS file: its first axis ends at the right, which is where W begins."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[6, 5, 0] = 9
    scan = read_scan(_save(tmp_path / "a.nii", voxels), modality="MR")
    assert scan.spacing_mm == (3.0, 2.0, 1.0)
    assert np.argwhere(scan.voxels == 9).tolist() == [[0, 0, 0]]


def test_the_scale_of_the_header_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii", modality="PT")
    assert scan.voxels.dtype == np.float32
    assert sorted(scan.voxels.ravel()) == [0.5 * number - 3 for number in range(210)]


def test_types_and_units(tmp_path: Path) -> None:
    whole = np.arange(210).reshape(SHAPE)
    for name, stored, modality, expected in (
        ("uint8", whole.astype(np.uint8), "MR", np.int16),
        ("int32", whole.astype(np.int32), "MR", np.int16),
        ("uint16", (whole + 60000).astype(np.uint16), "MR", np.float32),
        ("float", (whole - 0.4).astype(np.float64), "CT", np.int16),
    ):
        scan = read_scan(_save(tmp_path / f"{name}.nii", stored), modality=modality)
        assert scan.voxels.dtype == expected, name
    assert scan.voxels.max() == 209  # 208.6 is rounded, not cut


def test_what_is_not_finite_takes_the_lowest_value(tmp_path: Path) -> None:
    voxels = np.full(SHAPE, 4.5, np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = np.nan, np.inf, 2.5
    scan = read_scan(_save(tmp_path / "a.nii", voxels), modality="MR")
    assert (scan.voxels == 2.5).sum() == 3


def test_one_volume_in_four_dimensions(tmp_path: Path) -> None:
    voxels = np.ones((*SHAPE, 1), np.int16)
    assert read_scan(_save(tmp_path / "a.nii", voxels), modality="MR").voxels.shape == (5, 6, 7)


@pytest.mark.parametrize(
    ("name", "voxels", "reason"),
    [
        ("vectors", np.ones((*SHAPE, 1, 3), np.int16), "5 dimensions, expected three"),
        ("flat", np.ones(SHAPE[:2], np.int16), "2 dimensions"),
        ("nan", np.full(SHAPE, np.nan, np.float32), "no voxel has a finite value"),
        ("colour", np.zeros(SHAPE, [(c, "u1") for c in "RGB"]), "colour"),
        ("complex", np.ones(SHAPE, np.complex64), "complex"),
        ("thin", np.ones((7, 6, 2), np.int16), "2 slices, the recipe asks for 3"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, name: str, voxels: np.ndarray, reason: str
) -> None:
    path = _save(tmp_path / f"{name}.nii.gz", voxels)
    with pytest.raises(ScanError, match=reason):
        read_scan(path, modality="MR", policy=Policy(min_slices=3))


def test_hounsfield_units_must_fit(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii", np.full(SHAPE, 40000, np.float32))
    with pytest.raises(ScanError, match="Hounsfield"):
        read_scan(path, modality="CT")


def test_shear_and_missing_axes_are_refused(tmp_path: Path) -> None:
    sheared, broken = np.eye(4), np.eye(4)
    sheared[0, 2], broken[1, 1] = 0.2, 0
    for affine, reason in ((sheared, "perpendicular"), (broken, "no length")):
        image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), None)
        image.set_sform(affine, code=1)
        nibabel.save(image, tmp_path / "a.nii")
        with pytest.raises(ScanError, match=reason):
            read_scan(tmp_path / "a.nii", modality="MR")


def test_damaged_files_name_no_path(tmp_path: Path) -> None:
    whole = _save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE, np.int16))
    content = whole.read_bytes()
    faults = {
        "cut.nii.gz": content[: len(content) * 2 // 3],
        "text.nii.gz": b"no image at all",
        "text.nii": b"no image at all" * 100,
        "empty.nii": b"",
        "short.nii": gzip.decompress(content)[:-50],
    }
    for name, damaged in faults.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ScanError, match="truncated or damaged") as caught:
            read_scan(tmp_path / name, modality="MR")
        assert str(tmp_path) not in str(caught.value)


def test_what_is_missing_or_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    path = _save(tmp_path / "a.nii", np.ones(SHAPE, np.int16))
    for where, modality, reason in (
        (tmp_path / "none.nii", "MR", "does not exist"),
        (tmp_path / "a.png", "MR", "neither a NIfTI"),
        (path, None, "does not tell its modality"),
        (path, "XX", "not one of CT"),
        (f"{path}#train/0", "OT", "does not exist"),
        (f"{tmp_path / 'none.npz'}#train/0", "OT", "not a readable member"),
        (f"{tmp_path / 'none.tar'}#512+9", "OT", "not a readable member"),
    ):
        with pytest.raises(ScanError, match=reason):
            read_scan(where, modality=modality)


def test_a_shape_of_an_npz(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 6), np.uint8) * 255
    np.savez_compressed(tmp_path / "a.npz", val_images=volumes)
    scan = read_scan(f"{tmp_path / 'a.npz'}#val/2")
    assert (scan.modality, scan.spacing_mm) == ("OT", (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(scan.voxels, volumes[2])
    with pytest.raises(ScanError, match="IndexError"):
        read_scan(f"{tmp_path / 'a.npz'}#val/3")


def test_resampling_keeps_units_place_and_slope() -> None:
    ramp = np.broadcast_to(np.arange(12)[:, None, None] * 30 - 1000, (12, 20, 16))
    scan = Scan(ramp.astype(np.int16), (2.0, 1.0, 1.0), "CT")
    coarse = resample(scan, (4.0, 2.0, 1.0))
    assert coarse.voxels.shape == (6, 10, 16)
    assert coarse.voxels.dtype == np.int16
    # Away from the border a ramp stays a ramp: 60 HU a voxel, half a fine voxel further in.
    np.testing.assert_allclose(
        coarse.voxels[2:4, 5, 8], [-1000 + 30 * 4.5, -1000 + 30 * 6.5], atol=2
    )
    fine = resample(scan, (1.0, 1.0, 1.0))
    assert fine.voxels.shape == (24, 20, 16)
    assert fine.voxels.min() == -1000  # nothing but the scan at its border
    assert resample(scan, (2.0, 1.0, 1.0005)) is scan


def test_resampling_refuses_to_lose_the_scan() -> None:
    scan = Scan(np.ones((4, 5, 6), np.int16), (1.0, 1.0, 1.0), "MR")
    with pytest.raises(ScanError, match="less than one voxel"):
        resample(scan, (9.0, 1.0, 1.0))
