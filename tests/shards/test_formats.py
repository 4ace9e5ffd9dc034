"""NIfTI in four dimensions, NRRD, MetaImage and tars: one volume after the other, in LPS."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from shards.images.nifti import read_nifti
from shards.images.tar import CUT, DAMAGED, TarImage, list_tar
from shards.policy import LENIENT, Policy
from shards.scan import ScanError, read_scan, read_scans

SHAPE = (7, 6, 5)  # stored axes
TIMES = 3


def _series() -> np.ndarray:
    """(7, 6, 5, 3), each time point another volume."""
    return np.random.default_rng(0).integers(-500, 500, (*SHAPE, TIMES), np.int16)


def _nifti(voxels: np.ndarray, kind: type = nibabel.Nifti1Image) -> bytes:
    content: bytes = kind(voxels, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()
    return content


def _lps(volume: np.ndarray) -> np.ndarray:
    """An RAS volume (I, J, K) as (D, H, W)."""
    return volume[::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ"])
def test_time_points_are_scans(tmp_path: Path, name: str) -> None:
    series = _series()
    content = _nifti(series)
    packed = name.lower().endswith("gz")
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    found = list(read_scans(tmp_path / name, modality="MR"))
    assert len(found) == TIMES
    for number, scan in enumerate(found):
        np.testing.assert_array_equal(scan.voxels, _lps(series[..., number]))
        assert scan.spacing_mm == (3.0, 2.0, 1.0)
    (first,) = read_scans(
        tmp_path / name, modality="MR", policy=Policy(time_points="first", min_slices=1)
    )
    np.testing.assert_array_equal(first.voxels, found[0].voxels)
    with pytest.raises(ScanError, match="3 time points in one file, the recipe rejects them"):
        list(read_scans(tmp_path / name, modality="MR", policy=Policy(time_points="reject")))
    with pytest.raises(ScanError, match="several volumes"):
        read_scan(tmp_path / name, modality="MR")


def test_a_volume_is_read_when_it_is_asked_for() -> None:
    content = _nifti(_series())
    file = io.BytesIO(content)
    scans = read_nifti(file, modality="MR", policy=LENIENT)
    next(scans)
    assert file.tell() < len(content) - np.prod(SHAPE) * 2
    cut = read_nifti(io.BytesIO(gzip.compress(content)[:-300]), modality="MR", policy=LENIENT)
    assert next(cut).voxels.shape == (5, 6, 7)
    with pytest.raises(ScanError, match="truncated or damaged"):
        list(cut)


def test_a_wrong_checksum_of_a_compressed_file_is_found() -> None:
    content = bytearray(gzip.compress(_nifti(_series()[..., 0])))
    content[-6] ^= 1
    with pytest.raises(ScanError, match=r"damaged \(BadGzipFile\)"):
        list(read_nifti(io.BytesIO(content), modality="MR", policy=LENIENT))


def test_a_header_that_promises_more_than_the_file_holds() -> None:
    content = bytearray(_nifti(_series()[..., 0]))
    content[42:48] = np.array([32000] * 3, "<i2").tobytes()
    for damaged in (bytes(content), gzip.compress(bytes(content))):
        with pytest.raises(ScanError, match="too short"):
            list(read_nifti(io.BytesIO(damaged), modality="MR", policy=LENIENT))


def test_no_byte_of_a_damaged_header_reaches_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(_nifti(_series()[..., 0]))
    content[344:348] = b"Jane"  # where the magic is
    with pytest.raises(ScanError):
        list(read_nifti(io.BytesIO(content), modality="MR", policy=LENIENT))
    assert capfd.readouterr() == ("", "")


def test_the_second_version_and_the_other_byte_order() -> None:
    volume = _series()[..., 0]
    swapped = nibabel.Nifti1Image(volume, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(swapped)).as_byteswapped()
    big = header.binaryblock + bytes(4) + volume.astype(">i2").tobytes(order="F")
    for content in (_nifti(volume, nibabel.Nifti2Image), big):
        (scan,) = read_nifti(io.BytesIO(content), modality="MR", policy=LENIENT)
        np.testing.assert_array_equal(scan.voxels, _lps(volume))
        assert scan.voxels.dtype == np.dtype("=i2")


def _itk(voxels: np.ndarray) -> SimpleITK.Image:
    """Of (K, J, I) voxels: I backwards, J up, K to the left of the subject, turned a little."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    tilt = 0.2
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    image.SetDirection((turn @ np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])).ravel())
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_marked_voxel_lies_where_itk_says(tmp_path: Path, name: str, packed: bool) -> None:
    voxels = np.zeros((5, 6, 7), np.int16)
    voxels[1, 2, 5] = 9  # (k, j, i)
    image = _itk(voxels)
    SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=packed)
    scan = read_scan(tmp_path / name, modality="MR")
    assert scan.voxels.shape == (6, 7, 5)
    np.testing.assert_allclose(scan.spacing_mm, (2.0, 1.0, 3.0))
    ((d, h, w),) = np.argwhere(scan.voxels == 9)
    assert (d, h, w) == (2, 5, 1)
    assert scan.affine is not None
    place = scan.affine @ (d, h, w, 1)
    np.testing.assert_allclose(place[:3], image.TransformIndexToPhysicalPoint((5, 2, 1)), atol=1e-4)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_time_points_of_itk_files(tmp_path: Path, name: str) -> None:
    volumes = [_itk(np.ascontiguousarray(_series()[..., t].T)) for t in range(TIMES)]
    SimpleITK.WriteImage(SimpleITK.JoinSeries(volumes), str(tmp_path / name))
    found = list(read_scans(tmp_path / name, modality="MR"))
    assert len(found) == TIMES
    for scan, volume in zip(found, volumes, strict=True):
        SimpleITK.WriteImage(volume, str(tmp_path / "one.nrrd"))
        alone = read_scan(tmp_path / "one.nrrd", modality="MR")
        np.testing.assert_array_equal(scan.voxels, alone.voxels)
        np.testing.assert_allclose(scan.affine, alone.affine, atol=1e-4)
    policy = Policy(time_points="first", min_slices=1)
    assert len(list(read_scans(tmp_path / name, modality="MR", policy=policy))) == 1


