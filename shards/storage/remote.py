"""Shards behind a URL: a crop's bytes by range, or whole tars through a cache of this machine."""

import json
import mmap
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from shards.index import DATASET, DamagedShard, Member
from shards.storage.cache import CachedShard, Shard, ShardCache
from shards.storage.errors import MissingFile, PlaceError
from shards.storage.places import Place
from shards.storage.storage import CacheConfig, Storage

GAP_BYTES = 64 << 10
"""Ranges closer than this are read as one: a request costs more than the bytes between."""
MAX_MAPS = 64
_TAR = re.compile(r"[A-Za-z0-9_-]+\.tar")
_XXH3_128 = re.compile(r"[0-9a-f]{32}")

Range = tuple[int, int]


def open_remote(where: str, *, cache: CacheConfig | None) -> Storage:
    """The shards behind a URL.

    Args:
        where: Their folder, such as ``s3://bucket/shards/ct``.
        cache: Keeps whole tars on this machine. Without one, every crop is read from the server
            by range.

    Raises:
        PlaceError: There are none, they cannot be read, or (without a cache) not by range.
        CacheError: A tar is larger than the cache, or its folder cannot be written.
    """
    place = Place(where)
    if cache is None:
        return RangedShards(place)
    return CachedShards(place, cache)


class RangedShards:
    """Reads from the server what a crop needs, and keeps nothing."""

    def __init__(self, place: Place) -> None:
        """Ask the server for one byte.

        Raises:
            PlaceError: There is no ``dataset.json``, or the server does not answer with ranges.
        """
        self._place = place
        try:
            (answer,) = place.read_ranges(DATASET, [(0, 1)])
        except MissingFile:
            raise _no_shards(place) from None
        if len(answer) > 1:
            raise PlaceError(
                f"{place}: the server sends whole files only, not ranges; set cache.folder and"
                " cache.size_gb to keep whole shards here"
            )

    def __str__(self) -> str:
        return str(self._place)

    def read_file(self, name: str) -> bytes:
        """As :class:`shards.storage.storage.Storage`."""
        return self._place.read_bytes(name)

    def frame(self, shard: str, member: Member, ranges: Sequence[Range]) -> memoryview:
        """As :class:`Storage`; pages that nothing was read into take no memory."""
        frame = mmap.mmap(-1, member.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        wanted = coalesce(ranges, gap=GAP_BYTES)
        for (first, last), content in zip(wanted, self._read(shard, member, wanted), strict=True):
            frame[first:last] = content
        return memoryview(frame).toreadonly()

    def _read(self, shard: str, member: Member, wanted: Sequence[Range]) -> list[bytes]:
        inside = [(member.offset + first, member.offset + last) for first, last in wanted]
        try:
            found = self._place.read_ranges(shard, inside)
        except MissingFile:
            raise DamagedShard(f"{self._place}/{shard}: missing") from None
        for (first, last), content in zip(inside, found, strict=True):
            if len(content) > last - first:
                raise PlaceError(f"{self._place}/{shard}: the server ignores ranges; set cache")
            if len(content) < last - first:
                raise DamagedShard(
                    f"{self._place}/{shard}: ends at byte {first + len(content)}, before byte"
                    f" {last} of a member"
                )
        return found


class CachedShards:
    """Reads tars that a :class:`ShardCache` keeps; indexes come from the server."""

    def __init__(self, place: Place, config: CacheConfig) -> None:
        """Read ``dataset.json``, which names the checksum of every tar.

        Raises:
            PlaceError: There is none, or it cannot be read.
            CacheError: A tar is larger than the cache, or its folder cannot be written.
            DamagedShard: ``dataset.json`` is not what was written.
        """
        self._place = place
        self._shards = _listed(place)
        self._cache = ShardCache(config)
        self._cache.check(self._shards.values())
        self._open: OrderedDict[str, CachedShard] = OrderedDict()

    def __str__(self) -> str:
        return str(self._place)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a mapping belongs to its process

    def read_file(self, name: str) -> bytes:
        """As :class:`shards.storage.storage.Storage`."""
        return self._place.read_bytes(name)

    def frame(self, shard: str, member: Member, ranges: Sequence[Range]) -> memoryview:
        """As :class:`shards.storage.storage.Storage`; the tar is downloaded at its first use."""
        del ranges
        found = self._cached(shard).content[member.offset : member.offset + member.size]
        if len(found) != member.size:
            raise DamagedShard(
                f"{self._place}/{shard}: ends before byte {member.offset} + {member.size},"
                " where a member should end"
            )
        return found

    def _cached(self, name: str) -> CachedShard:
        if name not in self._shards:
            raise DamagedShard(f"{self._place}/{name}: {DATASET} does not name it")
        self._let_go()
        if name not in self._open:
            try:
                self._open[name] = self._cache.open(
                    self._shards[name], pieces=lambda: self._place.stream(name)
                )
            except MissingFile:
                raise DamagedShard(f"{self._place}/{name}: missing") from None
            except DamagedShard as error:
                raise DamagedShard(f"{self._place}/{error}") from None
        self._open.move_to_end(name)
        found = self._open[name]
        found.touch()
        if len(self._open) > MAX_MAPS:
            self._open.popitem(last=False)
        return found

    def _let_go(self) -> None:
        """Unmap what has made room for others: until then it still fills the disk."""
        for name in [name for name, found in self._open.items() if found.is_evicted]:
            del self._open[name]


def coalesce(ranges: Sequence[Range], *, gap: int) -> list[Range]:
    """Sorted [first, last) ranges that cover ``ranges``, with at least ``gap`` bytes between."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first - merged[-1][1] < gap:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _listed(place: Place) -> dict[str, Shard]:
    try:
        shards = json.loads(place.read_bytes(DATASET))["shards"]
        found = [_shard(each["file"], each["xxh3_128"], each["size_bytes"]) for each in shards]
    except MissingFile:
        raise _no_shards(place) from None
    except PlaceError:
        raise
    except (ValueError, KeyError, TypeError):
        raise DamagedShard(
            f"{place}/{DATASET}: damaged, not the JSON that was written; build again"
        ) from None
    return {shard.name: shard for shard in found}


def _shard(name: str, xxh3_128: str, size_bytes: int) -> Shard:
    """Both words become the name of a file of this machine, so they are taken by their form."""
    if not (_TAR.fullmatch(name) and _XXH3_128.fullmatch(xxh3_128) and size_bytes > 0):
        raise ValueError(name)
    return Shard(name, xxh3_128, size_bytes)


def _no_shards(place: Place) -> PlaceError:
    return PlaceError(f"{place}: no shards here ({DATASET} is missing); check the URL")
