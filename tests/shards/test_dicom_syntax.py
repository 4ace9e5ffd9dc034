"""Every transfer syntax an archive holds gives the same voxels."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from shards.dicom import tree as dicom
from shards.dicom.codestream import codestream_size
from shards.dicom.tree import read_header
from shards.scan import ScanError, read_scan

Write = Callable[..., None]
SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg": JPEGLosslessSV1,
    "jpegls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
COMPRESSED = ("jpeg", "jpegls", "jpeg2000")


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, (4, 17, 11)).astype(np.int16)


def write(folder: Path, slice_file: Write, truth: np.ndarray, syntax: str) -> None:
    for number, pixels in enumerate(truth):
        slice_file(
            folder / f"{number}",
            pixels + 1024,
            position=(0, 0, 3.0 * number),
            changes={"PixelRepresentation": 0},
            syntax=SYNTAXES[syntax],
        )


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_same_voxels(tmp_path: Path, slice_file: Write, truth: np.ndarray, syntax: str) -> None:
    write(tmp_path, slice_file, truth, syntax)
    assert SYNTAXES[syntax].encode() in (tmp_path / "1").read_bytes()[:1000]
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(scan.voxels, truth)
    assert scan.spacing_mm == (3.0, 2.0, 1.5)


def test_a_deflated_slice_may_be_smaller_than_its_pixels(tmp_path: Path, slice_file: Write) -> None:
    write(tmp_path, slice_file, np.zeros((3, 60, 50), np.int16), "deflated")
    assert (tmp_path / "1").stat().st_size < 60 * 50 * 2
    assert not read_scan(tmp_path).voxels.any()


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_a_codestream_that_asks_for_more_memory(
    tmp_path: Path, slice_file: Write, truth: np.ndarray, syntax: str
) -> None:
    """Its own size is believed by decoders, so it is compared before one sees it."""
    write(tmp_path, slice_file, truth, syntax)
    path = tmp_path / "2"
    content = path.read_bytes()
    start = content.rindex(b"\xff\x4f\xff\x51" if syntax == "jpeg2000" else b"\xff\xd8\xff")
    assert codestream_size(content[start:]) == (17, 11, 1)
    rows = (17).to_bytes(4 if syntax == "jpeg2000" else 2, "big")
    at = content.index(rows, start + 4)
    path.write_bytes(content[:at] + b"\x7f" + content[at + 1 :])
    with pytest.raises(ScanError, match="another size than its header says"):
        read_scan(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"\xff\x4f\xff\x51" * 5]
)
def test_a_codestream_without_a_size(content: bytes) -> None:
    assert codestream_size(content) is None


@pytest.mark.parametrize("syntax", ["rle", *COMPRESSED])
def test_truncated_pixels(
    tmp_path: Path, slice_file: Write, truth: np.ndarray, syntax: str
) -> None:
    write(tmp_path, slice_file, truth, syntax)
    path = tmp_path / "2"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 150])
    with pytest.raises(ScanError):
        read_scan(tmp_path)


def test_a_deflated_file_that_would_fill_the_memory(
    tmp_path: Path, slice_file: Write, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, slice_file, truth, "deflated")
    path = tmp_path / "1"
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(2**22)) + packer.flush()
    path.write_bytes(content[:start] + bomb)
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 2**21)
    assert read_header(path) == "not a DICOM file"
    with pytest.raises(ScanError, match="far too large"):
        dicom.read_dataset(path)
    path.write_bytes(content[:start] + b"\x07" * 100)
    with pytest.raises(ScanError, match="damaged"):
        dicom.read_dataset(path)
