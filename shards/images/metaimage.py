"""What is checked of a MetaImage file before ITK reads it.

ITK writes past its own arrays when a header states more dimensions than it knows, and delivers a
volume although the compressed voxels are damaged.
"""

import math
import os
import re
import zlib
from pathlib import Path
from typing import IO

from shards.scan import ScanError

HEADER_BYTES = 1 << 16
FIELD = re.compile(rb"^[ \t]*(\w+)[ \t]*[=:][ \t]*([^\r\n]*?)[ \t\r]*$", re.M)
DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(?:\n|\Z)", re.M)
DIMENSIONS = range(2, 11)  # that ITK has room for
MAX_VOXEL_BYTES = 64
PIECE_BYTES = 1 << 20
DAMAGED = "not a readable NRRD or MetaImage file, truncated or damaged"


def check_metaimage(path: Path) -> None:
    """Compare dimensions, sizes and, where there is one, the checksum of compressed voxels.

    Args:
        path: ``.mha`` or ``.mhd``; the file that it names for its voxels lies beside it.

    Raises:
        ScanError: ITK would crash on it, or deliver what was not written.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise ScanError(f"{DAMAGED} ({type(error).__name__})") from None
    end = DATA_FILE.search(head)
    if end is None:
        raise ScanError(f"{DAMAGED} (no data file)")
    fields: dict[bytes, bytes] = {}
    for name, value in FIELD.findall(head[: end.end()]):
        if fields.setdefault(name, value) != value:
            raise ScanError(f"{DAMAGED} (a field stands twice)")
    shape = _shape(fields)
    if fields.get(b"CompressedData", b"")[:1] in (b"T", b"t", b"1"):
        name = fields[b"ElementDataFile"].decode(errors="replace")
        is_local = name.upper() == "LOCAL"
        place = path if is_local else path.with_name(name)
        with place.open("rb") as file:
            file.seek(end.end() if is_local else _skipped(fields, place))
            packed = _check_stream(file, num_voxels=math.prod(shape))
        # ITK inflates as many bytes as the header says, and none where it does not.
        if fields.get(b"CompressedDataSize") != b"%d" % packed:
            raise ScanError(f"{DAMAGED} (compressed voxels)")


def _shape(fields: dict[bytes, bytes]) -> list[int]:
    """DimSize, as many numbers as NDims says."""
    try:
        count = int(fields[b"NDims"])
        shape = [int(word) for word in fields[b"DimSize"].split()]
    except (KeyError, ValueError):
        raise ScanError(f"{DAMAGED} (no size)") from None
    if count not in DIMENSIONS or len(shape) != count or min(shape) < 1:
        raise ScanError(f"{DAMAGED} (no size)")
    return shape


def _skipped(fields: dict[bytes, bytes], place: Path) -> int:
    """HeaderSize: bytes before the voxels in a file of their own; -1 counts from its end."""
    try:
        size = int(fields.get(b"HeaderSize", b"0"))
    except ValueError:
        raise ScanError(f"{DAMAGED} (no size)") from None
    if not 0 <= size <= os.stat(place).st_size:
        raise ScanError("compressed voxels behind a foreign header are not supported")
    return size


def _check_stream(file: IO[bytes], *, num_voxels: int) -> int:
    """Inflate piece by piece, keeping nothing; returns the length of the compressed stream."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
    size, first = 0, file.tell()
    try:
        while not inflater.eof and (piece := file.read(PIECE_BYTES)):
            while piece and not inflater.eof:
                size += len(inflater.decompress(piece, PIECE_BYTES))
                piece = inflater.unconsumed_tail
                if size > num_voxels * MAX_VOXEL_BYTES:
                    raise ScanError(f"{DAMAGED} (too long)")
    except zlib.error:
        raise ScanError(f"{DAMAGED} (compressed voxels)") from None
    if not inflater.eof or size % num_voxels:
        raise ScanError(f"{DAMAGED} (too short)")
    return file.tell() - first - len(inflater.unused_data)
