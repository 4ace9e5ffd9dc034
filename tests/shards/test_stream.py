"""The stream: one order for any ranks, workers and restarts; exact accounting; no damaged byte."""

import logging
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards import stream as stream_module
from shards.index import VOLUME, DamagedShard, Member
from shards.measure.intensity import IntensityStatistics
from shards.scan import MODALITIES
from shards.storage.storage import MappedFolder
from shards.stream import StalledReader, crop_batches
from shards.streaming.batch import CropBatch
from shards.streaming.corpus import Corpus, Source, open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reader import ShardReader
from shards.streaming.reading import FolderConfig
from tests.written_shards import Written, plain, pseudonym, ramp, write_shards

CROP = (6, 8, 5)
PLAN = CropPlan(CROP)
SHAPE = (9, 14, 11)
GLOBAL = 8


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine scans in several tars."""
    return write_shards(tmp_path_factory.mktemp("ct") / "shards", plain(9, box=[[2, 7]] * 3))


@pytest.fixture(scope="module")
def mr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans of two sites, one of unknown site, of two modalities."""
    samples = [
        Written(
            {VOLUME: ramp(20 + number, (12, 10, 9))},
            subject=f"mr-{number}",
            values={"site": site, "age": number},
            modality="PT" if number == 4 else "MR",
            slope=0.5,
            intercept=3.0,
        )
        for number, site in enumerate(["north", "south", "north", None, "north"])
    ]
    return write_shards(tmp_path_factory.mktemp("mr") / "shards", samples, name="mr")


def corpus_of(*folders: Path | FolderConfig, plan: CropPlan = PLAN, seed: int = 5) -> Corpus:
    entries = [
        each if isinstance(each, FolderConfig) else FolderConfig(folder=str(each))
        for each in folders
    ]
    return open_corpus(entries, plan=plan, seed=seed)


def mixed(ct: Path, mr: Path, plan: CropPlan) -> Corpus:
    return corpus_of(
        FolderConfig(folder=str(ct), weight=3),
        FolderConfig(folder=str(mr), weight=2, balance="site"),
        plan=plan,
    )


def batches(corpus: Corpus, *, plan: CropPlan = PLAN, **changes: Any) -> list[CropBatch]:
    settings = {"micro_batch": 4, "seed": 5, "stop_position": 24, **changes}
    return list(crop_batches(corpus, plan=plan, **settings))


def by_position(found: Sequence[CropBatch]) -> dict[int, tuple[Any, ...]]:
    """What was delivered at each position, down to the last voxel."""
    rows = {}
    for batch in found:
        for row, position in enumerate(batch.position.tolist()):
            tensors = [each[row] for each in batch[:14]]
            rows[position] = (batch.keys[row], *(each.numpy().tobytes() for each in tensors))
    return rows


def ranks(corpus: Corpus, world_size: int, **changes: Any) -> dict[int, tuple[Any, ...]]:
    """All ranks' batches of ``GLOBAL`` positions together."""
    micro = GLOBAL // world_size
    return by_position(
        [
            batch
            for rank in range(world_size)
            for batch in batches(
                corpus, micro_batch=micro, rank=rank, world_size=world_size, **changes
            )
        ]
    )


