"""Write samples into tars of limited size, each with its index; the same samples, the same bytes.

Any ``webdataset.WebDataset`` reads the tars.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from shards.files import sha256_of, write_json
from shards.index import RECORD, VOLUME, index_of, index_path

KEY = re.compile(r"[a-z0-9_-]+")


class ShardWriter:
    """Fills ``shard-000000.tar``, ``shard-000001.tar``, ... of a folder, in the order of `add`."""

    def __init__(self, folder: Path, *, shard_size_mb: float) -> None:
        """A tar is closed by the first sample with which it reaches ``shard_size_mb``."""
        self._folder = folder
        self._limit = int(shard_size_mb * 1e6)
        self._written: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._tar: Any = None
        self._num_samples = 0

    def add(self, key: str, *, frame: bytes, record: Mapping[str, Any]) -> None:
        """Append one sample."""
        assert KEY.fullmatch(key), "a dot in a key would cut it"
        if self._file is None:
            self._open()
        assert self._file is not None
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        self._tar.write({"__key__": key, VOLUME: frame, RECORD: text.encode()})
        self._num_samples += 1
        if self._file.tell() >= self._limit:
            self._finish()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last tar; the entries of ``dataset.json`` for all of them."""
        if self._file is not None:
            self._finish()
        return self._written

    def discard(self) -> None:
        """Let go of a tar that will not be finished, as on a full disk."""
        if self._file is not None:
            for each in (self._tar, self._file):
                with suppress(OSError):
                    each.close()

    def _open(self) -> None:
        import webdataset

        path = self._folder / f"shard-{len(self._written):06d}.tar"
        self._file = path.open("wb")
        self._num_samples = 0
        # Nothing of the moment, the machine or the user may reach the bytes.
        self._tar = webdataset.TarWriter(
            self._file, user="", group="", mode=0o644, mtime=0, encoder=False
        )

    def _finish(self) -> None:
        assert self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = Path(self._file.name)
        self._file = None
        index = index_of(path)
        write_json(index_path(path), index)
        self._written.append(
            {
                "file": path.name,
                "sha256": index["sha256"],
                "size_bytes": index["size_bytes"],
                "num_samples": self._num_samples,
                "index_sha256": sha256_of(index_path(path)),
            }
        )
