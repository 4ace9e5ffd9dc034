"""Enhanced multi-frame objects: several stacks, times and echoes in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from shards.dicom.series import read_series
from shards.dicom.tree import read_tree
from shards.policy import Policy
from shards.scan import Scan, ScanError, read_scan

Write = Callable[..., None]
ANY = Policy(min_slices=1)
SHAPE = (5, 17, 11)
AXIAL = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
CT = {
    "PlaneOrientation": AXIAL,
    "PixelMeasures": {"PixelSpacing": [2.0, 1.5], "SliceThickness": 4.0},
    "PixelValueTransformation": {"RescaleSlope": 1, "RescaleIntercept": -1024},
    "CTXRayDetails": {"KVP": 120.0},
}
Frames = list[tuple[np.ndarray, dict[str, dict[str, Any]]]]


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, SHAPE)


def at(height: float, **content: Any) -> dict[str, dict[str, Any]]:
    return {
        "PlanePosition": {"ImagePositionPatient": [-5.0, -6.0, height]},
        "FrameContent": {"FrameAcquisitionNumber": 1, **content},
    }


def read(path: Path, policy: Policy = ANY) -> list[Scan]:
    return list(read_series([path], policy=policy))


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_a_ct_in_one_file(tmp_path: Path, multi_frame: Write, syntax: str) -> None:
    """The frames lie in no order; the shared groups hold what is the same for all."""
    order = [3, 0, 4, 1, 2]
    frames = [(volume(1)[place], at(4.0 * place)) for place in order]
    multi_frame(tmp_path / "ct", frames, shared=CT, changes={}, syntax=syntax)
    (scan,) = read(tmp_path / "ct", Policy(min_slices=5))
    np.testing.assert_array_equal(scan.voxels, volume(1) - 1024)
    assert scan.voxels.dtype == np.int16
    assert scan.spacing_mm == (4.0, 2.0, 1.5)
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine[:3, 3], [-5, -6, 0])
    assert scan.metadata == {"slice_thickness_mm": 4.0, "kvp": 120.0}
    assert scan.origin.subject == "PAT-1"


def test_each_frame_has_its_own_rescale(tmp_path: Path, multi_frame: Write) -> None:
    shared = {name: CT[name] for name in ("PlaneOrientation", "PixelMeasures")}
    slopes = [0.5, 2.0, 1.25]
    frames = [
        (
            np.full((3, 4), 8),
            at(5.0 * place)
            | {"PixelValueTransformation": {"RescaleSlope": slope, "RescaleIntercept": 1}},
        )
        for place, slope in enumerate(slopes)
    ]
    multi_frame(tmp_path / "mr", frames, shared=shared, changes={"Modality": "MR"})
    assert read(tmp_path / "mr")[0].voxels[:, 0, 0].tolist() == [5.0, 17.0, 11.0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_an_mr_of_two_stacks_and_two_times(tmp_path: Path, multi_frame: Write, syntax: str) -> None:
    """Stacks of two directions, twelve slices each; time runs fastest in the file."""
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    shared = {"PixelMeasures": {"PixelSpacing": [2.0, 1.5], "SliceThickness": 4.0}}
    random = np.random.default_rng(0)
    truth = random.integers(0, 900, (2, 2, 12, 6, 4))  # stack, time, slice, row, column
    frames: Frames = []
    for place in range(12):
        for stack, plane in enumerate((AXIAL, coronal)):
            position = [0, 0, 4.0 * place] if stack == 0 else [0, 4.0 * place, 50]
            for time in (0, 1):
                groups = {
                    "PlanePosition": {"ImagePositionPatient": position},
                    "PlaneOrientation": plane,
                    "FrameContent": {"StackID": str(stack), "TemporalPositionIndex": time + 1},
                }
                frames.append((truth[stack, time, place], groups))
    multi_frame(tmp_path / "mr", frames, shared=shared, changes={"Modality": "MR"}, syntax=syntax)
    scans = read(tmp_path / "mr")
    assert [scan.metadata["volume_of_series"] for scan in scans] == [1, 2, 3, 4]
    for time in (0, 1):
        np.testing.assert_array_equal(scans[time].voxels, truth[0, time])
        expected = truth[1, time].transpose(1, 0, 2)[::-1]
        np.testing.assert_array_equal(scans[2 + time].voxels, expected)
    with pytest.raises(ScanError, match="several slice directions"):
        read(tmp_path / "mr", Policy(min_slices=1, orientations="reject"))
    assert len(read(tmp_path / "mr", Policy(min_slices=1, time_points="first"))) == 2


def test_stacks_of_one_direction_stay_apart(tmp_path: Path, multi_frame: Write) -> None:
    """Two stations of a spine that meet: by their ID they are two volumes."""
    frames = [
        (volume(stack)[place], at(20.0 * stack + 4.0 * place, StackID=str(stack)))
        for stack in (0, 1)
        for place in range(5)
    ]
    multi_frame(tmp_path / "ct", frames, shared=CT, changes={})
    found = read(tmp_path / "ct")
    assert len(found) == 2
    np.testing.assert_array_equal(found[1].voxels, volume(1) - 1024)


def test_echoes_in_one_file(tmp_path: Path, multi_frame: Write) -> None:
    shared = {name: CT[name] for name in ("PlaneOrientation", "PixelMeasures")}
    frames = [
        (volume(echo)[place], at(4.0 * place) | {"MREcho": {"EffectiveEchoTime": 9.5 * echo}})
        for place in range(5)
        for echo in (2, 11)
    ]
    multi_frame(tmp_path / "mr", frames, shared=shared, changes={"Modality": "MR"})
    found = read(tmp_path / "mr")
    assert [scan.metadata["echo_time_ms"] for scan in found] == [19.0, 104.5]
    np.testing.assert_array_equal(found[1].voxels, volume(11))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"NumberOfFrames": 4}, "does not tell the place of each"),
        ({"PerFrameFunctionalGroupsSequence": None}, "does not tell the place of each"),
        ({"NumberOfFrames": 2**31 - 1}, "impossible size"),
        ({"NumberOfFrames": 5000, "Rows": 1, "Columns": 1}, "cannot hold the frames"),
        ({"NumberOfFrames": -3}, "valid size"),
        ({"SharedFunctionalGroupsSequence": None}, "valid ImageOrientationPatient"),
        ({"Rows": 60}, "fewer pixels than its header"),
    ],
)
def test_objects_that_cannot_be_read(
    tmp_path: Path, multi_frame: Write, changes: dict[str, Any], reason: str
) -> None:
    frames = [(volume(1)[place], at(4.0 * place)) for place in range(5)]
    multi_frame(tmp_path / "a/ct", frames, shared=CT, changes=changes)
    with pytest.raises(ScanError, match=reason):
        read_scan(tmp_path / "a")


def test_a_frame_of_no_place(tmp_path: Path, multi_frame: Write) -> None:
    frames: Frames = [(volume(1)[place], at(4.0 * place)) for place in range(5)]
    del frames[2][1]["PlanePosition"]
    multi_frame(tmp_path / "ct", frames, shared=CT, changes={})
    with pytest.raises(ScanError, match="valid ImagePositionPatient"):
        read(tmp_path / "ct")


def test_objects_of_one_series_are_their_own_inputs(tmp_path: Path, multi_frame: Write) -> None:
    frames = [(volume(1)[place], at(4.0 * place)) for place in range(5)]
    for name in ("a", "b"):
        multi_frame(tmp_path / name, frames, shared=CT, changes={})
    tree = read_tree(tmp_path)
    assert [(len(one.files), one.num_frames) for one in tree.series] == [(1, 5), (1, 5)]