def _vectors(path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.ones((5, 6, 7, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(path))


def _no_space(path: Path) -> None:
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n\n"
    path.write_bytes(head + bytes(420))


def _cut(path: Path) -> None:
    SimpleITK.WriteImage(_itk(np.ones((5, 6, 7), np.int16)), str(path), useCompression=False)
    path.write_bytes(path.read_bytes()[:-100])


def _huge(path: Path) -> None:
    SimpleITK.WriteImage(_itk(np.ones((5, 6, 7), np.int16)), str(path), useCompression=True)
    for line in (b"sizes: 7 6 5", b"DimSize = 7 6 5"):
        path.write_bytes(path.read_bytes().replace(line, line[:-5] + b"3000 3000 3000"))


def _elsewhere(path: Path) -> None:
    SimpleITK.WriteImage(_itk(np.ones((5, 6, 7), np.int16)), str(path))
    raw = next(other for other in path.parent.iterdir() if other.suffix != path.suffix)
    path.write_bytes(path.read_bytes().replace(raw.name.encode(), b"../" + raw.name.encode()))


def _no_partner(path: Path) -> None:
    SimpleITK.WriteImage(_itk(np.ones((5, 6, 7), np.int16)), str(path))
    next(other for other in path.parent.iterdir() if other.suffix != path.suffix).unlink()


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.nrrd", _vectors, "colour or complex"),
        ("a.mha", _vectors, "colour or complex"),
        ("a.nrrd", _no_space, "without a space field"),
        ("a.nrrd", _cut, "truncated or damaged"),
        ("a.mha", _cut, "truncated or damaged"),
        ("a.nrrd", _huge, "too short"),
        ("a.mha", _huge, "too short"),
        ("a.nhdr", _elsewhere, "in another folder"),
        ("a.mhd", _elsewhere, "in another folder"),
        ("a.mhd", _no_partner, "not beside it"),
    ],
)
def test_what_itk_files_are_refused_for(
    tmp_path: Path,
    name: str,
    write: Callable[[Path], None],
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / name)
    with pytest.raises(ScanError, match=reason) as caught:
        read_scan(tmp_path / name, modality="MR")
    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) not in "".join(capfd.readouterr())


def _tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _files() -> dict[str, bytes]:
    """As WebDataset shards of NIfTI files are laid out: a key, its image, what is known of it."""
    series = _series()
    about = {"age": 61.5, "sex": "F", "runs": [1, 2], "known": True, "site": None}
    return {
        "sub-01_ses-1.json": json.dumps(about).encode(),
        "sub-01_ses-1.nii.gz": gzip.compress(_nifti(series[..., 0])),
        "./ds2/sub-02.t1w.nii": _nifti(series[..., 1]),
        "._sub-02.nii": b"left by a file manager",
        "sub-03.nii.gz": gzip.compress(_nifti(series[..., 2])),
        "sub-03.json": b"no json",
    }


def test_the_images_of_a_tar_and_what_is_known_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_tar(_files()))
    found = list(list_tar(io.BytesIO(path.read_bytes())))
    assert [image.name for image in found] == [
        "sub-01_ses-1.nii.gz",
        "./ds2/sub-02.t1w.nii",
        "sub-03.nii.gz",
    ]
    assert [dict(image.values) for image in found] == [
        {"age": 61.5, "sex": "F", "site": None},
        {},
        {},
    ]
    for number, image in enumerate(found):
        scan = read_scan(f"{path}#{image.first}+{image.size}", modality="MR")
        np.testing.assert_array_equal(scan.voxels, _lps(_series()[..., number]))


def _faults(content: bytes) -> list[tuple[str, str | None]]:
    return [(image.name, image.fault) for image in list_tar(io.BytesIO(content))]


def test_a_cut_tar_gives_what_is_whole() -> None:
    content = _tar(_files())
    whole = list(list_tar(io.BytesIO(content)))
    names: list[tuple[str, str | None]] = [(image.name, None) for image in whole]
    last: TarImage = whole[-1]
    assert _faults(content) == names
    assert _faults(content[: last.first + 20]) == [*names[:-1], (last.name, CUT)]
    # Cut in a header, between two files, and in what is no image: something may be lost.
    for end in (last.first - 200, last.first - 512, len(content) - 10240 + 700):
        assert _faults(content[:end])[-1] == ("", DAMAGED)
    assert _faults(b"") == [("", DAMAGED)]
    assert _faults(b"no tar" * 500) == [("", DAMAGED)]


def test_a_tar_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_tar(_files())[:3000])
    for place, reason in (("2800+500", "cut off"), ("0+300", "truncated or damaged")):
        with pytest.raises(ScanError, match=reason):
            read_scan(f"{path}#{place}", modality="MR")
