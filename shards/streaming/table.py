"""All samples of a folder in little memory: packed one by one, unpacked when they are looked at.

A whole CT takes 2 kB here and several times as much as objects; and a worker that was forked looks
at them without copying any page of memory.
"""

import marshal
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from shards.codec import Checksums
from shards.index import Sample, sample_of


class SampleTable(Sequence[Sample]):
    """The samples of a folder, in the order of its shards."""

    def __init__(self, shards: Iterable[tuple[str, Iterable[Mapping[str, Any]]]]) -> None:
        """Pack the entries of indexes; each comes with the name of its tar."""
        packed = bytearray()
        ends = array("q", [0])
        shard_of = array("i")
        self._shards: list[str] = []
        for shard, entries in shards:
            for entry in entries:
                packed += _packed(entry)
                ends.append(len(packed))
                shard_of.append(len(self._shards))
            self._shards.append(shard)
        self._packed = bytes(packed)
        self._ends = np.asarray(ends)
        self._shard_of = np.asarray(shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        entry = self._entry(index)
        sums = {name: _checksums(one) for name, one in entry["checksums"].items()}
        return sample_of(self._shards[self._shard_of[index]], entry, checksums=sums)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def scans(self) -> Iterator[Mapping[str, Any]]:
        """The records, as in ``scan.json``: all of them faster than all the samples."""
        return (self._entry(index)["scan"] for index in range(len(self)))

    def keyed_scans(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The same, each with the key of its sample."""
        entries = (self._entry(index) for index in range(len(self)))
        return ((entry["key"], entry["scan"]) for entry in entries)

    def _entry(self, index: int) -> dict[str, Any]:
        first, last = self._ends[index : index + 2]
        entry: dict[str, Any] = marshal.loads(memoryview(self._packed)[first:last])
        return entry


def _packed(entry: Mapping[str, Any]) -> bytes:
    """marshal is of one Python version, and fast; this never leaves the memory of a job."""
    sums = {
        name: {
            **one,
            "sizes": np.asarray(one["sizes"], dtype=np.int32).tobytes(),
            "xxh3": bytes.fromhex(one["xxh3"]),
        }
        for name, one in entry["checksums"].items()
    }
    return marshal.dumps({**entry, "checksums": sums})


def _checksums(packed: Mapping[str, Any]) -> Checksums:
    return Checksums(
        shape=tuple(packed["shape"]),
        chunk_shape=tuple(packed["chunk_shape"]),
        table=packed["table"],
        start=packed["start"],
        sizes=np.frombuffer(packed["sizes"], dtype=np.int32).astype(np.int64),
        xxh3=np.frombuffer(packed["xxh3"], dtype=">u8").astype(np.uint64),
    )
