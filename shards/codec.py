"""The volume codec: int16 voxels in a chunked blosc2 frame, of which a crop reads a few chunks.

LZ4 with bitshuffle in chunks of 64 and blocks of 32 voxels a side. A frame is opened where it lies,
inside a mapped tar; the checksums of its table and of the touched chunks are compared first, so
nothing damaged is ever decompressed.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shards.measure.percentile import percentiles, pieces
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


class Checksums(NamedTuple):
    """What a frame's bytes are compared with before anything in them is used.

    Attributes:
        shape, chunk_shape: In voxels; they tell which chunks a crop touches before the frame is
            opened.
        table: xxh3-64 (16 hex digits) of the frame's header and tables.
        start: Offset of the first chunk in the frame; the others follow without gaps.
        sizes: (N,) int64, bytes of each compressed chunk; 0 where the table holds it.
        xxh3: (N,) uint64 of each compressed chunk.
    """

    shape: tuple[int, int, int]
    chunk_shape: tuple[int, int, int]
    table: str
    start: int
    sizes: np.ndarray
    xxh3: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """For an index: compact, as a large scan has hundreds of chunks."""
        return {
            "shape": list(self.shape),
            "chunk_shape": list(self.chunk_shape),
            "table": self.table,
            "start": self.start,
            "sizes": self.sizes.tolist(),
            "xxh3": self.xxh3.astype(">u8").tobytes().hex(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Checksums":
        """Back from :meth:`as_json`."""
        return cls(
            shape=tuple(found["shape"]),
            chunk_shape=tuple(found["chunk_shape"]),
            table=found["table"],
            start=found["start"],
            sizes=np.asarray(found["sizes"], dtype=np.int64),
            xxh3=np.frombuffer(bytes.fromhex(found["xxh3"]), dtype=">u8").astype(np.uint64),
        )


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
    if not voxels.flags.forc:
        voxels = np.ascontiguousarray(voxels)
    low, high = float(voxels.min()), float(voxels.max())
    if high - low <= LEVELS and _is_whole(voxels):
        shift = 0.0 if low >= INT16.min and high <= INT16.max else low - INT16.min
        return Stored(_levels(voxels, slope=1.0, intercept=shift), 1.0, shift)
    p_low, p_high = percentiles(voxels, [0.5, 99.5])
    reach = MAX_SPREADS / 2 * (p_high - p_low)
    if reach > 0:
        low, high = max(low, p_low - reach), min(high, p_high + reach)
    if high == low:
        return Stored(np.zeros(voxels.shape, np.int16), 1.0, low)
    slope = (high - low) / LEVELS
    intercept = low - INT16.min * slope
    return Stored(_levels(voxels, slope=slope, intercept=intercept), slope, intercept)


def _is_whole(voxels: np.ndarray) -> bool:
    return voxels.dtype.kind != "f" or all(
        np.array_equal(piece, np.rint(piece)) for piece in pieces(voxels)
    )


def _levels(voxels: np.ndarray, *, slope: float, intercept: float) -> np.ndarray:
    """The nearest int16 level of each voxel, in float64 piece by piece."""
    levels = np.empty_like(voxels, dtype=np.int16)
    for piece, found in zip(pieces(voxels), pieces(levels), strict=True):
        exact = (piece.astype(np.float64) - intercept) / slope
        found[:] = np.clip(np.rint(exact), INT16.min, INT16.max)
    return levels


def source_digest(scan: Scan, *, stored: Stored | None = None) -> str:
    """SHA-256 that is the same wherever a scan's voxels and geometry are, under whatever name.

    Args:
        scan: As it was read, before any resampling.
        stored: Its quantised voxels, where they are known already.
    """
    levels = (quantise(scan.voxels) if stored is None else stored).voxels
    geometry = f"{scan.voxels.shape} {[f'{edge:.3f}' for edge in scan.spacing_mm]}"
    found = hashlib.sha256(geometry.encode())
    found.update(np.ascontiguousarray(levels, dtype="<i2").reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def encode(voxels: np.ndarray) -> bytes:
    """One frame of (D, H, W) int16 voxels or uint8 labels; the same voxels give the same bytes."""
    import blosc2

    assert voxels.dtype in (np.int16, np.uint8)
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
    """What :func:`verify_crop` compares with. Chunks lie behind each other in their order."""
    import blosc2
    import xxhash

    frame = memoryview(frame)
    array = blosc2.ndarray_from_cframe(frame, copy=False)
    start, stop = _body(frame)
    offset, sizes, sums = start, [], []
    for number in range(array.schunk.nchunks):
        header = array.schunk.get_lazychunk(number)[:CHUNK_HEADER_BYTES]
        (size,) = struct.unpack("<i", header[12:16])
        # A chunk of one repeated value is only an entry in the table.
        size = size if frame[offset : offset + len(header)] == header else 0
        sizes.append(size)
        sums.append(xxhash.xxh3_64_intdigest(frame[offset : offset + size]))
        offset += size
    assert offset == stop, "a frame keeps its chunks in another order than expected"
    return Checksums(
        shape=tuple(array.shape),
        chunk_shape=tuple(array.chunks),
        table=_table_checksum(frame, start, stop),
        start=start,
        sizes=np.asarray(sizes, dtype=np.int64),
        xxh3=np.asarray(sums, dtype=np.uint64),
    )


def needed_ranges(
    expected: Checksums, *, size: int, start: Sequence[int], stop: Sequence[int]
) -> list[tuple[int, int]]:
    """[first, last) bytes of a frame of ``size`` bytes that a crop verifies and decompresses."""
    offsets = _offsets(expected)
    ranges = [(0, min(expected.start + CHUNK_HEADER_BYTES, int(offsets[-1])))]
    for number in _touched(expected.shape, expected.chunk_shape, start, stop):
        ranges.append((int(offsets[number]), int(offsets[number + 1])))
    ranges.append((int(offsets[-1]), size))
    return [(first, last) for first, last in ranges if first < last]


def verify_crop(
    frame: memoryview, *, start: Sequence[int], stop: Sequence[int], expected: Checksums
) -> None:
    """:func:`verify_crops` of one."""
    verify_crops(frame, windows=[(start, stop)], expected=expected)


def verify_crops(
    frame: memoryview,
    *,
    windows: Iterable[tuple[Sequence[int], Sequence[int]]],
    expected: Checksums,
) -> None:
    """Compare the bytes that voxels [start, stop) of each window need, once, and no others.

    Raises:
        DamagedFrame: A touched chunk, or the frame's header or tables, is not what was written.
    """
    import xxhash

    offsets = _offsets(expected)
    if _table_checksum(frame, expected.start, int(offsets[-1])) != expected.table:
        raise DamagedFrame("the header or the chunk table", 0)
    shape, edges = expected.shape, expected.chunk_shape
    for number in sorted({each for window in windows for each in _touched(shape, edges, *window)}):
        first, last = int(offsets[number]), int(offsets[number + 1])
        if xxhash.xxh3_64_intdigest(frame[first:last]) != int(expected.xxh3[number]):
            raise DamagedFrame(f"chunk {number} of {len(expected.sizes)}", first)


def decode_crop(frame: memoryview, *, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
    """Voxels [start, stop) of a verified frame; only the blocks they lie in are decompressed."""
    import blosc2

    array = blosc2.ndarray_from_cframe(frame, copy=False)
    window = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
    return np.asarray(array[window])


def read_crop(
    frame: bytes | memoryview, *, start: Sequence[int], stop: Sequence[int], expected: Checksums
) -> np.ndarray:
    """:func:`verify_crop`, then :func:`decode_crop`."""
    frame = memoryview(frame)
    verify_crop(frame, start=start, stop=stop, expected=expected)
    return decode_crop(frame, start=start, stop=stop)


def _offsets(expected: Checksums) -> np.ndarray:
    """(N + 1,) first byte of each chunk, then the byte behind the last one."""
    return np.concatenate([[expected.start], expected.start + np.cumsum(expected.sizes)])


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
    """[start, stop) of the chunks in a frame.

    The contiguous frame format keeps the header's length at byte 11 and the length of all chunks
    together, which follow it, at byte 39.
    """
    (header,) = struct.unpack(">i", frame[11:15])
    (body,) = struct.unpack(">q", frame[39:47])
    return header, header + body


def _table_checksum(frame: memoryview, start: int, stop: int) -> str:
    """xxh3-64 of what opening reads: header, offset table, trailer, the first chunk's header."""
    import xxhash

    state = xxhash.xxh3_64()
    state.update(frame[: min(start + CHUNK_HEADER_BYTES, stop)])
    state.update(frame[stop:])
    digest: str = state.hexdigest()
    return digest
