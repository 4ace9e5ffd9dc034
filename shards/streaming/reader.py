"""Random access to the scans of a folder of shards: crops, each byte of them verified."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.codec import DamagedFrame, decode_crop, needed_ranges, verify_crops
from shards.index import (
    VOLUME,
    DamagedShard,
    Sample,
    mask_member,
    read_dataset,
    read_entries,
    sequence_member,
)
from shards.scan import INT16
from shards.storage.storage import CacheConfig, Storage, open_storage
from shards.streaming.crops import Box, Cut, cut_of, joined
from shards.streaming.table import SampleTable


class DamagedSample(DamagedShard):
    """A member that is not what was written, or cannot be read.

    Attributes:
        shard: The tar, with the place it lies at.
        key: Of the sample.
        offset: First byte, in the tar, of what is damaged.
        what: The member and the part of it, in words.
    """

    def __init__(self, shard: str, key: str, offset: int, what: str) -> None:
        super().__init__(shard, key, offset, what)
        self.shard, self.key, self.offset, self.what = shard, key, offset, what

    def __str__(self) -> str:
        folder = self.shard.rpartition("/")[0]
        return (
            f"{self.shard}: {self.key} is damaged at byte {self.offset} ({self.what}); run"
            f" python -m shards.verify {folder}, then build again"
        )


class Crop(NamedTuple):
    """What was cut out of one scan.

    Attributes:
        volumes: By sequence, (d, h, w) int16; of the box's extent, air beyond the scan.
        masks: By name, (d, h, w) uint8; 0 beyond the scan.
        inside: (3, 2) int32, [start, stop) of the scan in the crop.
    """

    volumes: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    inside: np.ndarray


class ShardReader:
    """The samples of one folder.

    Attributes:
        dataset: ``dataset.json``.
        samples: In the order of the shards.
        days: (N,) float32: of each sample, days since its subject's first visit in here, or NaN.
    """

    def __init__(self, where: str | Path | Storage, *, cache: CacheConfig | None = None) -> None:
        """Read ``dataset.json`` and the indexes; a tar is opened at its first use.

        Args:
            where: A folder or URL, or a storage that is open already.
            cache: For a URL, as in ``shards.storage.storage.open_storage``.

        Raises:
            ValueError: No shards there, or (``DamagedShard``) an index is not what was written.
        """
        if isinstance(where, str | Path):
            where = open_storage(where, cache=cache)
        self._storage = where
        self.dataset: dict[str, Any] = read_dataset(self._storage)
        self.samples = SampleTable(
            (shard["file"], read_entries(self._storage, shard)) for shard in self.dataset["shards"]
        )
        self.days = days_since_first_visit(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        return str(self._storage)

    def read_volume(self, index: int, *, sequence: str = VOLUME) -> np.ndarray:
        """One sequence of a sample, whole: (D, H, W) int16, verified."""
        shape = self.samples[index].shape
        volume, _ = self.read_crop(index, start=(0, 0, 0), shape=shape, sequence=sequence)
        return volume

    def read_mask(self, index: int, *, mask: str) -> np.ndarray:
        """A mask of a sample, whole: (D, H, W) uint8, verified."""
        sample = self.samples[index]
        (crop,), _ = self.read_crops(
            sample, boxes=[Box((0, 0, 0), sample.shape)], sequences=[], masks=[mask]
        )
        return crop.masks[mask]

    def read_crop(
        self,
        index: int,
        *,
        start: tuple[int, int, int],
        shape: tuple[int, int, int],
        sequence: str = VOLUME,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A crop of any place and size; what lies outside the scan is filled with its air.

        Returns:
            The crop, int16, and (3, 2) int32: [start, stop) of the scan inside the crop.

        Raises:
            DamagedSample: A byte that was needed is not what was written.
            ValueError: The crop lies outside the scan.
        """
        sample = self.samples[index]
        (crop,), _ = self.read_crops(sample, boxes=[Box(start, shape)], sequences=[sequence])
        return crop.volumes[sequence], crop.inside

    def read_crops(
        self,
        sample: Sample,
        *,
        boxes: Sequence[Box],
        sequences: Sequence[str],
        masks: Sequence[str] = (),
    ) -> tuple[list[Crop], float]:
        """Several crops of one sample; where they lie close together they are decoded once.

        Args:
            sample: One of :attr:`samples`.
            boxes: Of the crops.
            sequences, masks: By name; those that the sample does not have are left out.

        Returns:
            The crops, and the seconds until the bytes were there and their checksums compared.

        Raises:
            DamagedSample: A byte that was needed is not what was written, or cannot be read.
            ValueError: A crop lies outside the scan.
        """
        cuts = [cut_of(box, shape=sample.shape) for box in boxes]
        crops = [Crop({}, {}, cut.inside) for cut in cuts]
        wanted = [
            (name, sequence_member(name), stored_air(sample, name))
            for name in sequences
            if name in sample.sequences
        ]
        wanted += [(name, mask_member(name), 0) for name in masks if name in sample.masks]
        total_s = 0.0
        for name, member, outside in wanted:
            found, read_s = self._read_member(sample, member, cuts=cuts)
            total_s += read_s
            for crop, box, voxels in zip(crops, boxes, found, strict=True):
                kind = crop.volumes if member == sequence_member(name) else crop.masks
                kind[name] = padded(voxels, box=box, inside=crop.inside, value=outside)
        return crops, total_s

    def _read_member(
        self, sample: Sample, member: str, *, cuts: Sequence[Cut]
    ) -> tuple[list[np.ndarray], float]:
        """The cuts out of one member, and the seconds before anything was decompressed."""
        around = joined(cuts)
        spans = [around] if around else [(cut.first, cut.stop) for cut in cuts]
        began = time.perf_counter()
        frame = self._verified(sample, member, spans=spans)
        read_s = time.perf_counter() - began
        found = [
            decode_crop(frame, start=first.tolist(), stop=last.tolist()) for first, last in spans
        ]
        if around:
            corner = around[0]
            found = [found[0][_window(cut.first - corner, cut.stop - corner)] for cut in cuts]
        return found, read_s

    def _verified(
        self, sample: Sample, member: str, *, spans: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> memoryview:
        place, expected = sample.members[member], sample.checksums[member]
        shard = f"{self._storage}/{sample.shard}"
        ranges = sorted(
            {
                each
                for first, last in spans
                for each in needed_ranges(
                    expected, size=place.size, start=first.tolist(), stop=last.tolist()
                )
            }
        )
        try:
            frame = self._storage.frame(sample.shard, place, ranges)
            windows = [(first.tolist(), last.tolist()) for first, last in spans]
            verify_crops(frame, windows=windows, expected=expected)
        except DamagedFrame as error:
            offset = place.offset + error.offset
            raise DamagedSample(shard, sample.key, offset, f"{member}, {error}") from None
        except (DamagedShard, OSError) as error:
            told = f"{member} cannot be read: {error}"
            raise DamagedSample(shard, sample.key, place.offset, told) from None
        return frame


def padded(voxels: np.ndarray, *, box: Box, inside: np.ndarray, value: int) -> np.ndarray:
    """Voxels at their place in a crop of the box's extent, ``value`` around them."""
    if voxels.shape == tuple(box.extent):
        return voxels
    crop = np.full(box.extent, value, dtype=voxels.dtype)
    crop[_window(inside[:, 0], inside[:, 1])] = voxels
    return crop


def days_since_first_visit(samples: SampleTable) -> np.ndarray:
    """(N,) float32; NaN for a sample without a date."""
    found = [(scan["subject"], scan["visit_day"]) for scan in samples.scans()]
    first: dict[str, int] = {}
    for subject, day in found:
        if day is not None:
            first[subject] = min(day, first.get(subject, day))
    since = [np.nan if day is None else day - first[subject] for subject, day in found]
    return np.array(since, dtype=np.float32)


def stored_air(sample: Sample, sequence: str) -> int:
    """The stored value of the lowest intensity of a sequence."""
    volume = sample.sequences[sequence]
    level = round((volume.statistics["minimum"] - volume.intercept) / volume.slope)
    return min(max(level, INT16.min), INT16.max)


def _window(first: np.ndarray, stop: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))
