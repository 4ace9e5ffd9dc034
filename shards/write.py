"""Write samples into tars of limited size, each with its index; the same samples, the same bytes.

Any ``webdataset.WebDataset`` reads the tars.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.codec import Checksums
from shards.files import sha256_of, write_json
from shards.index import SCHEMA_VERSION, index_path

KEY = re.compile(r"[a-z0-9_-]+")
TAR_BLOCK_BYTES = 512


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
    members: Mapping[str, bytes]
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
        self._file: _HashingFile | None = None
        self._tar: Any = None
        self._samples: list[dict[str, Any]] = []

    def add(self, sample: PackedSample) -> None:
        """Append one sample."""
        assert KEY.fullmatch(sample.key), "a dot in a key would cut it"
        if self._file is None:
            self._open()
        assert self._file is not None
        members = {}
        for name, content in sample.members.items():
            # The stream is buffered, so the file's own end lags behind.
            header = self._tar.tarstream.offset
            self._tar.write({"__key__": sample.key, name: content})
            members[name] = {
                "offset": header + TAR_BLOCK_BYTES,
                "size": len(content),
                "sha256": sample.sha256[name],
            }
        self._samples.append(
            {
                "key": sample.key,
                "members": members,
                "checksums": {name: sums.as_json() for name, sums in sample.checksums.items()},
                "scan": dict(sample.record),
            }
        )
        if self._tar.tarstream.offset >= self._limit:
            self._finish()

    def skip(self, number: int) -> None:
        """Leave so many tars as they are: an earlier writer finished them."""
        assert self._file is None
        self._number += number

    def close(self) -> None:
        """Finish the last tar."""
        if self._file is not None:
            self._finish()

    def discard(self) -> None:
        """Let go of a tar that will not be finished, as on a full disk."""
        if self._file is not None:
            for each in (self._tar, self._file):
                with suppress(OSError):
                    each.close()
            self._file = None

    def _open(self) -> None:
        import webdataset

        self._path = self._folder / f"shard-{self._number:06d}.tar"
        self._file = _HashingFile(self._path.open("wb"))
        self._samples = []
        # Nothing of the moment, the machine or the user may reach the bytes.
        self._tar = webdataset.TarWriter(
            self._file, user="", group="", mode=0o644, mtime=0, encoder=False
        )

    def _finish(self) -> None:
        assert self._file is not None
        self._tar.close()
        self._file.sync()
        content = {
            "schema_version": SCHEMA_VERSION,
            "shard": self._path.name,
            "size_bytes": self._file.tell(),
            "sha256": self._file.sha256.hexdigest(),
            "samples": self._samples,
        }
        self._file.close()
        self._file = None
        index = index_path(self._path)
        write_json(index, content)
        self._number += 1
        if self._finished is not None:
            entry = {
                "file": self._path.name,
                "sha256": content["sha256"],
                "size_bytes": content["size_bytes"],
                "num_samples": len(self._samples),
                "index_sha256": sha256_of(index),
            }
            self._finished(self._path, entry)


class _HashingFile(io.RawIOBase):
    """A file that knows the SHA-256 of what went into it, so a large tar is not read again."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._length = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(content)
        self.sha256.update(content)
        self._length += len(content)
        return len(content)

    def tell(self) -> int:
        return self._length

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        super().close()