def test_a_batch_has_the_stated_shapes(ct: Path) -> None:
    (batch,) = batches(corpus_of(ct), stop_position=4)
    assert (batch.volume.shape, batch.volume.dtype) == ((4, 1, *CROP), torch.int16)
    assert (batch.present.shape, batch.present.dtype) == ((4, 1), torch.bool)
    assert (batch.masks.shape, batch.masks.dtype) == ((4, 0, *CROP), torch.uint8)
    assert (batch.inside.shape, batch.inside.dtype) == ((4, 3, 2), torch.int32)
    assert (batch.extent.tolist(), batch.extent.dtype) == ([list(CROP)] * 4, torch.int32)
    assert batch.statistics.shape == (4, 1, len(IntensityStatistics._fields))
    assert batch.spacing_mm.shape == (4, 3)
    for each in (batch.position, batch.subject, batch.source, batch.modality):
        assert each.dtype == torch.int64
    for each in (batch.slope, batch.intercept, batch.statistics, batch.visit_day):
        assert each.dtype == torch.float32
    assert batch.modality.shape == batch.slope.shape == batch.intercept.shape == (4, 1)
    assert batch.position.tolist() == [0, 1, 2, 3]
    assert batch.visit_day.isnan().all()
    assert min(batch.read_s, batch.decode_s, batch.wait_s) > 0
    assert batch.damaged == []
    records = {sample.key: sample for sample in ShardReader(ct).samples}
    for row, key in enumerate(batch.keys):
        sample = records[key]
        assert MODALITIES[batch.modality[row, 0]] == "CT"
        assert batch.subject[row] == int(pseudonym(f"subject-{int(key[-3:])}")[:15], 16)
        median = sample.sequences[VOLUME].statistics["p50"]
        assert batch.statistics[row, 0, 5].item() == pytest.approx(median)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_workers_change_nothing(
    ct: Path, mr: Path, world_size: int, num_workers: int
) -> None:
    """A weighted, balanced mixture with three crops a scan, which batches cut apart."""
    plan = PLAN._replace(per_scan=3, foreground=0.5)
    corpus = mixed(ct, mr, plan)
    expected = by_position(batches(corpus, plan=plan, micro_batch=24))
    assert list(expected) == list(range(24))
    assert ranks(corpus, world_size, plan=plan, num_workers=num_workers) == expected


def test_a_run_goes_on_from_any_step_with_other_ranks(ct: Path, mr: Path) -> None:
    plan = PLAN._replace(per_scan=3)
    corpus = mixed(ct, mr, plan)
    expected = by_position(batches(corpus, plan=plan, micro_batch=24))
    for done in range(0, 25, GLOBAL):
        for before, after in ((1, 2), (4, 1), (2, 4)):
            found = ranks(corpus, before, plan=plan, stop_position=done)
            found |= ranks(corpus, after, plan=plan, start_position=done)
            assert found == expected
    odd = batches(corpus, plan=plan, micro_batch=7, start_position=3)
    assert by_position(odd) == {each: expected[each] for each in range(3, 24)}


def test_the_stream_has_no_end_of_its_own(ct: Path) -> None:
    endless = crop_batches(
        corpus_of(ct), plan=PLAN, micro_batch=1, seed=0, start_position=10**12 + 1
    )
    assert next(endless).position.tolist() == [10**12 + 1]


def test_a_part_of_a_batch_is_refused(ct: Path) -> None:
    with pytest.raises(ValueError, match=r"0 to 24 are not a whole number of 9 \(1 ranks x 9\)"):
        batches(corpus_of(ct), micro_batch=9)


def test_every_sample_once_a_pass_over_its_source(ct: Path, mr: Path) -> None:
    plan = PLAN._replace(per_scan=2)
    corpus = mixed(ct, mr, plan)
    assert [source.name for source in corpus.sources] == [
        "toy",
        "mr/north",
        "mr/south",
        "mr/unknown",
    ]
    assert [source.weight for source in corpus.sources] == [3, 2 / 3, 2 / 3, 2 / 3]
    turns: list[list[str]] = [[] for _ in corpus.sources]
    for scan in range(400):
        drawn = corpus.drawn(scan)
        turns[drawn.source].append(corpus.sample(drawn).key)
        passes = [len(seen) / len(s.indices) for seen, s in zip(turns, corpus.sources, strict=True)]
        epochs = corpus.epochs_seen(2 * (scan + 1), per_scan=2)
        assert list(epochs.values()) == pytest.approx(passes, abs=1e-12)
    for seen, source in zip(turns, corpus.sources, strict=True):
        size = len(source.indices)
        for first in range(0, len(seen) - size + 1, size):
            assert len(set(seen[first : first + size])) == size
    assert len(turns[0]) == pytest.approx(240, abs=40)
    half = corpus.epochs_seen(401, per_scan=2)[corpus.sources[corpus.drawn(200).source].name]
    assert half > corpus.epochs_seen(400, per_scan=2)[corpus.sources[corpus.drawn(200).source].name]


