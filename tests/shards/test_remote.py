"""Shards behind a URL: the same crops as from a local folder, and few bytes for each."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from shards.codec import decode_crop, needed_ranges, verify_crop
from shards.index import DamagedShard, Member, Sample, read_dataset, read_index
from shards.storage import errors as place_errors
from shards.storage.places import PlaceError
from shards.storage.remote import GAP_BYTES, coalesce, open_remote
from shards.storage.storage import CacheConfig, MappedFolder, Storage, open_storage
from shards.streaming.reader import ShardReader
from tests.shards.servers import WebServer, s3_server, web_server
from tests.shards.toy_shards import noise, write_shards

VOLUMES = [noise(0, (130, 200, 170)), noise(1, (40, 70, 90)), noise(2, (66, 30, 20))]
BOXES = [((5, 70, 3), (60, 120, 60)), ((0, 0, 0), (130, 200, 170)), ((64, 191, 64), (130, 200, 65))]
VOLUME = "volume.b2nd"


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(place_errors, "RETRY_WAITS_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "shards"
    dataset = write_shards(folder, VOLUMES, shard_size_mb=1)
    assert len(dataset["shards"]) == 2
    return folder


@pytest.fixture
def web(folder: Path) -> Iterator[WebServer]:
    with web_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    with s3_server("bucket"):
        client = boto3.client("s3")
        for path in folder.iterdir():
            client.upload_file(str(path), "bucket", f"toy/shards/{path.name}")
        yield "s3://bucket/toy/shards"


def samples_of(storage: Storage) -> list[Sample]:
    shards = read_dataset(storage)["shards"]
    return [sample for shard in shards for sample in read_index(storage, shard)]


def crop(
    storage: Storage, sample: Sample, start: tuple[int, ...], stop: tuple[int, ...]
) -> np.ndarray:
    """A verified crop, by the words of the codec alone."""
    member, expected = sample.members[VOLUME], sample.checksums[VOLUME]
    ranges = needed_ranges(expected, size=member.size, start=start, stop=stop)
    frame = storage.frame(sample.shard, member, ranges)
    assert len(frame) == member.size
    assert frame.readonly
    verify_crop(frame, start=start, stop=stop, expected=expected)
    return decode_crop(frame, start=start, stop=stop)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["web", "s3"])
def test_crops_are_those_of_the_volume(
    kind: str, cached: bool, web: WebServer, bucket: str, tmp_path: Path
) -> None:
    cache = CacheConfig(folder=tmp_path, size_gb=1) if cached else None
    storage = open_storage(web.url if kind == "web" else bucket, cache=cache)
    for sample, volume in zip(samples_of(storage), VOLUMES, strict=True):
        for start, stop in BOXES:
            start = tuple(min(a, edge - 1) for a, edge in zip(start, volume.shape, strict=True))
            stop = tuple(min(b, edge) for b, edge in zip(stop, volume.shape, strict=True))
            window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            np.testing.assert_array_equal(crop(storage, sample, start, stop), volume[window])


def test_a_url_holds_what_the_folder_holds(folder: Path, web: WebServer) -> None:
    remote, local = open_remote(web.url, cache=None), MappedFolder(folder)
    assert str(remote) == web.url
    assert read_dataset(remote) == read_dataset(local)
    assert [one.members for one in samples_of(remote)] == [one.members for one in samples_of(local)]


@pytest.mark.parametrize("cached", [False, True])
def test_the_reader_takes_a_url(web: WebServer, cached: bool, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path, size_gb=1) if cached else None
    reader = ShardReader(web.url, cache=cache)
    assert str(reader) == web.url
    for index, volume in enumerate(VOLUMES):
        np.testing.assert_array_equal(reader.read_volume(index), volume)


def test_a_crop_moves_few_bytes(web: WebServer) -> None:
    storage = open_remote(web.url, cache=None)
    sample = samples_of(storage)[0]
    member, expected = sample.members[VOLUME], sample.checksums[VOLUME]
    web.sent_bytes.clear()
    crop(storage, sample, (5, 70, 3), (60, 120, 60))  # lies in one chunk of 3 x 4 x 3
    needed = needed_ranges(expected, size=member.size, start=(5, 70, 3), stop=(60, 120, 60))
    sent = web.sent_bytes[sample.shard]
    assert sum(last - first for first, last in needed) <= sent < member.size / 8
    assert not web.whole[sample.shard]


def test_near_ranges_are_one_request() -> None:
    ranges = [(500, 600), (0, 100), (90, 120), (150, 160), (700, 800), (900, 901)]
    found = coalesce(ranges, gap=60)
    assert found == [(0, 160), (500, 600), (700, 800), (900, 901)]
    assert coalesce(ranges, gap=10**6) == [(0, 901)]
    assert coalesce([], gap=GAP_BYTES) == []


def test_a_damaged_byte_is_found_by_the_reader(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    sample = samples_of(MappedFolder(folder))[0]
    place = sample.members[VOLUME].offset + sample.checksums[VOLUME].start + 1000
    with (tmp_path / "copy" / sample.shard).open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    with web_server(tmp_path / "copy") as server:
        storage = open_remote(server.url, cache=None)
        with pytest.raises(ValueError, match="chunk 0"):
            crop(storage, sample, (0, 0, 0), (3, 4, 5))
        cached = open_remote(server.url, cache=CacheConfig(folder=tmp_path / "cache", size_gb=1))
        with pytest.raises(
            DamagedShard, match=rf"{server.url}/{sample.shard}: what was downloaded"
        ):
            crop(cached, sample, (0, 0, 0), (3, 4, 5))
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_tar_that_is_cut_or_gone(cached: bool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    sample = samples_of(MappedFolder(folder))[0]
    tar = tmp_path / "copy" / sample.shard
    cache = CacheConfig(folder=tmp_path / "cache", size_gb=1) if cached else None
    with web_server(tmp_path / "copy") as server:
        storage = open_remote(server.url, cache=cache)
        tar.write_bytes(tar.read_bytes()[:5_000_000])
        with pytest.raises(DamagedShard, match=sample.shard):
            crop(storage, sample, (0, 0, 0), (3, 4, 5))
        tar.unlink()
        with pytest.raises(DamagedShard, match=rf"{sample.shard}: missing"):
            crop(storage, sample, (0, 0, 0), (3, 4, 5))


def test_a_member_that_the_tar_does_not_reach(web: WebServer, bucket: str, tmp_path: Path) -> None:
    beyond = Member(offset=10**9, size=100, sha256="")
    for where in (web.url, bucket):
        for cache in (None, CacheConfig(folder=tmp_path, size_gb=1)):
            storage = open_remote(where, cache=cache)
            with pytest.raises(DamagedShard, match="ends"):
                storage.frame("shard-000000.tar", beyond, [(0, 100)])


def test_a_server_without_ranges(folder: Path, tmp_path: Path) -> None:
    with web_server(folder, ranges=False) as server:
        with pytest.raises(PlaceError, match=r"sends whole files only.* set cache\.folder"):
            open_remote(server.url, cache=None)
        storage = open_remote(server.url, cache=CacheConfig(folder=tmp_path, size_gb=1))
        sample = samples_of(storage)[1]
        found = crop(storage, sample, (1, 2, 3), (30, 70, 64))
        np.testing.assert_array_equal(found, VOLUMES[1][1:30, 2:70, 3:64])


def test_no_shards_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with web_server(tmp_path / "empty") as server:
        for cache in (None, CacheConfig(folder=tmp_path / "cache", size_gb=1)):
            with pytest.raises(PlaceError, match=r"no shards here \(dataset\.json is missing\)"):
                open_remote(server.url, cache=cache)


@pytest.mark.parametrize("name", ["../up.tar", "/etc/x.tar", "a.tar/b", 3])
def test_a_cache_takes_no_name_for_a_path(tmp_path: Path, name: object) -> None:
    (tmp_path / "odd").mkdir()
    entry = {"file": name, "xxh3_128": "0" * 32, "size_bytes": 5}
    for content in (json.dumps({"shards": [entry]}), "{"):
        (tmp_path / "odd/dataset.json").write_text(content)
        with (
            web_server(tmp_path / "odd") as server,
            pytest.raises(DamagedShard, match=r"dataset\.json: damaged"),
        ):
            open_remote(server.url, cache=CacheConfig(folder=tmp_path / "cache", size_gb=1))


def test_a_lost_server_ends_in_one_line(folder: Path) -> None:
    with web_server(folder) as server:
        storage = open_remote(server.url, cache=None)
        sample = samples_of(storage)[0]
        server.fail = lambda _: 503
        with pytest.raises(PlaceError, match=r"shard-000000\.tar: cannot be reached .*gave up"):
            crop(storage, sample, (0, 0, 0), (3, 4, 5))


class _Crops(Dataset[np.ndarray]):
    def __init__(self, storage: Storage, samples: list[Sample]) -> None:
        self.storage, self.samples = storage, samples

    def __len__(self) -> int:
        return 12

    def __getitem__(self, step: int) -> np.ndarray:
        return crop(self.storage, self.samples[step % 3], (step, 2, 3), (step + 9, 20, 17))


@pytest.mark.parametrize("kind", ["web", "s3", "cached"])
def test_workers_of_a_loader_read_what_one_process_reads(
    kind: str, web: WebServer, bucket: str, tmp_path: Path
) -> None:
    cache = CacheConfig(folder=tmp_path, size_gb=1) if kind == "cached" else None
    storage = open_remote(bucket if kind == "s3" else web.url, cache=cache)
    crops = _Crops(storage, samples_of(storage))
    expected = [crops[step] for step in range(len(crops))]  # connections and mappings are open now
    loader = DataLoader(
        crops,
        batch_size=None,
        num_workers=2,
        collate_fn=_unchanged,
        multiprocessing_context="fork",
        timeout=60,
    )
    for found, wanted in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert str(pickle.loads(pickle.dumps(storage))) == str(storage)


def _unchanged(found: np.ndarray) -> np.ndarray:
    return found
