"""How large a crop is and where it begins: pure functions of seed, position and scan."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.index import VOLUME, Sample
from shards.streaming.order import random_words

Shape = tuple[int, int, int]


class CropPlan(NamedTuple):
    """What is cut out of each scan.

    Attributes:
        shape: Of the model's crop, (d, h, w) voxels.
        size_mm: Edges in millimetres instead; an axis without one takes its voxels from ``shape``.
        per_scan: Consecutive positions that show the same scan.
        foreground: Probability that a crop is centred in the foreground box, and not anywhere.
        sequences: The channels, by name.
        masks: Label volumes to cut out beside them, by name.
    """

    shape: Shape
    size_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    per_scan: int = 1
    foreground: float = 1.0
    sequences: tuple[str, ...] = (VOLUME,)
    masks: tuple[str, ...] = ()


class Box(NamedTuple):
    """A crop in a scan's own voxels; it may begin before the scan and end behind it."""

    start: Shape
    extent: Shape


def crop_box(position: int, *, sample: Sample, plan: CropPlan, seed: int) -> Box:
    """The crop at a position."""
    extent = crop_extent(plan, spacing_mm=sample.spacing_mm)
    start = crop_start(
        position,
        seed=seed,
        shape=sample.shape,
        extent=extent,
        box=sample.foreground_box,
        foreground=plan.foreground,
    )
    return Box(start, extent)


def crop_extent(plan: CropPlan, *, spacing_mm: Sequence[float]) -> Shape:
    """Voxels (d, h, w) of a crop in a scan of this spacing."""
    d, h, w = (
        voxels if size is None else max(1, round(size / edge))
        for voxels, size, edge in zip(plan.shape, plan.size_mm, spacing_mm, strict=True)
    )
    return d, h, w


def crop_start(
    position: int,
    *,
    seed: int,
    shape: Sequence[int],
    extent: Sequence[int],
    box: Sequence[tuple[int, int]],
    foreground: float = 1.0,
) -> Shape:
    """First voxel of the crop at a position; negative where the crop is larger than the scan.

    The centre falls evenly into the foreground box, or (with probability 1 - ``foreground``) into
    the whole scan; then the crop is moved inside the scan. Along an axis on which it does not fit
    it is centred.
    """
    *words, coin = random_words(f"crop {seed} {position}", 4)
    if int(coin) >= foreground * 2.0**64:
        box = [(0, length) for length in shape]
    starts = []
    for word, length, edge, (first, last) in zip(words, shape, extent, box, strict=True):
        if edge >= length:
            starts.append(-((edge - length) // 2))
            continue
        centre = first + int(word) % (last - first)
        starts.append(min(max(centre - edge // 2, 0), length - edge))
    d, h, w = starts
    return d, h, w


class Cut(NamedTuple):
    """The part of a box that lies inside its scan."""

    first: np.ndarray
    """(3,) in the scan's voxels"""
    stop: np.ndarray
    """(3,)"""
    inside: np.ndarray
    """(3, 2) int32, the same [start, stop) in the crop's voxels"""


def cut_of(box: Box, *, shape: Sequence[int]) -> Cut:
    """Clip a box to a scan of ``shape``.

    Raises:
        ValueError: It lies outside the scan.
    """
    start = np.asarray(box.start)
    first = np.maximum(start, 0)
    stop = np.minimum(start + box.extent, shape)
    if (first >= stop).any():
        raise ValueError(f"a crop at {box.start} lies outside a scan of {tuple(shape)}")
    return Cut(first, stop, np.stack([first - start, stop - start], axis=1).astype(np.int32))


def joined(cuts: Sequence[Cut]) -> tuple[np.ndarray, np.ndarray] | None:
    """[first, stop) around several cuts; None where that is more voxels than the cuts together."""
    first = np.min([cut.first for cut in cuts], axis=0)
    stop = np.max([cut.stop for cut in cuts], axis=0)
    apart = sum(int(np.prod(cut.stop - cut.first)) for cut in cuts)
    return (first, stop) if int(np.prod(stop - first)) <= apart else None
