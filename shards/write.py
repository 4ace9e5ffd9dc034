"""Write samples into tars of limited size, each with its index; the same samples, the same bytes.

Any ``webdataset.WebDataset`` reads the tars.
"""

import os
import re
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.codec import Checksums
from shards.files import sha256_of, write_json
from shards.index import SCHEMA_VERSION, index_path

KEY = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class PackedSample:
    """A sample as it goes into a tar.

    Attributes:
        key: Its name there.
        record: Becomes ``scan.json``.
        members: File content by name, in the order of writing.
        sha256: Of each member.
        checksums: Of each member that is a volume.
    """

    key: str
    record: Mapping[str, Any]
    members: Mapping[str, bytes | memoryview]
    sha256: Mapping[str, str]
    checksums: Mapping[str, Checksums]


class ShardWriter:
    """Fills ``shard-000000.tar``, ``shard-000001.tar``, ... of a folder, in the order of `add`."""

    def __init__(
        self,
        folder: Path,
        *,
        shard_size_mb: float,
        first: int = 0,
        finished: Callable[[Path, dict[str, Any]], None] | None = None,
    ) -> None:
        """A tar is closed by the first sample with which it reaches ``shard_size_mb``.

        Args:
            folder: Where tars and indexes go.
            shard_size_mb: In millions of bytes.
            first: Number of the first tar.
            finished: Told the path and the entry of ``dataset.json`` of each tar that is whole and
                on the disk.
        """
        self._folder = folder
        self._limit = shard_size_mb * 1e6
        self._number = first
        self._finished = finished
        self._tar: _Tar | None = None
        self._samples: list[dict[str, Any]] = []

    def add(self, sample: PackedSample) -> None:
        """Append one sample."""
        assert KEY.fullmatch(sample.key), "a dot in a key would cut it"
        if self._tar is None:
            self._path = self._folder / f"shard-{self._number:06d}.tar"
            self._tar, self._samples = _Tar(self._path), []
        members = {}
        for name, content in sample.members.items():
            offset = self._tar.add(f"{sample.key}.{name}", content)
            size, digest = len(content), sample.sha256[name]
            members[name] = {"offset": offset, "size": size, "sha256": digest}
        self._samples.append(
            {
                "key": sample.key,
                "members": members,
                "checksums": {name: sums.as_json() for name, sums in sample.checksums.items()},
                "scan": dict(sample.record),
            }
        )
        if self._tar.size >= self._limit:
            self._finish()

    def skip(self, number: int) -> None:
        """Leave so many tars as they are: an earlier writer finished them."""
        assert self._tar is None
        self._number += number

    def close(self) -> None:
        """Finish the last tar."""
        if self._tar is not None:
            self._finish()

    def discard(self) -> None:
        """Let go of a tar that will not be finished, as on a full disk."""
        if self._tar is not None:
            self._tar.discard()
            self._tar = None

    def _finish(self) -> None:
        assert self._tar is not None
        self._tar.close()
        content = {
            "schema_version": SCHEMA_VERSION,
            "shard": self._path.name,
            "size_bytes": self._tar.size,
            "xxh3_128": self._tar.xxh3_128.hexdigest(),
            "samples": self._samples,
        }
        self._tar = None
        index = index_path(self._path)
        write_json(index, content)
        self._number += 1
        if self._finished is not None:
            entry = {
                "file": self._path.name,
                "xxh3_128": content["xxh3_128"],
                "size_bytes": content["size_bytes"],
                "num_samples": len(self._samples),
                "index_sha256": sha256_of(index),
            }
            self._finished(self._path, entry)


class _Tar:
    """A tar that knows the XXH3-128 of its bytes, so that a large one is not read again.

    It finds damage in transfers and between the members, ten times as fast as SHA-256 does; who
    must withstand forgery compares the members' SHA-256, which the workers compute.

    The bytes are those of ``webdataset.TarWriter``, which copies each member in small pieces.
    Nothing of the moment, the machine or the user is among them.
    """

    def __init__(self, path: Path) -> None:
        import xxhash

        self._file = path.open("wb", buffering=0)
        self.size = 0
        self.xxh3_128 = xxhash.xxh3_128()

    def add(self, name: str, content: bytes | memoryview) -> int:
        """Append a file; returns the place of its first byte."""
        about = tarfile.TarInfo(name)
        about.size, about.mode = len(content), 0o644
        self._write(about.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(content)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> None:
        """Mark the end; the file is on the disk then."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Let go of it, unfinished."""
        with suppress(OSError):
            self._file.close()

    def _write(self, content: bytes | memoryview) -> None:
        self.xxh3_128.update(content)
        self.size += len(content)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]
