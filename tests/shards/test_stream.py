"""The stream: one order for any ranks, workers and restarts; exact crops; no damaged byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.index import DamagedShard
from shards.intensity import IntensityStatistics
from shards.order import crop_start, sample_at
from shards.stream import MODALITIES, CropBatch, ShardReader, crop_batches

CROP = (6, 8, 5)


def _batches(folder: Path, **changes: Any) -> list[CropBatch]:
    settings = {
        "crop_shape": CROP,
        "micro_batch": 4,
        "seed": 5,
        "rank": 0,
        "world_size": 1,
        "stop_step": 6,
        **changes,
    }
    return list(crop_batches(folder, **settings))


def _same(one: CropBatch, other: CropBatch) -> bool:
    pairs = zip(one._replace(read_s=0), other._replace(read_s=0), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _joined(one: CropBatch, other: CropBatch) -> CropBatch:
    tensors = {
        name: torch.cat([getattr(one, name), getattr(other, name)])
        for name in CropBatch._fields
        if name not in ("keys", "read_s")
    }
    return CropBatch(**tensors, keys=one.keys + other.keys, read_s=0.0)


def test_a_batch_has_the_stated_shapes(shards: Path) -> None:
    (batch,) = _batches(shards, stop_step=1)
    assert batch.volume.shape == (4, 1, *CROP)
    assert batch.volume.dtype == torch.int16
    assert (batch.inside.shape, batch.inside.dtype) == ((4, 3, 2), torch.int32)
    assert batch.statistics.shape == (4, len(IntensityStatistics._fields))
    assert batch.spacing_mm.shape == (4, 3)
    assert batch.modality.dtype == batch.position.dtype == batch.subject.dtype == torch.int64
    assert batch.slope.dtype == batch.intercept.dtype == torch.float32
    assert batch.position.tolist() == [0, 1, 2, 3]
    assert batch.read_s > 0
    records = {sample.key: sample for sample in ShardReader(shards).samples}
    for row, key in enumerate(batch.keys):
        sample = records[key]
        assert MODALITIES[batch.modality[row]] == sample.sequences["volume"].modality
        assert batch.subject[row] == int(sample.subject[:15], 16)
        assert batch.statistics[row, 5].item() == pytest.approx(
            sample.sequences["volume"].statistics["p50"]
        )


def test_two_ranks_joined_are_one(shards: Path) -> None:
    one = _batches(shards, micro_batch=4)
    ranks = [_batches(shards, micro_batch=2, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(one, *ranks, strict=True):
        assert _same(whole, _joined(first, second))


def test_workers_and_restarts_change_nothing(shards: Path) -> None:
    undisturbed = _batches(shards)
    for again in (_batches(shards, num_workers=2), _batches(shards)):
        assert all(map(_same, undisturbed, again))
        assert len(again) == 6
    later = _batches(shards, start_step=4, num_workers=2)
    assert len(later) == 2
    assert all(map(_same, undisturbed[4:], later))


def test_the_stream_has_no_end_of_its_own(shards: Path) -> None:
    endless = crop_batches(
        shards, crop_shape=CROP, micro_batch=1, seed=0, rank=0, world_size=1, start_step=1000
    )
    assert next(endless).position.tolist() == [1000]


def test_every_sample_once_an_epoch_in_a_new_order(shards: Path) -> None:
    count = len(ShardReader(shards))
    assert count == 9
    orders = [
        tuple(
            sample_at(epoch * count + place, num_samples=count, seed=seed) for place in range(count)
        )
        for epoch, seed in ((0, 1), (1, 1), (0, 2))
    ]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len(set(orders)) == 3


def test_crops_lie_inside_and_around_the_foreground() -> None:
    shape, box = (40, 60, 30), [(25, 32), (5, 12), (0, 30)]
    starts = np.array(
        [
            crop_start(position, seed=1, shape=shape, crop_shape=(10, 8, 6), box=box)
            for position in range(300)
        ]
    )
    assert (starts >= 0).all()
    assert (starts + np.array([10, 8, 6]) <= shape).all()
    centres = starts + np.array([5, 4, 3])
    for axis, (first, last) in enumerate(box[:2]):
        assert set(centres[:, axis]) == set(range(first, last))
    assert len(set(starts[:, 2])) == 25  # of 30 centres, those at the border are moved inside


def test_a_crop_larger_than_the_scan_is_centred_in_air(shards: Path) -> None:
    reader = ShardReader(shards)
    for index, sample in enumerate(reader.samples):
        shape = tuple(length + 3 for length in sample.shape)
        crop, inside = reader.read_crop(index, start=(-1, -1, -1), shape=shape)
        assert inside.tolist() == [[1, 1 + length] for length in sample.shape]
        volume = reader.read_volume(index)
        np.testing.assert_array_equal(crop[1:-2, 1:-2, 1:-2], volume)
        padding = np.ones(shape, bool)
        padding[1:-2, 1:-2, 1:-2] = False
        assert set(crop[padding]) == {volume.min()}
    assert crop_start(
        0, seed=0, shape=(4, 9, 7), crop_shape=(7, 8, 7), box=[(0, 4), (0, 9), (0, 7)]
    )[::2] == (-1, 0)


def test_crops_are_the_scans_voxels(shards: Path, toy_volume: Callable[..., np.ndarray]) -> None:
    """CT as it was written; MR, an RAS file of fractions, within half a level."""
    reader = ShardReader(shards)
    for index in range(3):
        assert reader.samples[index].spacing_mm == (4.0, 2.0, 1.5)
        crop, inside = reader.read_crop(index, start=(2, 3, 1), shape=(5, 4, 6))
        np.testing.assert_array_equal(crop, toy_volume(index)[2:7, 3:7, 1:7])
        assert inside.tolist() == [[0, 5], [0, 4], [0, 6]]
    sample = reader.samples[3]
    stored = toy_volume(10, (12, 10, 9)).astype(np.float32) * 1.5 + 0.25
    expected = stored[::-1, ::-1].transpose(2, 1, 0)
    found = (
        reader.read_volume(3) * sample.sequences["volume"].slope
        + sample.sequences["volume"].intercept
    )
    assert sample.spacing_mm == (3.0, 2.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=0.51 * sample.sequences["volume"].slope)


def test_a_crop_outside_the_scan_is_a_mistake(shards: Path) -> None:
    with pytest.raises(ValueError, match="lies outside"):
        ShardReader(shards).read_crop(0, start=(50, 0, 0), shape=(2, 2, 2))


def test_a_flipped_byte_is_never_delivered(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    reader = ShardReader(folder)
    sample = reader.samples[4]
    place = sample.members["volume.b2nd"].offset + sample.checksums["volume.b2nd"].start + 50
    content = bytearray((folder / sample.shard).read_bytes())
    content[place] ^= 1
    (folder / sample.shard).write_bytes(content)
    with pytest.raises(DamagedShard, match=rf"{sample.shard}: {sample.key}.*at byte {place - 50}"):
        reader.read_volume(4)
    for num_workers in (0, 1):
        with pytest.raises(DamagedShard, match=rf"damaged at byte {place - 50}") as caught:
            _batches(folder, num_workers=num_workers)
        assert "\n" not in str(caught.value)
    assert reader.read_volume(0).shape == reader.samples[0].shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dataset.json", "not the JSON"),
        ("shard-000000.index.json", "checksum differs"),
    ],
)
def test_damaged_tables_are_refused(shards: Path, tmp_path: Path, name: str, message: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(DamagedShard, match=message):
        ShardReader(folder)


def test_missing_shards(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards here; build them with"):
        ShardReader(tmp_path)
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(DamagedShard, match=r"shard-000000\.tar: cannot be opened"):
        ShardReader(folder).read_volume(0)
