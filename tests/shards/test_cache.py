"""The cache of whole shards: one download for all processes, a limit that holds, no bad byte."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash

from shards.index import DamagedShard, Member, read_dataset
from shards.storage import errors as place_errors
from shards.storage.cache import GB, CacheError, Shard, ShardCache
from shards.storage.errors import Interrupted
from shards.storage.remote import open_remote
from shards.storage.storage import CacheConfig
from tests.shards.servers import WebServer, web_server
from tests.shards.toy_shards import noise, write_shards

SIZE = 100_000
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(place_errors, "RETRY_WAITS_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tars of one sample each."""
    folder = tmp_path_factory.mktemp("toy") / "shards"
    write_shards(folder, [noise(n, (30, 50, 40)) for n in range(6)], shard_size_mb=0.001)
    return folder


@pytest.fixture
def web(folder: Path) -> Iterator[WebServer]:
    with web_server(folder) as server:
        yield server


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def shard(number: int) -> Shard:
    return Shard(f"shard-{number:06d}.tar", xxhash.xxh3_128(content(number)).hexdigest(), SIZE)


def pieces(number: int) -> Callable[[], Iterator[bytes]]:
    def download() -> Iterator[bytes]:
        for first in range(0, SIZE, 30_000):
            yield content(number)[first : first + 30_000]

    return download


def no_download() -> Iterator[bytes]:
    raise AssertionError("it is in the cache already")
    yield b""


def cache_of(folder: Path, *, shards: float) -> ShardCache:
    """A cache that holds so many shards."""
    return ShardCache(CacheConfig(folder=folder, size_gb=shards * SIZE / GB))


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name[-10:-4]) for path in folder.glob("*.tar"))


def stored_bytes(folder: Path) -> int:
    """Counted while no process may make or take room: a sum over a moment means nothing else."""
    total = 0
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # drafts that hold nothing come and go
                total += path.stat().st_size
    return total


def test_it_is_downloaded_once(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "new/folder", shards=3)
    first = cache.open(shard(0), pieces=pieces(0))
    assert bytes(first.content) == content(0)
    again = cache_of(tmp_path / "new/folder", shards=3).open(shard(0), pieces=no_download)
    assert bytes(again.content) == content(0)
    assert again.content.readonly


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, shards=3.5)
    opened = [cache.open(shard(number), pieces=pieces(number)) for number in range(3)]
    for age, each in enumerate(opened):
        os.utime(each.path, (1000 + age, 1000 + age))
    opened[0].touched = -np.inf
    opened[0].touch()
    cache.open(shard(3), pieces=pieces(3))
    assert kept(tmp_path) == [0, 2, 3]
    assert [each.is_evicted for each in opened] == [False, True, False]
    assert bytes(opened[1].content) == content(1)  # a mapping outlives its name
    assert bytes(cache.open(shard(1), pieces=pieces(1)).content) == content(1)
    assert kept(tmp_path) == [0, 1, 3]
    assert opened[1].is_evicted  # it is another file


def test_a_shard_that_never_fits(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, shards=0.9)
    with pytest.raises(CacheError, match=r"^cache\.size_gb is 9e-05, shard-000007\.tar alone has"):
        cache.check([shard(7)])
    with pytest.raises(CacheError, match="raise it, or read without a cache"):
        cache.open(shard(7), pieces=no_download)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match=r"file/cache: cannot keep shards .* set cache\.folder"):
        cache_of(tmp_path / "file/cache", shards=1)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"y" + b[1:]])
