"""Crops out of tars: exact, wherever they lie; nothing damaged; no work twice; little memory."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.index import VOLUME, DamagedShard, read_dataset, read_index
from shards.storage.storage import MAX_MAPS, MappedFolder
from shards.streaming import reader as reader_module
from shards.streaming.crops import Box
from shards.streaming.reader import DamagedSample, ShardReader
from shards.streaming.table import SampleTable
from tests.written_shards import Written, plain, ramp, write_shards

SHAPE = (70, 90, 66)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of eight chunks each."""
    return write_shards(tmp_path_factory.mktemp("large") / "shards", plain(2, shape=SHAPE))


def test_crops_are_the_scans_voxels(shards: Path, toy_volume: Callable[..., np.ndarray]) -> None:
    """Out of a real build: CT as it was written; MR, an RAS file of fractions, to half a level."""
    reader = ShardReader(shards)
    for index in range(3):
        assert reader.samples[index].spacing_mm == (4.0, 2.0, 1.5)
        crop, inside = reader.read_crop(index, start=(2, 3, 1), shape=(5, 4, 6))
        np.testing.assert_array_equal(crop, toy_volume(index)[2:7, 3:7, 1:7])
        assert inside.tolist() == [[0, 5], [0, 4], [0, 6]]
    sample = reader.samples[3]
    stored = toy_volume(10, (12, 10, 9)).astype(np.float32) * 1.5 + 0.25
    expected = stored[::-1, ::-1].transpose(2, 1, 0)
    volume = sample.sequences[VOLUME]
    found = reader.read_volume(3) * volume.slope + volume.intercept
    assert sample.spacing_mm == (3.0, 2.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=0.51 * volume.slope)


def test_a_crop_larger_than_the_scan_is_centred_in_air(tmp_path: Path) -> None:
    reader = ShardReader(write_shards(tmp_path / "shards", plain(2)))
    shape = (12, 17, 14)
    crop, inside = reader.read_crop(1, start=(-1, -2, 0), shape=shape)
    assert inside.tolist() == [[1, 10], [2, 16], [0, 11]]
    np.testing.assert_array_equal(crop[1:10, 2:16, :11], ramp(1, (9, 14, 11)))
    padding = np.ones(shape, bool)
    padding[1:10, 2:16, :11] = False
    assert set(crop[padding]) == {ramp(1, (9, 14, 11)).min()}


def test_a_crop_outside_the_scan_is_a_mistake(large: Path) -> None:
    with pytest.raises(ValueError, match="lies outside"):
        ShardReader(large).read_crop(0, start=(70, 0, 0), shape=(2, 2, 2))


