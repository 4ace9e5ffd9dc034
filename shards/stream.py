"""Crops of scans from shards, in an order that is the same for any number of ranks and workers.

Workers read, verify and cut integers out of the mapped tars; all arithmetic on intensities happens
later, in batches on the device.
"""

import mmap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from shards.codec import DamagedFrame, read_crop
from shards.index import VOLUME, DamagedShard, Sample, read_dataset, read_index, sequence_member
from shards.intensity import IntensityStatistics
from shards.order import crop_start, sample_at
from shards.scan import INT16, MODALITIES

_MEMBER = sequence_member(VOLUME)
SUBJECT_DIGITS = 15  # of a pseudonym, as many as a signed 64-bit number holds


class CropBatch(NamedTuple):
    """Crops of B scans, as stored.

    Attributes:
        volume: (B, 1, D, H, W) int16; physical = volume * slope + intercept. Padding holds the
            value of the scan's air.
        inside: (B, 3, 2) int32, [start, stop) per axis of what lies inside the scan.
        slope, intercept: (B,) float32.
        modality: (B,) int64, index into ``MODALITIES``.
        statistics: (B, 7) float32, in the order of ``IntensityStatistics``, of the whole scan.
        spacing_mm: (B, 3) float32, (d, h, w).
        position: (B,) int64, in the global stream; with the seed the only source of randomness.
        subject: (B,) int64, the same number for the same subject.
        keys: Of the samples.
        read_s: Seconds that reading, verifying and decompressing took.
    """

    volume: Tensor
    inside: Tensor
    slope: Tensor
    intercept: Tensor
    modality: Tensor
    statistics: Tensor
    spacing_mm: Tensor
    position: Tensor
    subject: Tensor
    keys: list[str]
    read_s: float


