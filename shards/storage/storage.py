"""Where the bytes of a folder of shards come from: files of this machine, mapped, or a server's."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from recipes.load import Section
from shards.index import DamagedShard, Member

MAX_MAPS = 256
"""Tars mapped at a time: each holds a file descriptor, of which a process often has 1024."""


class CacheConfig(Section):
    """Where shards that come from a URL are kept on this machine; its processes share it."""

    folder: Path
    size_gb: float = Field(gt=0, description="in billions of bytes; the oldest go first")


class Storage(Protocol):
    """What a reader needs of the place where shards lie.

    It can be pickled, and used after a fork: whatever is open belongs to one process and is opened
    again in another. ``str(storage)`` names the place for a person.
    """

    def read_file(self, name: str) -> bytes:
        """A small file, whole: ``dataset.json``, an index.

        Raises:
            FileNotFoundError: There is none of that name.
            OSError: It cannot be read.
        """

    def frame(self, shard: str, member: Member, ranges: Sequence[tuple[int, int]]) -> memoryview:
        """A member of a tar, in full length; only the bytes that were asked for are valid.

        Args:
            shard: Name of the tar.
            member: Where it lies in there.
            ranges: [first, last) bytes within the member, as ``shards.codec.needed_ranges`` gives.

        Returns:
            ``member.size`` bytes, read only; what lies outside ``ranges`` is anything.

        Raises:
            DamagedShard: The tar is missing or ends too early.
            OSError: It cannot be read.
        """


class MappedFolder:
    """A folder of this machine; its tars are mapped at their first use."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is opened yet."""
        self._folder = Path(folder)
        self._maps: OrderedDict[str, memoryview] = OrderedDict()

    def __str__(self) -> str:
        return str(self._folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}  # a mapping belongs to its process

    def read_file(self, name: str) -> bytes:
        """As :class:`Storage`."""
        return (self._folder / name).read_bytes()

    def frame(self, shard: str, member: Member, ranges: Sequence[tuple[int, int]]) -> memoryview:
        """As :class:`Storage`; the operating system reads the pages that are looked at."""
        del ranges
        found = self._mapped(shard)[member.offset : member.offset + member.size]
        if len(found) != member.size:
            raise DamagedShard(
                f"{self._folder / shard}: ends before byte {member.offset}"
                f" + {member.size}, where a member should end"
            )
        return found

    def _mapped(self, shard: str) -> memoryview:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        try:
            with (self._folder / shard).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DamagedShard(f"{self._folder / shard}: missing") from None
        except ValueError:  # an empty file cannot be mapped
            raise DamagedShard(f"{self._folder / shard}: empty") from None
        self._maps[shard] = memoryview(mapped)
        if len(self._maps) > MAX_MAPS:
            self._maps.popitem(last=False)  # unmapped when the last crop of it is let go
        return self._maps[shard]


def open_storage(where: str | Path, *, cache: CacheConfig | None = None) -> Storage:
    """The storage of a local folder, or of a URL (``s3://``, ``https://``, ...).

    Args:
        where: Folder of shards.
        cache: For a URL; None keeps nothing.
    """
    if "://" not in os.fspath(where):
        return MappedFolder(where)
    from shards.storage.remote import open_remote

    remote: Storage = open_remote(str(where), cache=cache)
    return remote