def test_several_crops_are_each_exact_and_share_their_work(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(large)
    decoded: list[list[int]] = []
    decode = reader_module.decode_crop
    monkeypatch.setattr(
        reader_module,
        "decode_crop",
        lambda frame, *, start, stop: (
            decoded.append([*start, *stop]),
            decode(frame, start=start, stop=stop),
        )[1],
    )
    for starts, times in (
        ([(0, 0, 0), (10, 0, 0), (0, 0, 10)], 1),  # overlap: one box around them is less
        ([(0, 0, 0), (50, 70, 40)], 2),  # far apart
    ):
        decoded.clear()
        boxes = [Box(start, (20, 15, 22)) for start in starts]
        crops, read_s = reader.read_crops(reader.samples[1], boxes=boxes, sequences=[VOLUME])
        assert len(decoded) == times
        assert read_s > 0
        for crop, (d, h, w) in zip(crops, starts, strict=True):
            expected = ramp(1, SHAPE)[d : d + 20, h : h + 15, w : w + 22]
            np.testing.assert_array_equal(crop.volumes[VOLUME], expected)


def test_only_touched_chunks_matter(large: Path, tmp_path: Path) -> None:
    """Damage in the last chunk is not met by a crop of the first, and never delivered."""
    folder = tmp_path / "shards"
    shutil.copytree(large, folder)
    sample = ShardReader(folder).samples[0]
    sums = sample.checksums["volume.b2nd"]
    chunk = sample.members["volume.b2nd"].offset + sums.start + int(sums.sizes[:-1].sum())
    content = bytearray((folder / sample.shard).read_bytes())
    content[chunk + 40] ^= 1
    (folder / sample.shard).write_bytes(content)
    reader = ShardReader(folder)
    near = {"start": (0, 0, 0), "shape": (20, 20, 20)}
    np.testing.assert_array_equal(reader.read_crop(0, **near)[0], ramp(0, SHAPE)[:20, :20, :20])
    with pytest.raises(DamagedSample) as caught:
        reader.read_crop(0, start=(60, 60, 60), shape=(9, 9, 6))
    error = caught.value
    assert (error.key, error.offset) == (sample.key, chunk)
    assert str(error) == (
        f"{folder}/{sample.shard}: {sample.key} is damaged at byte {chunk} (volume.b2nd, chunk 7 "
        f"of 8); run python -m shards.verify {folder}, then build again"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(DamagedSample):
        reader.read_volume(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dataset.json", "not the JSON"), ("shard-000000.index.json", "checksum differs")],
)
def test_damaged_tables_are_refused(large: Path, tmp_path: Path, name: str, message: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(large, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(DamagedShard, match=message):
        ShardReader(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=r"no shards here|index.json: missing"):
        ShardReader(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: tar.unlink(), "missing"),
        (lambda tar: tar.write_bytes(b""), "empty"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:4000]), "ends before byte"),
    ],
)
def test_a_tar_that_is_not_whole(large: Path, tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(large, folder)
    reader = ShardReader(folder)
    damage(folder / reader.samples[0].shard)
    with pytest.raises(DamagedSample, match=rf"shard-000000.tar: {message}") as caught:
        reader.read_volume(0)
    assert "\n" not in str(caught.value)
    assert reader.read_volume(1).shape == SHAPE


def test_no_shards_here(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no shards here; build them with"):
            ShardReader(place)


def test_a_reader_can_be_sent_to_another_process(large: Path) -> None:
    reader = ShardReader(MappedFolder(large))
    before = reader.read_volume(1)
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read_volume(1), before)
    assert str(again) == str(reader) == str(large)


def test_a_folder_of_many_tars_holds_few_files_open(tmp_path: Path) -> None:
    count = MAX_MAPS + 20
    samples = plain(count, shape=(3, 4, 2))
    reader = ShardReader(write_shards(tmp_path / "shards", samples, shard_size_mb=1e-5))
    assert len({sample.shard for sample in reader.samples}) == count
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [reader.read_volume(index) for index in range(count)]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MAX_MAPS
    assert all(voxels[0, 0, 0] == np.int16(1000 * n) for n, voxels in enumerate(kept[:20]))


def test_days_count_from_each_subjects_first_visit(tmp_path: Path) -> None:
    days = [("a", 100), ("b", -7), ("a", 64), ("b", None), ("c", None), ("a", 65)]
    samples = [
        Written({VOLUME: ramp(number, (3, 4, 2))}, subject=subject, visit_day=day)
        for number, (subject, day) in enumerate(days)
    ]
    found = ShardReader(write_shards(tmp_path / "shards", samples)).days
    np.testing.assert_array_equal(found, np.float32([36, 0, 0, np.nan, np.nan, 1]))


def test_the_table_gives_back_what_the_index_holds(large: Path) -> None:
    reader = ShardReader(large)
    expected = [
        sample for shard in read_dataset(large)["shards"] for sample in read_index(large, shard)
    ]
    assert len(reader.samples) == len(expected) == 2
    for found, sample in zip(reader.samples[0:2], expected, strict=True):
        for name in vars(sample):
            if name != "checksums":
                assert getattr(found, name) == getattr(sample, name)
        sums, want = found.checksums["volume.b2nd"], sample.checksums["volume.b2nd"]
        for one, other in zip(sums, want, strict=True):
            np.testing.assert_array_equal(one, other)
    assert reader.samples[-1].key == expected[1].key
    with pytest.raises(IndexError):
        reader.samples[2]


def test_a_large_index_is_small() -> None:
    """Whole CTs of 100 chunks take 2 kB each, less than their chunks' checksums as text."""
    entry = {
        "key": "ct-" + "0" * 29,
        "members": {"volume.b2nd": {"offset": 1, "size": 2, "sha256": "0" * 64}},
        "checksums": {
            "volume.b2nd": {
                "shape": [256, 320, 320],
                "chunk_shape": [64, 64, 64],
                "table": "0" * 16,
                "start": 1000,
                "sizes": [200_000 + number for number in range(100)],
                "xxh3": "0123456789abcdef" * 100,
            }
        },
        "scan": {"shape": [256, 320, 320], "subject": "0" * 16},
    }
    table = SampleTable([("shard-000000.tar", (entry for _ in range(5_000)))])
    assert len(table) == 5_000
    assert len(pickle.dumps(table)) < 5_000 * 2_000
