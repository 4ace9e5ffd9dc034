"""NIfTI-1 and NIfTI-2, compressed or not, one volume at a time: 4D never lies in memory whole."""

import gzip
import itertools
import logging
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from shards.policy import Policy
from shards.scan import Scan, ScanError, physical_units, to_lps

GZIP_MAGIC = b"\x1f\x8b"
NIFTI2_BYTES = 540  # of the header, which begins with its own length
MAX_DEFLATION = 1032  # no deflate stream grows by more
READ_BYTES = 1 << 22
DAMAGE = (OSError, EOFError, zlib.error, ValueError)


def read_nifti_file(path: str | Path, *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    """:func:`read_nifti` of a file."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the generator below closes it
    except OSError as error:
        raise _damaged(error) from None
    with file:
        yield from read_nifti(file, modality=modality, policy=policy)


def read_nifti(file: IO[bytes], *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    """The volumes of an image, in order.

    Args:
        file: At its beginning; it can be positioned.
        modality: The format does not tell it.
        policy: ``time_points`` says what becomes of a fourth dimension.

    Raises:
        ScanError: Damaged, colour or complex, no volume, without usable geometry.
    """
    if modality is None:
        raise ScanError("a NIfTI file does not tell its modality; name it in the recipe")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        stream, packed = _unpacked(file)
        header = _header(stream)
    except Exception as error:
        raise _damaged(error) from None
    shape, count = _shape(header, policy)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError("colour or complex voxels, not a scan of one intensity")
    needed = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize * count
    if needed > size * (MAX_DEFLATION if packed else 1):
        raise ScanError("not a readable NIfTI file, truncated or damaged (too short)")
    wanted = 1 if policy.time_points == "first" else count
    for _ in range(wanted):
        yield _volume(stream, header, shape, modality=modality)
    if wanted == count:
        _check_end(stream)


def read_header(path: str | Path) -> Any:
    """The header of an image, as nibabel has it; no voxel is read.

    Raises:
        ScanError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return _header(_unpacked(file)[0])
    except Exception as error:
        raise _damaged(error) from None


def _unpacked(file: IO[bytes]) -> tuple[IO[bytes], bool]:
    """A stream of the image's own bytes, whatever the file is called, and if it was packed."""
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    return (gzip.GzipFile(fileobj=file) if packed else file), packed  # type: ignore[return-value]


def _damaged(error: Exception) -> ScanError:
    """The libraries raise a dozen types for bytes that are no image; their texts hold the path."""
    return ScanError(f"not a readable NIfTI file, truncated or damaged ({type(error).__name__})")


def _header(stream: IO[bytes]) -> Any:
    """The header; the stream then stands at the first voxel."""
    import nibabel

    # Its warnings quote the header.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    lengths = {NIFTI2_BYTES.to_bytes(4, order) for order in ("little", "big")}
    kind = nibabel.Nifti2Header if stream.read(4) in lengths else nibabel.Nifti1Header
    stream.seek(0)
    header = kind.from_fileobj(stream)
    stream.seek(int(header.get_data_offset()))
    return header


def _shape(header: Any, policy: Policy) -> tuple[tuple[int, ...], int]:
    """(I, J, K) and the number of volumes."""
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise ScanError(f"an image of {len(shape)} dimensions, expected three, or four with time")
    if min(shape) < 1:
        raise ScanError("the volume has no voxels")
    count = shape[3] if len(shape) == 4 else 1
    if count > 1 and policy.time_points == "reject":
        raise ScanError(f"{count} time points in one file, the recipe rejects them")
    if min(shape[:3]) < policy.min_slices:
        raise ScanError(f"{min(shape[:3])} slices, the recipe asks for {policy.min_slices}")
    return shape[:3], count


def _volume(stream: IO[bytes], header: Any, shape: tuple[int, ...], *, modality: str) -> Scan:
    """The next volume of the stream."""
    try:
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine())
    except Exception as error:  # nibabel's own types have no common base
        raise _damaged(error) from None
    try:
        stored = np.empty(shape, header.get_data_dtype(), order="F")
        _fill(stream, memoryview(stored.reshape(-1, order="F").view(np.uint8).data))
    except (*DAMAGE, MemoryError) as error:
        raise _damaged(error) from None
    voxels = physical_units(
        stored,
        modality=modality,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )
    del stored
    found = to_lps(voxels, affine=affine)
    return Scan(found.voxels, found.spacing_mm, modality, found.affine)


def _fill(stream: IO[bytes], target: memoryview) -> None:
    for first in itertools.count(0, READ_BYTES):
        piece = target[first : first + READ_BYTES]
        if not piece:
            return
        while piece:
            length = stream.readinto(piece)  # type: ignore[attr-defined]
            if not length:
                raise EOFError
            piece = piece[length:]


def _check_end(stream: IO[bytes]) -> None:
    """Reading on compares the checksum that a compressed file ends with."""
    try:
        stream.read(1)
    except DAMAGE as error:
        raise _damaged(error) from None
