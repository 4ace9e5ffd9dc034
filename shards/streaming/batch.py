"""Crops of several scans as one batch of integers, which is all that leaves a worker."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from shards.index import Sample
from shards.measure.intensity import IntensityStatistics
from shards.scan import MODALITIES
from shards.streaming.crops import Box, CropPlan
from shards.streaming.reader import Crop, stored_air

SHARED_BYTES = 1 << 16  # a smaller tensor is sent by value
SUBJECT_DIGITS = 15  # of a pseudonym, as many as a signed 64-bit number holds


class Damage(NamedTuple):
    """A sample that could not be delivered."""

    shard: str
    """the tar, with its place"""
    key: str
    """of the sample"""
    offset: int
    """first byte, in the tar, of what is damaged"""
    what: str
    replaced_by: str
    """key of the sample that was delivered instead; empty where none was left"""


class CropBatch(NamedTuple):
    """Crops of B scans with C channels, as stored.

    D, H, W are the largest crop's; smaller ones, of a recipe in millimetres, begin at 0 and are
    filled up behind ``extent``.

    Attributes:
        volume: (B, C, D, H, W) int16; physical = volume * slope + intercept. Padding holds the
            value of the sequence's air; an absent sequence is 0.
        present: (B, C) bool, False where the sample has no such sequence.
        masks: (B, M, D, H, W) uint8 labels, 0 where the sample has no such mask; M may be 0.
        inside: (B, 3, 2) int32, [start, stop) per axis of what lies inside the scan.
        extent: (B, 3) int32, voxels (d, h, w) of each crop.
        slope, intercept: (B, C) float32; 1 and 0 where absent.
        modality: (B, C) int64, index into ``MODALITIES``; 0 where absent.
        statistics: (B, C, 7) float32, in the order of ``IntensityStatistics``, of the whole scan;
            0 where absent.
        spacing_mm: (B, 3) float32, (d, h, w) of the stored voxels.
        position: (B,) int64, in the global stream; with the seed the only source of randomness.
        subject: (B,) int64, the same number for the same subject.
        visit_day: (B,) float32, days since the subject's first visit in its folder; NaN if unknown.
        source: (B,) int64, which part of the mixture.
        keys: Of the samples.
        read_s: Seconds until the bytes were there and their checksums compared.
        decode_s: Seconds that decompressing, cutting and stacking took.
        wait_s: Seconds that the consumer waited for this batch.
        damaged: What was found damaged, and replaced in here.
    """

    volume: Tensor
    present: Tensor
    masks: Tensor
    inside: Tensor
    extent: Tensor
    slope: Tensor
    intercept: Tensor
    modality: Tensor
    statistics: Tensor
    spacing_mm: Tensor
    position: Tensor
    subject: Tensor
    visit_day: Tensor
    source: Tensor
    keys: list[str]
    read_s: float
    decode_s: float
    wait_s: float
    damaged: list[Damage]

    def to(self, device: torch.device) -> "CropBatch":
        """The same batch with its voxels there; what else is needed there, is small."""
        return self._replace(volume=self.volume.to(device), masks=self.masks.to(device))


class Row(NamedTuple):
    """One crop with what a batch tells of it."""

    position: int
    sample: Sample
    box: Box
    crop: Crop
    source: int
    visit_day: float


class Channels(NamedTuple):
    """Of one crop's C channels: what :class:`CropBatch` says of each."""

    present: list[bool]
    slope: list[float]
    intercept: list[float]
    modality: list[int]
    statistics: list[list[float]]


def stack(
    rows: Sequence[Row], *, plan: CropPlan, read_s: float, damaged: list[Damage]
) -> CropBatch:
    """Put crops on top of each other; ``decode_s`` and ``wait_s`` are still to be filled in."""
    shape = tuple(np.max([row.box.extent for row in rows], axis=0).tolist())
    channels = [_channels(row.sample, plan) for row in rows]
    return CropBatch(
        volume=_volumes(rows, plan=plan, shape=shape),
        present=torch.tensor([each.present for each in channels]),
        masks=_masks(rows, plan=plan, shape=shape),
        inside=torch.from_numpy(np.stack([row.crop.inside for row in rows])),
        extent=torch.tensor([row.box.extent for row in rows], dtype=torch.int32),
        slope=torch.tensor([each.slope for each in channels], dtype=torch.float32),
        intercept=torch.tensor([each.intercept for each in channels], dtype=torch.float32),
        modality=torch.tensor([each.modality for each in channels]),
        statistics=torch.tensor([each.statistics for each in channels], dtype=torch.float32),
        spacing_mm=torch.tensor([row.sample.spacing_mm for row in rows], dtype=torch.float32),
        position=torch.tensor([row.position for row in rows]),
        subject=torch.tensor([int(row.sample.subject[:SUBJECT_DIGITS], 16) for row in rows]),
        visit_day=torch.tensor([row.visit_day for row in rows], dtype=torch.float32),
        source=torch.tensor([row.source for row in rows]),
        keys=[row.sample.key for row in rows],
        read_s=read_s,
        decode_s=0.0,
        wait_s=0.0,
        damaged=damaged,
    )


def sent(batch: CropBatch) -> tuple[Any, ...]:
    """A batch as a worker sends it: what is small by value, as each shared tensor costs a file."""
    return tuple(
        each.numpy() if isinstance(each, Tensor) and each.nbytes < SHARED_BYTES else each
        for each in batch
    )


def received(fields: tuple[Any, ...]) -> CropBatch:
    """Back from :func:`sent`."""
    return CropBatch._make(
        torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in fields
    )


def _volumes(rows: Sequence[Row], *, plan: CropPlan, shape: tuple[int, ...]) -> Tensor:
    found = _new((len(rows), len(plan.sequences), *shape), dtype=torch.int16)
    for into, row in zip(found.numpy(), rows, strict=True):
        for channel, name in zip(into, plan.sequences, strict=True):
            voxels = row.crop.volumes.get(name)
            if voxels is None:
                channel[:] = 0
                continue
            if voxels.shape != shape:
                channel[:] = stored_air(row.sample, name)
            d, h, w = voxels.shape
            channel[:d, :h, :w] = voxels
    return found


def _masks(rows: Sequence[Row], *, plan: CropPlan, shape: tuple[int, ...]) -> Tensor:
    found = _new((len(rows), len(plan.masks), *shape), dtype=torch.uint8).zero_()
    for into, row in zip(found.numpy(), rows, strict=True):
        for channel, name in zip(into, plan.masks, strict=True):
            if name in row.crop.masks:
                d, h, w = row.box.extent
                channel[:d, :h, :w] = row.crop.masks[name]
    return found


def _new(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
    """Uninitialised; of a worker, in memory that the other process sees, so that none is copied."""
    if get_worker_info() is None or math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    # As torch's own collate function does it.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    strides = torch.empty(shape, device="meta").stride()
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)


def _channels(sample: Sample, plan: CropPlan) -> Channels:
    one = [sample.sequences.get(name) for name in plan.sequences]
    flat = [0.0] * len(IntensityStatistics._fields)
    return Channels(
        present=[each is not None for each in one],
        slope=[each.slope if each else 1.0 for each in one],
        intercept=[each.intercept if each else 0.0 for each in one],
        modality=[MODALITIES.index(each.modality) if each else 0 for each in one],
        statistics=[
            [each.statistics[name] for name in IntensityStatistics._fields] if each else flat
            for each in one
        ],
    )