def test_damage_is_never_kept(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    cache = cache_of(tmp_path, shards=3)
    with pytest.raises(DamagedShard, match=r"shard-000000\.tar: what was downloaded is not what"):
        cache.open(shard(0), pieces=lambda: iter([change(content(0))]))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert bytes(cache.open(shard(0), pieces=pieces(0)).content) == content(0)


def test_a_file_that_a_crash_cut_is_downloaded_again(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, shards=3)
    path = cache.open(shard(0), pieces=pieces(0)).path
    os.truncate(path, SIZE // 2)
    assert bytes(cache.open(shard(0), pieces=pieces(0)).content) == content(0)


def test_a_lost_connection_starts_again(tmp_path: Path) -> None:
    tries: list[int] = []

    def flaky() -> Iterator[bytes]:
        tries.append(1)
        yield b"wrong start that is longer than the first piece" * 1000
        if len(tries) < 3:
            raise Interrupted("lost")

    def download() -> Iterator[bytes]:
        return pieces(0)() if len(tries) == 2 else flaky()

    cache = cache_of(tmp_path, shards=3)
    assert bytes(cache.open(shard(0), pieces=download).content) == content(0)
    assert len(tries) == 2


def test_a_full_disk_makes_room_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(tmp_path, shards=5)
    for number in range(2):
        os.utime(cache.open(shard(number), pieces=pieces(number)).path, (number, number))
    real, fails = os.fsync, [1]

    def full(number: int) -> None:
        if fails:
            fails.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    assert bytes(cache.open(shard(2), pieces=pieces(2)).content) == content(2)
    assert kept(tmp_path) == [1, 2]
    fails += [1, 1]
    with pytest.raises(CacheError, match="the disk is full; free space or lower"):
        cache.open(shard(3), pieces=pieces(3))
    assert kept(tmp_path) == [2]
    assert not list(tmp_path.glob(".*.part"))


def test_nobody_waits_for_what_a_killed_process_began(tmp_path: Path) -> None:
    begun = SPAWN.Event()
    child = SPAWN.Process(target=_begin_and_hang, args=(tmp_path, begun))
    child.start()
    assert begun.wait(60)
    cache = cache_of(tmp_path, shards=1.5)
    waiting = threading.Thread(target=cache.open, args=(shard(0),), kwargs={"pieces": pieces(0)})
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()  # the other process has the lock
    assert kept(tmp_path) == []
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    waiting.join(60)
    child.join(60)
    assert kept(tmp_path) == [0]
    assert bytes(cache.open(shard(0), pieces=no_download).content) == content(0)


def test_the_draft_of_a_killed_process_makes_room(tmp_path: Path) -> None:
    begun = SPAWN.Event()
    child = SPAWN.Process(target=_begin_and_hang, args=(tmp_path, begun))
    child.start()
    assert begun.wait(60)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    (left,) = tmp_path.glob(".*.part")
    assert left.stat().st_size == SIZE
    cache_of(tmp_path, shards=1.5).open(shard(1), pieces=pieces(1))
    assert kept(tmp_path) == [1]
    assert not left.exists()


def _begin_and_hang(folder: Path, begun: threading.Event) -> None:
    def download() -> Iterator[bytes]:
        yield content(0)[:1000]
        begun.set()
        time.sleep(600)

    cache_of(folder, shards=1.5).open(shard(0), pieces=download)


@pytest.mark.parametrize("shards", [10.0, 2.5])
def test_many_processes_share_one_cache(
    shards: float, web: WebServer, folder: Path, tmp_path: Path
) -> None:
    """With room for all, each tar is downloaded once; with less, the limit holds all the time."""
    dataset = read_dataset(folder)
    largest = max(each["size_bytes"] for each in dataset["shards"])
    limit = shards * largest
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], stored_bytes(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ProcessPoolExecutor(4, mp_context=SPAWN) as pool:
            jobs = [
                pool.submit(_read_all, web.url, tmp_path, limit / GB, seed) for seed in range(4)
            ]
            found = [job.result(timeout=60) for job in jobs]
    finally:
        done.set()
        watcher.join()
    expected = {each["file"]: each["xxh3_128"] for each in dataset["shards"]}
    assert found == [expected] * 4
    assert largest <= most[0] <= limit
    assert stored_bytes(tmp_path) <= limit
    assert not list(tmp_path.glob(".*.part"))
    if shards > len(expected):
        assert {name: web.whole[name] for name in expected} == dict.fromkeys(expected, 1)


def _read_all(url: str, folder: Path, size_gb: float, seed: int) -> dict[str, str]:
    """Checksum of every tar, read through the cache in an order of the seed."""
    storage = open_remote(url, cache=CacheConfig(folder=folder, size_gb=size_gb))
    shards = read_dataset(storage)["shards"]
    found = {}
    for number in np.random.default_rng(seed).permutation(len(shards)):
        entry = shards[number]
        whole = Member(offset=0, size=entry["size_bytes"], sha256="")
        frame = storage.frame(entry["file"], whole, [(0, whole.size)])
        found[entry["file"]] = xxhash.xxh3_128(frame).hexdigest()
    return dict(sorted(found.items()))


def test_a_reader_lets_go_of_what_made_room(web: WebServer, folder: Path, tmp_path: Path) -> None:
    shards = read_dataset(folder)["shards"]
    size_gb = 1.5 * max(each["size_bytes"] for each in shards) / GB
    storage = open_remote(web.url, cache=CacheConfig(folder=tmp_path, size_gb=size_gb))
    member = Member(offset=0, size=shards[0]["size_bytes"], sha256="")
    frame = storage.frame(shards[0]["file"], member, [])
    storage.frame(shards[1]["file"], member, [])
    storage.frame(shards[1]["file"], member, [])
    assert list(storage._open) == [shards[1]["file"]]  # type: ignore[attr-defined]
    assert xxhash.xxh3_128(frame).hexdigest() == shards[0]["xxh3_128"]  # a crop in use stays whole
