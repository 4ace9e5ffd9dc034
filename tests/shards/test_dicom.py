"""DICOM written with known truth comes back exactly; what cannot be placed names its fault."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dicom.series import read_series
from shards.dicom.tree import find_series, read_tree
from shards.policy import Policy
from shards.scan import ScanError, read_scan

SHAPE = (5, 7, 6)
Write = Callable[..., None]


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


def test_an_axial_ct(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    """The file names run against the position, and the names alone."""
    series(tmp_path / "a", truth)
    scan = read_scan(tmp_path / "a")
    np.testing.assert_array_equal(scan.voxels, truth)
    assert scan.voxels.dtype == np.int16
    assert scan.spacing_mm == (4.0, 2.0, 1.5)
    assert (scan.modality, scan.origin.subject) == ("CT", "PAT-1")


def test_a_coronal_series_from_behind(tmp_path: Path, slice_file: Write) -> None:
    """Columns run to the patient's left, rows down, slices from behind to the front."""
    pixels = np.arange(5 * 4 * 3).reshape(5, 4, 3)
    for number, one in enumerate(pixels):
        slice_file(
            tmp_path / f"a/{number}",
            one,
            position=(0, 100.0 - 3.0 * number, 50),
            changes={"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "RescaleIntercept": 0},
        )
    scan = read_scan(tmp_path / "a")
    assert scan.spacing_mm == (2.0, 3.0, 1.5)
    np.testing.assert_array_equal(scan.voxels, pixels[::-1, ::-1].transpose(1, 0, 2))


def test_each_slice_has_its_own_rescale(tmp_path: Path, slice_file: Write) -> None:
    for number, slope in enumerate((0.5, 2.0, 1.25)):
        slice_file(
            tmp_path / f"a/{number}",
            np.full((3, 4), 8),
            position=(0, 0, 5.0 * number),
            changes={"Modality": "MR", "RescaleSlope": slope, "RescaleIntercept": 1},
        )
    scan = read_scan(tmp_path / "a")
    assert scan.voxels.dtype == np.float32
    assert scan.voxels[:, 0, 0].tolist() == [5.0, 17.0, 11.0]


def test_unsigned_pixels(tmp_path: Path, slice_file: Write) -> None:
    high = np.full((3, 4), 40000, np.uint16)
    for number in range(2):
        slice_file(
            tmp_path / f"a/{number}",
            high.view(np.int16),
            position=(0, 0, 5.0 * number),
            changes={"PixelRepresentation": 0, "Modality": "MR", "RescaleIntercept": 0},
        )
    assert (read_scan(tmp_path / "a").voxels == 40000).all()


def test_padding_becomes_air(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    truth[:, 0, 0] = -3000
    series(tmp_path / "a", truth, PixelPaddingValue=-3000 + 1024)
    voxels = read_scan(tmp_path / "a").voxels
    assert (voxels[:, 0, 0] == truth[truth > -3000].min()).all()
    np.testing.assert_array_equal(voxels[:, 1:], truth[:, 1:])


def test_only_known_words_leave_the_header(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    series(tmp_path / "a", truth, BodyPartExamined="CHEST", Manufacturer="GE MEDICAL SYSTEMS")
    series(tmp_path / "b", truth, BodyPartExamined="SMITH", Manufacturer="Smith and Sons")
    assert read_scan(tmp_path / "a").metadata == {
        "body_part": "CHEST",
        "manufacturer": "GE",
        "slice_thickness_mm": 4.0,
    }
    assert read_scan(tmp_path / "b").metadata == {"slice_thickness_mm": 4.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SamplesPerPixel": 3}, "a colour image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"BurnedInAnnotation": "YES"}, "burned"),
        ({"PixelSpacing": None}, "valid PixelSpacing"),
        ({"ImagePositionPatient": None}, "valid ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "valid ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "valid ImageOrientationPatient"),
        ({"RescaleIntercept": None}, "without a rescale"),
        ({"Modality": "US"}, "a modality other than"),
        ({"Modality": "PT", "Units": "1CM"}, "standardised uptake"),
        ({"PixelData": None}, "truncated, damaged or absent"),
        ({"PixelData": b"\0" * 20}, "truncated"),
        ({"PixelSpacing": [0.0, 1.0]}, "valid PixelSpacing"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a colour image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "a mosaic"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary capture"),
        ({"RescaleType": "MGML"}, "not in Hounsfield units"),
        ({"Rows": 60000, "Columns": 60000}, "impossible size"),
        ({"Rows": 6000, "Columns": 6000}, "fewer pixels than its header"),
        ({"BitsAllocated": 12}, "valid size"),
        ({"RescaleSlope": 0}, "rescale that leaves no usable"),
        ({"RescaleSlope": 1e30}, "rescale that leaves no usable"),
        ({"RescaleIntercept": 4294966272}, "rescale that leaves no usable"),
        ({"RescaleIntercept": 1e6}, "beyond the range of Hounsfield units"),
    ],
)
def test_what_is_no_scan_is_refused(
    tmp_path: Path, series: Write, truth: np.ndarray, changes: dict[str, Any], reason: str
) -> None:
    series(tmp_path / "a", truth, **changes)
    with pytest.raises(ScanError, match=reason):
        read_scan(tmp_path / "a")


def test_orientations_of_one_series_are_kept_apart(
    tmp_path: Path, series: Write, slice_file: Write, truth: np.ndarray
) -> None:
    series(tmp_path / "a", truth)
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    slice_file(tmp_path / "a/scout", truth[0], position=(0, 0, 0), changes=sagittal)
    assert sorted(len(one.files) for one in find_series(tmp_path)) == [1, 5]
    with pytest.raises(ScanError, match="2 DICOM series, expected one"):
        read_scan(tmp_path / "a")


def test_copies_of_a_series_and_a_series_in_two_folders(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    series(tmp_path / "a", truth)
    parts = sorted((tmp_path / "a").iterdir())
    for folder, files in (("copy", parts), ("moved", parts[:2])):
        (tmp_path / folder).mkdir()
        for path in files:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    assert [len(one.files) for one in find_series(tmp_path)] == [5, 5, 2]
    for path in parts[:2]:
        path.unlink()
    (tmp_path / "copy").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    assert [len(one.files) for one in find_series(tmp_path)] == [5]


def test_what_is_no_image_is_skipped(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    series(tmp_path / "a", truth)
    series(tmp_path / "b", truth[:1], Rows=None, PixelData=None)
    (tmp_path / "a/notes.txt").write_text("hello")
    tree = read_tree(tmp_path)
    assert len(tree.series) == 1
    assert [(path.name, why) for path, why in tree.skipped] == [
        ("notes.txt", "not a DICOM file"),
        ("IM001", "DICOM without an image"),
    ]


def test_truncated_files(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    """Cut anywhere behind the header, a slice is refused; cut in the header, it is no image."""
    for share in (0.99, 0.9, 0.6):
        folder = tmp_path / str(share)
        series(folder, truth)
        path = folder / "IM003"
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ScanError):
            read_scan(folder)


def test_too_few_slices_and_a_single_one(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    series(tmp_path / "a", truth)
    with pytest.raises(ScanError, match="5 slices, the recipe asks for 6"):
        read_scan(tmp_path / "a", policy=Policy(min_slices=6))
    series(tmp_path / "one", truth[:1])
    assert read_scan(tmp_path / "one").spacing_mm == (4.0, 2.0, 1.5)
    series(tmp_path / "unknown", truth[:1], SliceThickness=None)
    with pytest.raises(ScanError, match="without thickness"):
        read_scan(tmp_path / "unknown")


def test_the_recipe_and_the_header_must_agree(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    series(tmp_path / "a", truth)
    with pytest.raises(ScanError, match="the header says CT, the recipe says MR"):
        read_scan(tmp_path / "a", modality="MR")


@pytest.mark.real
def test_real_series_agree_with_their_ground_truth(real_data: Path) -> None:
    """Voxel for voxel; spacing to 1e-5 mm. The NIfTI files were made by another program."""
    root = real_data / "dicom"
    compared, refused = 0, {}
    for one in read_tree(root).series:
        folder = one.files[0].parent
        try:
            scan = read_scan(folder)
        except ScanError as error:
            refused[folder.relative_to(root).as_posix()] = str(error)
            continue
        for path in folder.parent.glob(f"{folder.name}_ground_truth*.nii.gz"):
            expected = read_scan(path, modality="MR")
            np.testing.assert_array_equal(scan.voxels, expected.voxels)
            np.testing.assert_allclose(scan.spacing_mm, expected.spacing_mm, atol=1e-5)
            assert scan.affine is not None
            assert expected.affine is not None
            np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-3)
            compared += 1
    assert compared == 28
    assert refused == {
        "d2n_ge/001_single_slice": "a single slice without thickness: its geometry is unknown",
        "d2n_generic/rgb/001": "a colour image, not a scan of one intensity",
    }
    with pytest.raises(ScanError, match="colour"):
        read_scan(root / "d2n_generic/rgb/001_ground_truth.nii.gz", modality="MR")


def test_no_word_of_a_header_is_logged(
    tmp_path: Path, slice_file: Write, truth: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """The parser warns of values that break the standard, and quotes them."""
    for number, pixels in enumerate(truth):
        path = tmp_path / f"a/{number}"
        slice_file(path, pixels, position=(0, 0, 4.0 * number), changes={"StudyDate": "20240305"})
        content = path.read_bytes()
        assert content.count(b"20240305") == 1
        content = content.replace(b"20240305", b"Smythe66")
        assert content.count(b"PAT-1 ") == 1
        path.write_bytes(content.replace(b"PAT-1 ", b"\xe9\x9f\xff\xfe\0\xe9"))
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scan = read_scan(tmp_path / "a")
    assert scan.origin.date is None
    assert not [str(one.message) for one in warned]
    assert not caplog.records


@pytest.mark.parametrize("depth", [50, 5000])
def test_sequences_within_sequences(
    tmp_path: Path, series: Write, truth: np.ndarray, depth: int
) -> None:
    """Undefined lengths without an end; the header is read, or the file is none."""
    series(tmp_path / "a", truth)
    path = tmp_path / "a/IM003"
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x20\x00LO")
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth
    path.write_bytes(content[:at] + nested + content[at:])
    tree = read_tree(tmp_path)
    assert [reason for _, reason in tree.skipped] == ["not a DICOM file"]
    with pytest.raises(ScanError, match="cannot be read"):
        list(read_series([path]))
