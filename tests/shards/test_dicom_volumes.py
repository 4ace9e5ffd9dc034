"""Several images at one place: repeats, time points, echoes; several directions in one series."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dicom.series import read_series
from shards.policy import Policy
from shards.scan import Scan, ScanError

Write = Callable[..., None]
SHAPE = (5, 6, 4)
ANY = Policy(min_slices=1)


def volume(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 900, SHAPE)
    found[0] = 0  # empty at one end in every volume
    return found


def write_volume(
    folder: Path,
    slice_file: Write,
    voxels: np.ndarray,
    *,
    name: str,
    number: int | None = None,
    heights: Iterable[int] | None = None,
    **changes: Any,
) -> None:
    """MR slices of 4 mm; instance numbers from ``number`` on."""
    for place in range(len(voxels)) if heights is None else heights:
        instance = None if number is None else number + place
        tags = {"Modality": "MR", "RescaleIntercept": 0, "InstanceNumber": instance, **changes}
        path = folder / f"{name}-{place}"
        slice_file(path, voxels[place], position=(-3, -2, 4.0 * place), changes=tags)


def read(folder: Path, policy: Policy = ANY) -> list[Scan]:
    return list(read_series(sorted(folder.iterdir()), policy=policy))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 10}),
        ({"EchoTime": 4.92}, {"EchoTime": 12.3}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "F"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "W"]}),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ({"TriggerTime": 0.0}, {"TriggerTime": 80.5}),
        ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101530.5"}),
        ({"number": 1}, {"number": 6}),
        ({"number": 1, "EchoTime": 3.0}, {"number": 30, "EchoTime": 3.0}),
    ],
)
def test_volumes_at_one_place(
    tmp_path: Path, slice_file: Write, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Told apart by one field, or by the order of acquisition alone; the files lie mixed."""
    write_volume(tmp_path, slice_file, volume(1), name="a", **first)
    write_volume(tmp_path, slice_file, volume(2), name="A", **second)
    scans = read(tmp_path)
    for scan, seed in zip(scans, (1, 2), strict=True):
        np.testing.assert_array_equal(scan.voxels, volume(seed))
        assert scan.metadata["volume_of_series"] == seed
        assert not scan.left_out
    (only,) = read(tmp_path, Policy(min_slices=1, time_points="first"))
    np.testing.assert_array_equal(only.voxels, volume(1))
    assert only.left_out == {"another volume at the same place": 5}
    with pytest.raises(ScanError, match="2 volumes at one place"):
        read(tmp_path, Policy(min_slices=1, time_points="reject"))


def test_echoes_of_time_points(tmp_path: Path, slice_file: Write) -> None:
    """Two fields together; a third differs by slice and tells nothing."""
    for time in (1, 2, 3):
        for echo in (1, 2):
            for place in range(SHAPE[0]):
                write_volume(
                    tmp_path,
                    slice_file,
                    volume(10 * time + echo),
                    name=f"{time}{echo}",
                    heights=[place],
                    TemporalPositionIdentifier=time,
                    EchoTime=4.0 * echo,
                    TriggerTime=float(place),
                )
    found = [scan.voxels for scan in read(tmp_path)]
    assert len(found) == 6
    for voxels, seed in zip(found, (11, 12, 21, 22, 31, 32), strict=True):
        np.testing.assert_array_equal(voxels, volume(seed))


def test_a_series_sent_twice(tmp_path: Path, slice_file: Write) -> None:
    """Other names, numbers and times, the same pixels: one scan, and the repeats are counted."""
    write_volume(tmp_path, slice_file, volume(1), name="a", number=1, AcquisitionTime="10")
    write_volume(tmp_path, slice_file, volume(1), name="b", number=6, AcquisitionTime="11")
    (scan,) = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels, volume(1))
    assert scan.left_out == {"a repeat of the same slice": 5}
    assert "volume_of_series" not in scan.metadata
    with pytest.raises(ScanError, match="the same slice more than once"):
        read(tmp_path, Policy(min_slices=1, repeated_slices="reject"))


def test_a_repeated_slice_within_time_points(tmp_path: Path, slice_file: Write) -> None:
    write_volume(tmp_path, slice_file, volume(1), name="a", number=1)
    write_volume(tmp_path, slice_file, volume(2), name="b", number=6)
    write_volume(tmp_path, slice_file, volume(2), name="c", number=20, heights=[3])
    write_volume(tmp_path, slice_file, volume(1), name="d", number=30, heights=[2])
    with pytest.raises(ScanError, match="nothing in the header tells apart"):
        # The empty slices are the same in both: one of them is a repeat, so an order is lost.
        read(tmp_path)
    write_volume(tmp_path, slice_file, volume(1), name="a", number=1, EchoTime=1)
    write_volume(tmp_path, slice_file, volume(2), name="b", number=6, EchoTime=2)
    (tmp_path / "c-3").unlink()
    (tmp_path / "d-2").unlink()
    assert [len(scan.voxels) for scan in read(tmp_path)] == [5, 5]


