"""What ITK would crash on, or deliver damaged, is refused before ITK sees it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from shards.images.metaimage import check_metaimage
from shards.scan import ScanError

SHAPE = (11, 14, 10)


def _write(path: Path, *, packed: bool) -> bytes:
    voxels = np.random.default_rng(0).normal(0, 50, SHAPE).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path), useCompression=packed)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [True, False])
def test_whole_files_pass(tmp_path: Path, name: str, packed: bool) -> None:
    content = _write(tmp_path / name, packed=packed)
    check_metaimage(tmp_path / name)
    if name == "a.mhd":  # the last line may have no end
        (tmp_path / name).write_bytes(content.rstrip())
        check_metaimage(tmp_path / name)


def test_a_field_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    content = _write(path, packed=True)
    path.write_bytes(content.replace(b"NDims = 3", b"Comment =\nNDims = 3", 1))
    check_metaimage(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NDims = 3", b"NDims = -1"),
        (b"NDims = 3", b"NDims = 70000"),
        (b"NDims = 3", b"NDims = 2147483647"),
        (b"NDims = 3", b"NDims = 3\nNDims = 70000"),
        (b"NDims = 3", b"NDims = 4"),
        (b"DimSize = 10 14 11", b"DimSize = 10 14 0"),
        (b"DimSize = 10 14 11", b"DimSize = 10 14 12"),
        (b"CompressedDataSize", b"CompressedDataSpan"),
        (b"CompressedDataSize = ", b"CompressedDataSize = 1"),
        (b"ElementDataFile", b"ElementsDataFile"),
    ],
)
def test_a_damaged_header(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "a.mha"
    content = _write(path, packed=True)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(ScanError, match="truncated or damaged"):
        check_metaimage(path)


def test_damaged_voxels(tmp_path: Path) -> None:
    """Every part of the stream is covered: its checksum, its end, a bit in the middle."""
    path = tmp_path / "a.mha"
    content = _write(path, packed=True)
    for place in (-1, -4, -len(content) // 3):
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(ScanError, match="truncated or damaged"):
            check_metaimage(path)
    path.write_bytes(content[:-40])
    with pytest.raises(ScanError, match="truncated or damaged"):
        check_metaimage(path)


def test_voxels_in_a_file_of_their_own(tmp_path: Path) -> None:
    _write(tmp_path / "a.mhd", packed=True)
    voxels = tmp_path / "a.zraw"
    damaged = bytearray(voxels.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    voxels.write_bytes(damaged)
    with pytest.raises(ScanError, match="compressed voxels"):
        check_metaimage(tmp_path / "a.mhd")
