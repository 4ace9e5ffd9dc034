"""Whole shards of a server, kept in a folder of this machine up to a size; for many processes.

Every process of a node may use one folder: a shard is downloaded by one of them while the others
wait, its XXH3-128 is compared before anyone sees it, and what was not used for longest makes room.
"""

import errno
import fcntl
import math
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from shards.index import DamagedShard
from shards.storage.errors import PlaceError, retried
from shards.storage.storage import CacheConfig

GB = 1_000_000_000
WAIT_S = 0.1
TOUCH_S = 1.0
_DRAFT = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CacheError(PlaceError):
    """A cache that cannot hold what is asked of it; the message is meant for a person."""


class Shard(NamedTuple):
    """A tar as ``dataset.json`` describes it."""

    name: str
    xxh3_128: str
    size_bytes: int


@dataclass
class CachedShard:
    """A tar of the cache, mapped. It stays readable after it has made room for others."""

    path: Path
    content: memoryview
    inode: int
    touched: float = -math.inf

    def touch(self) -> None:
        """Say that it is in use, so that others make room first."""
        if time.monotonic() - self.touched > TOUCH_S:
            # Of another user's file the time cannot be set.
            with suppress(FileNotFoundError, PermissionError):
                os.utime(self.path)
            self.touched = time.monotonic()

    @property
    def is_evicted(self) -> bool:
        """Whether only this mapping still holds its bytes on the disk."""
        try:
            return self.path.stat().st_ino != self.inode
        except FileNotFoundError:
            return True


class ShardCache:
    """The folder of a :class:`CacheConfig`; holds nothing open itself."""

    def __init__(self, config: CacheConfig) -> None:
        """Make the folder.

        Raises:
            CacheError: It cannot be made or written.
        """
        self._folder = config.folder
        self._limit = int(config.size_gb * GB)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                pass
        except OSError as error:
            raise CacheError(
                f"{self._folder}: cannot keep shards ({error.strerror}); set cache.folder"
            ) from None

    def check(self, shards: Iterable[Shard]) -> None:
        """Every shard must fit.

        Raises:
            CacheError: One is larger than the cache.
        """
        largest = max(shards, key=lambda shard: shard.size_bytes, default=None)
        if largest is not None and largest.size_bytes > self._limit:
            raise CacheError(
                f"cache.size_gb is {self._limit / GB:g}, {largest.name} alone has"
                f" {largest.size_bytes / GB:.3g}; raise it, or read without a cache"
            )

    def open(self, shard: Shard, *, pieces: Callable[[], Iterator[bytes]]) -> CachedShard:
        """A whole and verified tar; downloaded where no process of this machine has yet.

        Args:
            shard: Which one; its XXH3-128 is also its name here.
            pieces: Starts a download, and gives the tar's bytes in order.

        Raises:
            DamagedShard: What was downloaded is not what was built; it is not kept.
            CacheError: The disk is full, or the cache too small.
        """
        path = self._folder / f"{shard.xxh3_128}-{shard.name}"
        while True:
            with suppress(FileNotFoundError):
                return self._mapped(path, shard)
            with _draft(path) as draft:
                if draft is not None:  # else another process finished it while this one waited
                    self._download(draft, shard, pieces)
                    with self._exclusive():  # who counts sees one of its two names
                        draft.replace(path)

    def _mapped(self, path: Path, shard: Shard) -> CachedShard:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_size != shard.size_bytes:
                path.unlink(missing_ok=True)  # a crash of the machine can cut a file
                raise FileNotFoundError(path)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = CachedShard(path, memoryview(content), state.st_ino)
        found.touch()
        return found

    def _download(self, draft: Path, shard: Shard, pieces: Callable[[], Iterator[bytes]]) -> None:
        def attempt() -> str:
            return _write(draft, pieces(), at_most=shard.size_bytes)

        self._reserve(draft, shard)
        try:
            found = retried(attempt)
        except _DiskFull:
            with self._exclusive():
                self._make_room(shard.size_bytes, free=True)
            try:
                found = retried(attempt)
            except _DiskFull:
                raise CacheError(
                    f"{self._folder}: the disk is full; free space or lower cache.size_gb"
                ) from None
        if found != shard.xxh3_128:
            raise DamagedShard(
                f"{shard.name}: what was downloaded is not what was built (its XXH3-128 differs);"
                " verify and upload it again"
            )

    def _reserve(self, draft: Path, shard: Shard) -> None:
        """Give the draft its size, which counts from now on; wait while others' drafts fill all."""
        self.check([shard])
        while True:
            with self._exclusive():
                if self._make_room(shard.size_bytes):
                    os.truncate(draft, shard.size_bytes)
                    return
            time.sleep(WAIT_S)  # who holds space never waits, so it comes free

    def _make_room(self, size: int, *, free: bool = False) -> bool:
        """Whether ``size`` more bytes fit, once what was used longest ago is gone.

        With ``free`` that many bytes are removed, whatever the limit says.
        """
        files = sorted(self._files(), key=lambda file: file.used)
        excess = size if free else sum(file.size for file in files) + size - self._limit
        for file in files:
            if excess <= 0:
                break
            if not file.path.name.endswith(_DRAFT) or _is_abandoned(file.path):
                file.path.unlink(missing_ok=True)
                excess -= file.size
        return excess <= 0

    def _files(self) -> Iterator["_Kept"]:
        for path in self._folder.iterdir():
            if path.name.endswith((".tar", _DRAFT)):
                with suppress(FileNotFoundError):
                    state = path.stat()
                    yield _Kept(path, state.st_size, state.st_mtime_ns)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time counts and removes."""
        with (self._folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Kept(NamedTuple):
    path: Path
    size: int
    used: int


class _DiskFull(Exception):
    """No space left while a draft was written."""


@contextmanager
def _draft(path: Path) -> Iterator[Path | None]:
    """The file to download into, locked; None where ``path`` came to be while waiting.

    The lock dies with its process, so a draft without one was left by a process that was killed.
    """
    draft = path.with_name(f".{path.name}{_DRAFT}")
    with _locked(draft):
        if path.exists():
            draft.unlink(missing_ok=True)
            yield None
            return
        os.truncate(draft, 0)
        try:
            yield draft
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


@contextmanager
def _locked(draft: Path) -> Iterator[None]:
    while True:
        with draft.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held the lock may have removed or renamed the file since it was opened here.
            if _is_same(file, draft):
                yield
                return


def _is_same(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_abandoned(draft: Path) -> bool:
    try:
        with draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _write(draft: Path, pieces: Iterator[bytes], *, at_most: int) -> str:
    """Fill the draft from its first byte and sync it; the XXH3-128 of what came."""
    import xxhash

    found, length = xxhash.xxh3_128(), 0
    try:
        with draft.open("r+b") as file:
            for piece in pieces:
                found.update(piece)
                length += len(piece)
                if length > at_most:
                    break  # its checksum differs already, and the space was not promised
                file.write(piece)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _FULL:
            raise _DiskFull from None
        raise
    return found.hexdigest()