def test_a_series_that_was_stopped(tmp_path: Path, slice_file: Write) -> None:
    """The last time point lacks slices: it is a volume of fewer slices, or too few."""
    write_volume(tmp_path, slice_file, volume(1), name="a", AcquisitionNumber=1)
    stopped = range(2, 5)
    write_volume(tmp_path, slice_file, volume(2), name="b", heights=stopped, AcquisitionNumber=2)
    whole, part = read(tmp_path)
    np.testing.assert_array_equal(whole.voxels, volume(1))
    np.testing.assert_array_equal(part.voxels, volume(2)[2:])
    found = read_series(sorted(tmp_path.iterdir()), policy=Policy(min_slices=4))
    np.testing.assert_array_equal(next(found).voxels, volume(1))
    with pytest.raises(ScanError, match="3 slices, the recipe asks for 4"):
        next(found)


def test_images_that_nothing_tells_apart(tmp_path: Path, slice_file: Write) -> None:
    write_volume(tmp_path, slice_file, volume(1), name="a")
    write_volume(tmp_path, slice_file, volume(2), name="b", heights=[2])
    with pytest.raises(ScanError, match="nothing in the header tells apart"):
        read(tmp_path)


def test_slices_of_different_rescale_are_no_repeat(tmp_path: Path, slice_file: Write) -> None:
    write_volume(tmp_path, slice_file, volume(1), name="a", number=1, RescaleSlope=1)
    write_volume(tmp_path, slice_file, volume(1), name="b", number=6, RescaleSlope=2)
    assert len(read(tmp_path)) == 2


def test_directions_in_one_list_of_files(tmp_path: Path, slice_file: Write) -> None:
    """Twelve axial slices and one sagittal: two scans, or none; few of each plan a scan."""
    tall = np.arange(12 * 3 * 2).reshape(12, 3, 2)
    write_volume(tmp_path, slice_file, tall, name="a")
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_volume(tmp_path, slice_file, tall[:1], name="s", **sagittal)
    axial, other = read(tmp_path)
    np.testing.assert_array_equal(axial.voxels, tall)
    assert other.voxels.shape == (3, 2, 1)
    with pytest.raises(ScanError, match="several slice directions"):
        read(tmp_path, Policy(min_slices=1, orientations="reject"))
    for place in range(5, 12):
        (tmp_path / f"a-{place}").unlink()
    with pytest.raises(ScanError, match="a localiser"):
        read(tmp_path)
    assert len(read(tmp_path, Policy(min_slices=1, localisers="take"))) == 2


def test_rotating_slices_are_no_volume(tmp_path: Path, slice_file: Write) -> None:
    for number in range(5):
        angle = np.radians(36 * number)
        cosines = [np.cos(angle), np.sin(angle), 0, 0, 0, -1]
        slice_file(
            tmp_path / f"{number}",
            volume(number)[1],
            position=(0, 0, 0),
            changes={"ImageOrientationPatient": [float(f"{one:.6f}") for one in cosines]},
        )
    with pytest.raises(ScanError, match="many directions"):
        read(tmp_path)


def test_marks_where_the_policy_takes_what_it_could_refuse(
    tmp_path: Path, slice_file: Write
) -> None:
    policy = Policy(
        min_slices=1, localisers="take", secondary_captures="mark", burned_in_annotation="mark"
    )
    tags = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "BurnedInAnnotation": "YES",
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    }
    write_volume(tmp_path / "a", slice_file, volume(1), name="a", **tags)
    (scan,) = read(tmp_path / "a", policy)
    assert scan.metadata["secondary_capture"] is True
    assert scan.metadata["burned_in_annotation"] is True
    write_volume(tmp_path / "b", slice_file, volume(1), name="a", **tags, SamplesPerPixel=3)
    with pytest.raises(ScanError, match="colour"):
        read(tmp_path / "b", policy)


def test_where_a_scan_comes_from(tmp_path: Path, slice_file: Write) -> None:
    tags = {
        "SeriesInstanceUID": "1.2.3.9",
        "FrameOfReferenceUID": "1.2.3.77",
        "StudyDate": "20240305",
        "SeriesDescription": "T1 MPRAGE Sag",
        "MagneticFieldStrength": 3,
        "EchoTime": 2.5,
        "RepetitionTime": 1900,
        "InversionTime": 900,
        "ContrastBolusAgent": "GADOVIST for J. Smith",
    }
    write_volume(tmp_path, slice_file, volume(1), name="a", **tags)
    (scan,) = read(tmp_path)
    origin = scan.origin
    assert (origin.subject, origin.series, origin.frame_of_reference, origin.description) == (
        "PAT-1",
        "1.2.3.9",
        "1.2.3.77",
        "t1 mprage sag",
    )
    assert origin.date is not None
    assert origin.date.isoformat() == "2024-03-05"
    assert scan.metadata == {
        "slice_thickness_mm": 4.0,
        "field_strength_t": 3.0,
        "echo_time_ms": 2.5,
        "repetition_time_ms": 1900.0,
        "inversion_time_ms": 900.0,
        "contrast": True,
    }
