"""Exact percentiles of a volume by counting: no sorted copy of tens of millions of voxels.

int16 has 65,536 values, so one count holds all that is to know. float32 is counted twice: by its
upper 16 bits in the order of its values, then by its lower 16 bits where a percentile lies.
"""

from collections.abc import Iterator, Sequence

import numpy as np

PIECE = 1 << 20  # voxels in work at a time
BINS = 1 << 16


def pieces(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """A contiguous volume as flat views of at most ``PIECE`` voxels, in the order of memory."""
    flat = voxels.ravel(order="K")
    for first in range(0, flat.size, PIECE):
        yield flat[first : first + PIECE]


def counts_of(voxels: np.ndarray) -> np.ndarray:
    """(BINS,) int64: how often each int16 value occurs; entry 0 is that of -32768."""
    counts = np.zeros(BINS, np.int64)
    for piece in pieces(voxels):
        counts += np.bincount(piece.view(np.uint16) ^ np.uint16(0x8000), minlength=BINS)
    return counts


def percentiles(voxels: np.ndarray, wanted: Sequence[float], *, skip: int = 0) -> list[float]:
    """What ``np.percentile`` (linear) gives of the values without the ``skip`` lowest ones.

    Args:
        voxels: Finite; more than ``skip`` of them.
        wanted: In [0, 100].
        skip: How many of the lowest are left out.
    """
    if voxels.dtype == np.int16:
        return percentiles_of_counts(counts_of(voxels), wanted, skip=skip)
    places = [each / 100 * (voxels.size - skip - 1) for each in wanted]
    ranks = sorted({skip + step + int(place) for place in places for step in (0, 1)})
    ranks = [min(rank, voxels.size - 1) for rank in ranks]
    if voxels.dtype == np.float32:
        found = dict(zip(ranks, _float_ranks(voxels, ranks), strict=True))
    else:
        parted = np.partition(voxels, ranks, axis=None)
        found = {rank: float(parted[rank]) for rank in ranks}
    return [_between(found, skip, place, last=voxels.size - 1) for place in places]


def percentiles_of_counts(
    counts: np.ndarray, wanted: Sequence[float], *, skip: int = 0
) -> list[float]:
    """:func:`percentiles` of the int16 values that :func:`counts_of` counted."""
    ends = np.cumsum(counts)
    size = int(ends[-1])
    places = [each / 100 * (size - skip - 1) for each in wanted]
    ranks = {min(skip + step + int(place), size - 1) for place in places for step in (0, 1)}
    found = {rank: float(np.searchsorted(ends, rank, side="right")) - 32768 for rank in ranks}
    return [_between(found, skip, place, last=size - 1) for place in places]


def _between(found: dict[int, float], skip: int, place: float, *, last: int) -> float:
    """Linear between two neighbours in rank; from the nearer one, as numpy does."""
    below = skip + int(place)
    low, high = found[below], found[min(below + 1, last)]
    share = place - int(place)
    if share < 0.5:
        return low + (high - low) * share
    return high - (high - low) * (1 - share)


def _float_ranks(voxels: np.ndarray, ranks: Sequence[int]) -> list[float]:
    """The float32 values of these ranks."""
    upper = np.zeros(BINS, np.int64)
    for piece in pieces(voxels):
        upper += np.bincount(_ordered(piece) >> np.uint32(16), minlength=BINS)
    ends = np.cumsum(upper)
    bins = np.searchsorted(ends, ranks, side="right")
    lower = {int(each): np.zeros(BINS, np.int64) for each in bins}
    for piece in pieces(voxels):
        bits = _ordered(piece)
        coarse = (bits >> np.uint32(16)).astype(np.uint16)
        for each, counts in lower.items():
            within = bits[coarse == each] & np.uint32(0xFFFF)
            counts += np.bincount(within, minlength=BINS)
    return [
        _value(int(each), lower[int(each)], rank - int(ends[each] - upper[each]))
        for each, rank in zip(bins, ranks, strict=True)
    ]


def _ordered(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values as uint32 that sort as the values do."""
    bits = values.view(np.uint32)
    signs = (bits.view(np.int32) >> 31).view(np.uint32)  # all ones where negative
    ordered: np.ndarray = bits ^ (signs | np.uint32(0x80000000))
    return ordered


def _value(upper: int, counts: np.ndarray, rank: int) -> float:
    """Back from a bin of the upper 16 bits and the rank within it."""
    lower = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
    bits = upper << 16 | lower
    bits ^= 0x80000000 if bits & 0x80000000 else 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
