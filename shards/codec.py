"""The volume codec: int16 voxels in a chunked blosc2 frame, of which a crop reads a few chunks.

LZ4 with bitshuffle in chunks of 64 and blocks of 32 voxels a side. A frame is opened where it lies,
inside a mapped tar; the checksums of its table and of the touched chunks are compared first, so
nothing damaged is ever decompressed.
"""

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.scan import INT16, Scan

CHUNK = 64
BLOCK = 32
MAX_SPREADS = 64  # of p00_5..p99_5: brighter outliers than this are clipped when quantised
LEVELS = 65535
CHUNK_HEADER_BYTES = 32


class Stored(NamedTuple):
    """int16 voxels; physical = voxels * slope + intercept."""

    voxels: np.ndarray
    slope: float
    intercept: float


class ChunkChecksum(NamedTuple):
    """Where a compressed chunk lies in its frame, and its xxh3-64; size 0: the table holds it."""

    offset: int
    size: int
    xxh3: str


class Checksums(NamedTuple):
    """xxh3-64 (16 hex digits) of a frame's header and tables, and of each compressed chunk.

    The shapes, in voxels, tell which chunks a crop touches before the frame is opened.
    """

    shape: tuple[int, int, int]
    chunk_shape: tuple[int, int, int]
    table: str
    chunks: list[ChunkChecksum]


class DamagedFrame(ValueError):
    """A frame whose bytes are not those that were written; ``offset`` is within the frame."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.what = what
        self.offset = offset


def quantise(voxels: np.ndarray) -> Stored:
    """Physical values as int16.

    Whole numbers that fit stay exact. Others are spread evenly over 65,536 levels; where a few
    outliers stretch the range beyond ``MAX_SPREADS`` times p00_5..p99_5 they are clipped, so that
    the error of all other voxels stays below p00_5..p99_5 / 2,000.
    """
    if voxels.dtype == np.int16:
        return Stored(voxels, 1.0, 0.0)
    values = voxels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.rint(values)) and high - low <= LEVELS:
        shift = 0.0 if low >= INT16.min and high <= INT16.max else low - INT16.min
        return Stored((values - shift).astype(np.int16), 1.0, shift)
    p_low, p_high = (float(value) for value in np.percentile(values, [0.5, 99.5]))
    reach = MAX_SPREADS / 2 * (p_high - p_low)
    if reach > 0:
        low, high = max(low, p_low - reach), min(high, p_high + reach)
    if high == low:
        return Stored(np.zeros(voxels.shape, np.int16), 1.0, low)
    slope = (high - low) / LEVELS
    intercept = low - INT16.min * slope
    levels = np.clip(np.rint((values - intercept) / slope), INT16.min, INT16.max)
    return Stored(levels.astype(np.int16), slope, intercept)


def source_digest(scan: Scan) -> str:
    """SHA-256 that is the same wherever a scan's voxels and geometry are, under whatever name."""
    stored = np.ascontiguousarray(quantise(scan.voxels).voxels, dtype="<i2")
    geometry = f"{scan.voxels.shape} {[f'{edge:.3f}' for edge in scan.spacing_mm]}"
    return hashlib.sha256(geometry.encode() + stored.tobytes()).hexdigest()


def encode(voxels: np.ndarray) -> bytes:
    """One frame of (D, H, W) int16 voxels; the same voxels give the same bytes."""
    import blosc2

    assert voxels.dtype == np.int16
    chunks = tuple(min(CHUNK, length) for length in voxels.shape)
    array = blosc2.asarray(
        np.ascontiguousarray(voxels),
        chunks=chunks,
        blocks=tuple(min(BLOCK, length) for length in chunks),
        cparams={
            "codec": blosc2.Codec.LZ4,
            "clevel": 5,
            "filters": [blosc2.Filter.BITSHUFFLE],
            "filters_meta": [0],
            "nthreads": 1,
        },
    )
    frame: bytes = array.to_cframe()
    return frame


def checksums(frame: bytes | memoryview) -> Checksums:
    """What :func:`read_crop` compares with. Chunks lie behind each other in their order."""
    import blosc2
    import xxhash

    frame = memoryview(frame)
    array = blosc2.ndarray_from_cframe(frame, copy=False)
    offset, stop = _body(frame)
    chunks = []
    for number in range(array.schunk.nchunks):
        chunk = array.schunk.get_chunk(number)
        # A chunk of one repeated value is only an entry in the table.
        size = len(chunk) if frame[offset : offset + len(chunk)] == chunk else 0
        checksum = xxhash.xxh3_64_hexdigest(frame[offset : offset + size])
        chunks.append(ChunkChecksum(offset, size, checksum))
        offset += size
    assert offset == stop, "a frame keeps its chunks in another order than expected"
    return Checksums(array.shape, array.chunks, _table_checksum(frame), chunks)


def read_crop(
    frame: bytes | memoryview, *, start: Sequence[int], stop: Sequence[int], expected: Checksums
) -> np.ndarray:
    """Voxels [start, stop) of a frame, reading and verifying only the chunks they lie in.

    Raises:
        DamagedFrame: A touched chunk, or the frame's header or tables, is not what was written.
    """
    import blosc2
    import xxhash

    frame = memoryview(frame)
    if _table_checksum(frame) != expected.table:
        raise DamagedFrame("the header or the chunk table", 0)
    for number in _touched(expected.shape, expected.chunk_shape, start, stop):
        offset, size, checksum = expected.chunks[number]
        if xxhash.xxh3_64_hexdigest(frame[offset : offset + size]) != checksum:
            raise DamagedFrame(f"chunk {number} of {len(expected.chunks)}", offset)
    array = blosc2.ndarray_from_cframe(frame, copy=False)
    window = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
    return np.asarray(array[window])


def _touched(
    shape: Sequence[int], chunks: Sequence[int], start: Sequence[int], stop: Sequence[int]
) -> list[int]:
    """Numbers, in C order over the grid of chunks, of those that [start, stop) overlaps."""
    grid = [-(-length // edge) for length, edge in zip(shape, chunks, strict=True)]
    ranges = [
        range(first // edge, -(-last // edge))
        for first, last, edge in zip(start, stop, chunks, strict=True)
    ]
    return [(d * grid[1] + h) * grid[2] + w for d, h, w in itertools.product(*ranges)]


def _body(frame: memoryview) -> tuple[int, int]:
    """[start, stop) of the chunks in a frame; (0, 0) where its header cannot be right.

    The contiguous frame format keeps the header's length at byte 11 and the length of all chunks
    together, which follow it, at byte 39.
    """
    if len(frame) < 47:
        return 0, 0
    (header,) = struct.unpack(">i", frame[11:15])
    (body,) = struct.unpack(">q", frame[39:47])
    return (header, header + body) if 0 < header <= header + body <= len(frame) else (0, 0)


def _table_checksum(frame: memoryview) -> str:
    """xxh3-64 of what opening reads: header, offset table, trailer, the first chunk's header."""
    import xxhash

    start, stop = _body(frame)
    state = xxhash.xxh3_64()
    state.update(frame[: min(start + CHUNK_HEADER_BYTES, stop)])
    state.update(frame[stop:])
    digest: str = state.hexdigest()
    return digest