def test_folders_without_weights_are_one_set_of_scans(ct: Path, mr: Path) -> None:
    corpus = corpus_of(ct, mr)
    keys = Counter(corpus.sample(corpus.drawn(scan)).key for scan in range(7000))
    assert set(keys.values()) == {500}
    assert len({corpus.digest, corpus_of(ct).digest, corpus_of(mr, ct).digest}) == 3
    assert corpus_of(ct).digest == ShardReader(ct).dataset["digest"]


@pytest.mark.parametrize(
    ("balance", "names"),
    [("modality", ["mr/MR", "mr/PT"]), ("source", ["mr/mr"]), ("split", ["mr/train"])],
)
def test_balance_by_what_every_sample_has(mr: Path, balance: str, names: list[str]) -> None:
    corpus = corpus_of(FolderConfig(folder=str(mr), balance=balance))
    assert [source.name for source in corpus.sources] == names
    (batch,) = batches(corpus, stop_position=4)
    for row, key in enumerate(batch.keys):
        source = corpus.sources[batch.source[row]]
        assert key in {source.reader.samples[int(index)].key for index in source.indices}


@pytest.mark.parametrize(
    ("entries", "plan", "message"),
    [
        ([{"balance": "sight"}], PLAN, "no sample has a column 'sight' to balance; there is age,"),
        (
            [{}],
            PLAN._replace(sequences=("t1",)),
            "no sample has any of the sequences t1; there is volume",
        ),
        ([{}], PLAN._replace(masks=("face",)), "no sample has a mask 'face'; there is none"),
        ([{"weight": 1}, {}], PLAN, "give every folder a weight, or none"),
    ],
)
def test_a_mixture_that_cannot_be(
    ct: Path, mr: Path, entries: list[dict[str, Any]], plan: CropPlan, message: str
) -> None:
    folders = [
        FolderConfig(folder=str(folder), **entry)
        for folder, entry in zip((mr, ct), entries, strict=False)
    ]
    with pytest.raises(ValueError, match=message):
        corpus_of(*folders, plan=plan)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T1w and FLAIR of two visits; one visit with FLAIR alone; one with neither. A face mask."""
    shape = (7, 9, 6)
    face = np.zeros(shape, np.uint8)
    face[:, :3] = 2
    samples = [
        Written(
            {"t1w": ramp(1, shape), "flair": ramp(2, shape)}, masks={"face": face}, visit_day=8
        ),
        Written({"flair": ramp(3, shape)}, visit_day=38, slope=2.0, intercept=-5.0),
        Written({"pd": ramp(4, shape)}, visit_day=1),
        Written({"t1w": ramp(5, shape), "flair": ramp(6, shape)}, subject="other"),
    ]
    return write_shards(tmp_path_factory.mktemp("several") / "shards", samples, name="several")


def test_channels_masks_and_what_is_absent(sequences: Path) -> None:
    plan = CropPlan((5, 12, 4), sequences=("t1w", "flair"), masks=("face",))
    corpus = corpus_of(sequences, plan=plan)
    assert corpus.excluded == 1
    (batch,) = batches(corpus, plan=plan, micro_batch=3, stop_position=3)
    assert sorted(batch.keys) == ["several-000", "several-001", "several-003"]
    rows = {key: row for row, key in enumerate(batch.keys)}
    both, alone, other = rows["several-000"], rows["several-001"], rows["several-003"]
    assert batch.volume.shape == (3, 2, 5, 12, 4)
    assert batch.masks.shape == (3, 1, 5, 12, 4)
    assert batch.present[[both, alone, other]].tolist() == [[True, True], [False, True], [True] * 2]
    assert (batch.volume[alone, 0] == 0).all()
    assert (batch.slope[alone].tolist(), batch.intercept[alone].tolist()) == ([1, 2], [0, -5])
    assert (batch.statistics[alone, 0] == 0).all()
    assert (batch.statistics[alone, 1] != 0).all()
    # One grid: the sequences of a sample differ by 1000 at every voxel inside the scan.
    inside = slice(*batch.inside[both, 1].tolist())
    assert batch.inside[both, 1].tolist() == [1, 10]
    t1w, flair = batch.volume[both, :, :, inside].int()
    assert (flair - t1w == 1000).all()
    # The face lies on the scan's first three rows; the crop begins one row before it.
    assert (batch.masks[both, 0, :, 1:4] == 2).all()
    assert batch.masks[both, 0].sum() == 2 * 5 * 3 * 4
    assert (batch.masks[[alone, other]] == 0).all()
    days = batch.visit_day[[both, alone, other]].numpy()
    np.testing.assert_array_equal(days, np.float32([7, 37, np.nan]))


def test_crops_in_millimetres_are_padded_to_one_shape(tmp_path: Path) -> None:
    samples = [
        Written({VOLUME: ramp(number, (40, 30, 50))}, spacing_mm=spacing)
        for number, spacing in enumerate([(3.0, 1.0, 1.5), (1.0, 2.0, 0.75)])
    ]
    folder = write_shards(tmp_path / "shards", samples)
    plan = CropPlan((8, 8, 8), size_mm=(12.0, 18.0, None))
    (batch,) = batches(corpus_of(folder, plan=plan), plan=plan, micro_batch=2, stop_position=2)
    extents = {key: tuple(batch.extent[row].tolist()) for row, key in enumerate(batch.keys)}
    assert extents == {"toy-000": (4, 18, 8), "toy-001": (12, 9, 8)}
    assert batch.volume.shape == (2, 1, 12, 18, 8)
    for row, (d, h, w) in enumerate(batch.extent.tolist()):
        crop = batch.volume[row, 0].numpy()
        np.testing.assert_array_equal(crop[:d, :h, :w] - crop[0, 0, 0], ramp(0, (d, h, w)))
        air = 1000 * int(batch.keys[row][-1])
        assert (crop[d:] == air).all()
        assert (crop[:, h:] == air).all()
        assert batch.inside[row].tolist() == [[0, d], [0, h], [0, w]]


def damaged_copy(folder: Path, target: Path, *, sample: int) -> tuple[str, int]:
    """A copy with a flipped byte in the only chunk of a sample; its key and the chunk's place."""
    shutil.copytree(folder, target)
    found = ShardReader(target).samples[sample]
    place = found.members["volume.b2nd"].offset + found.checksums["volume.b2nd"].start
    content = bytearray((target / found.shard).read_bytes())
    content[place + 50] ^= 1
    (target / found.shard).write_bytes(content)
    return found.key, place


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_flipped_byte_stops_the_stream(ct: Path, tmp_path: Path, num_workers: int) -> None:
    key, place = damaged_copy(ct, tmp_path / "shards", sample=4)
    with pytest.raises(DamagedShard, match=rf"\.tar: {key} is damaged at byte {place} ") as caught:
        batches(corpus_of(tmp_path / "shards"), num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_replaced_told_and_counted(
    ct: Path, mr: Path, tmp_path: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By a sample of the same source, the same one for any number of ranks; once however often."""
    key, place = damaged_copy(ct, tmp_path / "shards", sample=4)
    plan = PLAN._replace(per_scan=3)
    settings = {"plan": plan, "stop_position": 96, "max_damaged": 1}
    whole = by_position(batches(mixed(ct, mr, plan), **settings))
    corpus = mixed(tmp_path / "shards", mr, plan)
    with caplog.at_level(logging.WARNING, logger="scanfm.stream"):
        found = batches(corpus, num_workers=num_workers, **settings)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{key} is damaged at byte {place} (volume.b2nd, chunk 0 of 1); replaced by toy" in line
    told = [damage for batch in found for damage in batch.damaged]
    assert len(told) > 3
    for damage in told:
        assert damage[:3] == (f"{tmp_path}/shards/{_shard_of(corpus, key)}", key, place)
    rows = by_position(found)
    changed = {position for position in rows if rows[position] != whole[position]}
    assert changed == {position for position, row in whole.items() if row[0] == key}
    assert {rows[position][0][:3] for position in changed} == {"toy"}
    assert key not in {row[0] for row in rows.values()}
    assert ranks(corpus, 4, **settings) == ranks(corpus, 1, **settings) == rows


def _shard_of(corpus: Corpus, key: str) -> str:
    return next(sample.shard for sample in corpus.readers[0].samples if sample.key == key)


def test_past_the_limit_the_run_stops(ct: Path, tmp_path: Path) -> None:
    shutil.copytree(ct, tmp_path / "shards")
    for tar in sorted((tmp_path / "shards").glob("*.tar"))[1:3]:
        tar.write_bytes(tar.read_bytes()[:600])
    corpus = corpus_of(tmp_path / "shards")
    told = r"3 damaged samples, reading\.max_damaged is 2; last /.* cannot be read: .* ends before"
    with pytest.raises(DamagedShard, match=told):
        batches(corpus, max_damaged=2, stop_position=200)
    assert len(batches(corpus, max_damaged=4, stop_position=200)) == 50


def test_where_nothing_is_whole_nothing_is_delivered(ct: Path, tmp_path: Path) -> None:
    shutil.copytree(ct, tmp_path / "shards")
    for tar in (tmp_path / "shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(DamagedShard, match=r"cannot be read: .*missing"):
        batches(corpus_of(tmp_path / "shards"), max_damaged=1000)


def test_a_damaged_crop_is_replaced_alone(tmp_path: Path) -> None:
    """Of crops that share a read, those that need no damaged byte are delivered as they are.

    Else what is delivered would depend on which crops share a batch.
    """
    folder = write_shards(tmp_path / "whole", plain(3, shape=(70, 90, 130)))
    plan = PLAN._replace(per_scan=12)
    key, _ = damaged_copy(folder, tmp_path / "shards", sample=0)
    corpus = corpus_of(tmp_path / "shards", plan=plan)
    settings = {"plan": plan, "stop_position": 36, "max_damaged": 1}
    together = by_position(batches(corpus, micro_batch=36, **settings))
    alone = by_position(batches(corpus, micro_batch=1, **settings))
    assert together == alone
    assert 1 <= sum(row[0] == key for row in together.values()) < 12


class Slow(MappedFolder):
    """A disk that takes its time."""

    def __init__(self, folder: Path, *, seconds: float) -> None:
        super().__init__(folder)
        self._seconds = seconds

    def frame(self, shard: str, member: Member, ranges: Sequence[tuple[int, int]]) -> memoryview:
        time.sleep(self._seconds)
        return super().frame(shard, member, ranges)


def slow(folder: Path, *, seconds: float) -> Corpus:
    reader = ShardReader(Slow(folder, seconds=seconds))
    source = Source("slow", reader, np.arange(len(reader)), 1.0)
    return Corpus([reader], [source], seed=0, excluded=0)


def test_a_worker_that_hangs_ends_the_stream(ct: Path) -> None:
    with pytest.raises(
        StalledReader, match=r"no batch for 0\.3 s: a reader hangs; look at"
    ) as told:
        batches(slow(ct, seconds=2.0), micro_batch=1, num_workers=1, timeout_s=0.3)
    assert str(ct) in str(told.value)


def test_a_hanging_read_without_workers_is_warned_of_once(
    ct: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="scanfm.stream"):
        found = batches(slow(ct, seconds=0.5), micro_batch=1, stop_position=1, timeout_s=0.1)
        assert len(found) == 1
        quick = batches(corpus_of(ct), timeout_s=30.0)
    assert len(quick) == 6
    (record,) = caplog.records
    assert record.getMessage().startswith("no batch for 0.1 s: a reader hangs")


def test_a_worker_that_dies_is_one_line(ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "stack", lambda *_, **__: _exit())
    with pytest.raises(StalledReader, match=r"one of 1 reading processes of .* died"):
        batches(corpus_of(ct), num_workers=1)


def _exit() -> None:
    import os

    os._exit(9)


def test_a_corpus_can_be_sent_to_another_process(ct: Path, mr: Path) -> None:
    """What a worker that is spawned, not forked, is given."""
    corpus = mixed(ct, mr, PLAN)
    before = by_position(batches(corpus))
    assert by_position(batches(pickle.loads(pickle.dumps(corpus)))) == before