class ShardReader:
    """Random access to the scans of a folder of shards; tars are mapped at their first use."""

    def __init__(self, folder: str | Path) -> None:
        """Read ``dataset.json`` and the indexes.

        Raises:
            ValueError: No shards there, or (``DamagedShard``) an index is not what was written.
        """
        self._folder = Path(folder)
        self.dataset: dict[str, Any] = read_dataset(self._folder)
        self.samples: list[Sample] = [
            sample for shard in self.dataset["shards"] for sample in read_index(self._folder, shard)
        ]
        self._maps: dict[str, memoryview] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a mapping belongs to its process

    def read_volume(self, index: int) -> np.ndarray:
        """A whole scan, (D, H, W) int16, verified."""
        volume, _ = self.read_crop(index, start=(0, 0, 0), shape=self.samples[index].shape)
        return volume

    def read_crop(
        self, index: int, *, start: Sequence[int], shape: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A crop of any place and size; what lies outside the scan is filled with its air.

        Returns:
            The crop, int16, and (3, 2) int32: [start, stop) of the scan inside the crop.

        Raises:
            DamagedShard: A byte that was needed is not what was written.
        """
        sample = self.samples[index]
        first = [max(begin, 0) for begin in start]
        last = [
            min(begin + edge, length)
            for begin, edge, length in zip(start, shape, sample.shape, strict=True)
        ]
        inside = np.array(
            [[a - begin, b - begin] for a, b, begin in zip(first, last, start, strict=True)],
            dtype=np.int32,
        )
        if (inside[:, 0] >= inside[:, 1]).any():
            raise ValueError(f"{sample.key}: a crop at {tuple(start)} lies outside {sample.shape}")
        try:
            found = read_crop(
                self._frame(sample), start=first, stop=last, expected=sample.checksums[_MEMBER]
            )
        except DamagedFrame as error:
            place = sample.members[_MEMBER].offset + error.offset
            raise DamagedShard(
                f"{self._folder / sample.shard}: {sample.key}.{_MEMBER} is damaged at byte {place}"
                f" ({error.what}); run python -m shards.verify {self._folder}, then build again"
            ) from None
        if found.shape == tuple(shape):
            return found, inside
        crop = np.full(shape, _air(sample), dtype=np.int16)
        crop[tuple(slice(a, b) for a, b in inside)] = found
        return crop, inside

    def _frame(self, sample: Sample) -> memoryview:
        if sample.shard not in self._maps:
            try:
                with (self._folder / sample.shard).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DamagedShard(
                    f"{self._folder / sample.shard}: cannot be opened ({error})"
                ) from None
            self._maps[sample.shard] = memoryview(mapped)
        member = sample.members[_MEMBER]
        return self._maps[sample.shard][member.offset : member.offset + member.size]


def crop_batches(
    folder: str | Path,
    *,
    crop_shape: tuple[int, int, int],
    micro_batch: int,
    seed: int,
    rank: int,
    world_size: int,
    start_step: int = 0,
    stop_step: int | None = None,
    num_workers: int = 0,
) -> Iterator[CropBatch]:
    """The batches of one rank, from ``start_step`` on.

    Step s holds ``world_size * micro_batch`` positions of the global stream, rank 0 the first
    ``micro_batch`` of them; so the ranks' batches, joined, are those of one rank with a batch as
    large, and nothing but the step needs to be kept to go on.

    Args:
        folder: Of shards.
        crop_shape: (d, h, w) voxels.
        micro_batch: Scans of a batch.
        seed: Of the order and of the crops.
        rank, world_size: Of this process among those that train.
        start_step: First step, counted in batches.
        stop_step: One past the last step; None never ends.
        num_workers: Processes that read; 0 reads in this one.

    Raises:
        DamagedShard: At the first scan that is not what was written.
    """
    batches = _Batches(ShardReader(folder), crop_shape, micro_batch, seed, rank, world_size)
    loader: DataLoader[CropBatch | DamagedShard] = DataLoader(
        batches,
        sampler=_Steps(start_step, stop_step),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
    )
    return _delivered(loader)


def _delivered(batches: Iterable[CropBatch | DamagedShard]) -> Iterator[CropBatch]:
    for batch in batches:
        if isinstance(batch, DamagedShard):
            raise batch
        yield batch


class _Steps(Sampler[int]):
    """The numbers of the steps; the loader keeps their order whatever its workers do."""

    def __init__(self, start: int, stop: int | None) -> None:
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[int]:
        step = self._start
        while self._stop is None or step < self._stop:
            yield step
            step += 1


class _Batches(Dataset[CropBatch | DamagedShard]):
    """Step -> batch of one rank; damage is handed over whole, a worker's raise would bury it."""

    def __init__(
        self,
        reader: ShardReader,
        crop_shape: tuple[int, int, int],
        micro_batch: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._reader, self._crop_shape, self._seed = reader, crop_shape, seed
        self._micro_batch, self._rank, self._world_size = micro_batch, rank, world_size

    def __getitem__(self, step: int) -> CropBatch | DamagedShard:
        try:
            return self._batch(step)
        except DamagedShard as error:
            return error

    def _batch(self, step: int) -> CropBatch:
        began = time.perf_counter()
        first = (step * self._world_size + self._rank) * self._micro_batch
        positions = list(range(first, first + self._micro_batch))
        indices = [
            sample_at(position, num_samples=len(self._reader), seed=self._seed)
            for position in positions
        ]
        crops = [self._crop(*pair) for pair in zip(positions, indices, strict=True)]
        return _stack(
            [self._reader.samples[index] for index in indices],
            crops=crops,
            positions=positions,
            read_s=time.perf_counter() - began,
        )

    def _crop(self, position: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self._reader.samples[index]
        start = crop_start(
            position,
            seed=self._seed,
            shape=sample.shape,
            crop_shape=self._crop_shape,
            box=sample.foreground_box,
        )
        return self._reader.read_crop(index, start=start, shape=self._crop_shape)


def _stack(
    samples: Sequence[Sample],
    *,
    crops: Sequence[tuple[np.ndarray, np.ndarray]],
    positions: Sequence[int],
    read_s: float,
) -> CropBatch:
    volumes = [one.sequences[VOLUME] for one in samples]
    statistics = [[one.statistics[name] for name in IntensityStatistics._fields] for one in volumes]
    return CropBatch(
        volume=torch.from_numpy(np.stack([crop for crop, _ in crops])[:, None]),
        inside=torch.from_numpy(np.stack([inside for _, inside in crops])),
        slope=torch.tensor([one.slope for one in volumes], dtype=torch.float32),
        intercept=torch.tensor([one.intercept for one in volumes], dtype=torch.float32),
        modality=torch.tensor([MODALITIES.index(one.modality) for one in volumes]),
        statistics=torch.tensor(statistics, dtype=torch.float32),
        spacing_mm=torch.tensor([one.spacing_mm for one in samples], dtype=torch.float32),
        position=torch.tensor(positions),
        subject=torch.tensor([int(one.subject[:SUBJECT_DIGITS], 16) for one in samples]),
        keys=[one.key for one in samples],
        read_s=read_s,
    )


def _air(sample: Sample) -> int:
    """The stored value of the lowest intensity of a scan."""
    volume = sample.sequences[VOLUME]
    level = round((volume.statistics["minimum"] - volume.intercept) / volume.slope)
    return min(max(level, INT16.min), INT16.max)


def _unchanged(batch: Any) -> Any:
    return batch
