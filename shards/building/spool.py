"""Converted inputs in files: on their way from a worker, or from the parts of a build to its merge.

A file holds what :func:`shards.building.convert.convert` returned for one input: a line of JSON,
then the members' bytes. Its name is keyed. One of a part, which may wait for days, begins with a
seal: a digest of all else. What does not fit its seal is damaged, and its input is converted again.
"""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shards.building.convert import Converted
from shards.building.executors import Executor
from shards.building.plan import Job
from shards.codec import Checksums
from shards.files import PIECE_BYTES, write_bytes
from shards.sealed import read_sealed, write_sealed
from shards.write import PackedSample

ABOUT = "parts.json"
_SEAL_BYTES = 33  # XXH3-128 in hex digits, and a line end


class SpoolError(ValueError):
    """Parts that do not make a whole."""


def packed(found: Sequence[Converted]) -> list[bytes | memoryview]:
    """The scans of one input as the pieces of a file."""
    header = json.dumps([_described(one) for one in found], separators=(",", ":")).encode()
    bodies = [content for one in found if one.sample for content in one.sample.members.values()]
    return [header, b"\n", *bodies]


def fetch(path: Path, *, start: int = 0) -> list[Converted]:
    """Back from :func:`packed`; the members stay in the file, which is mapped.

    Args:
        path: The file.
        start: Where in it they begin.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content, end = memoryview(mapped), mapped.find(b"\n", start)
    place, found = end + 1, []
    for about in json.loads(content[start:end].tobytes()):
        sample = None
        if about["sample"] is not None:
            members: dict[str, bytes | memoryview] = {}
            for name, size in about["sample"].pop("sizes").items():
                members[name] = content[place : place + size]
                place += size
            sums = about["sample"].pop("checksums")
            sample = PackedSample(
                **about["sample"],
                members=members,
                checksums={name: Checksums.from_json(one) for name, one in sums.items()},
            )
        found.append(Converted(**{**about, "sample": sample}))
    return found


class ThroughFiles:
    """An executor whose workers hand their results over in files.

    Through a pipe each volume would be copied several times in the process that packs, and that
    one process would hold up the others.
    """

    def __init__(self, executor: Executor, folder: Path) -> None:
        """``folder`` is emptied."""
        self._executor, self._folder = executor, folder
        # A worker that outlives a killed build for a moment must not find the place of another.
        self._own = folder / str(os.getpid())

    def map(
        self,
        function: Callable[[Job], list[Converted]],
        items: Sequence[Job],
        *,
        failed: Callable[[Job, str], list[Converted]],
    ) -> Iterator[list[Converted]]:
        """The results in the order of ``items``."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._own.mkdir(parents=True)
        send = partial(_send, function, self._own)
        try:
            for made in self._executor.map(send, items, failed=failed):
                yield _taken(made) if isinstance(made, Path) else made
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _send(function: Callable[[Job], list[Converted]], folder: Path, job: Job) -> Path:
    path = folder / f"{job.input}-{job.state}"
    with path.open("wb", buffering=0) as file:
        for piece in packed(function(job)):
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
    return path


def _taken(path: Path) -> list[Converted]:
    found = fetch(path)
    path.unlink()  # what is mapped stays until it is let go
    return found


class Spool:
    """The folder that all parts of one build fill; to the merge it is the executor."""

    def __init__(self, folder: Path, *, plan: str) -> None:
        """``plan`` is a digest of all that decides the build's result."""
        self._folder = folder
        self._plan = plan

    def begin(self, *, of: int) -> None:
        """Open the folder for one of ``of`` parts.

        Raises:
            SpoolError: Parts of another build are in it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found = self._about()
        if found is not None and (found["plan"], found["of"]) == (self._plan, of):
            return
        if found is not None and not found["merged"]:
            raise SpoolError(
                f"{self._folder}: holds parts of another recipe, other inputs or another number of"
                " parts; merge it with part=merge, or remove it"
            )
        self._tell({"plan": self._plan, "of": of, "merged": False})

    def has(self, job: Job) -> bool:
        """This input is converted; a damaged file counts for nothing, and is told of."""
        path = self._path(job)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            seal = file.read(_SEAL_BYTES)
            is_whole = seal == self._seal(iter(partial(file.read, PIECE_BYTES), b""))
        if not is_whole:
            print(f"{path}: damaged or of another build, and converted again", flush=True)
        return is_whole

    def store(self, job: Job, found: Sequence[Converted]) -> None:
        """Keep the scans of one input."""
        pieces = packed(found)
        write_bytes(self._path(job), b"".join([self._seal(pieces), *pieces]))

    def check_complete(self, jobs: Sequence[Job]) -> None:
        """All parts are done, if there are any to do.

        Raises:
            SpoolError: Inputs are missing; it names the parts.
        """
        if not jobs:
            return
        about = self._about()
        if about is None or about["plan"] != self._plan:
            raise SpoolError(
                f"{self._folder}: no parts of this build, or {ABOUT} is damaged; convert them first"
                " with part=0/N and so on, from the same recipe, inputs and key"
            )
        missing = [place for place, job in enumerate(jobs) if not self._path(job).is_file()]
        if missing:
            parts = sorted({place % about["of"] for place in missing})
            raise SpoolError(
                f"{self._folder}: {len(missing)} of {len(jobs)} inputs are not converted; run"
                f" part={parts[0]}/{about['of']}"
                + (
                    f" and {len(parts) - 1} more ({', '.join(map(str, parts[1:]))})"
                    * (len(parts) > 1)
                )
            )

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Job],
        *,
        failed: Callable[[Any, str], Any],
    ) -> Iterator[Any]:
        """As an executor: all has been made and is only read, but for what is damaged."""
        del failed
        for job in items:
            yield fetch(self._path(job), start=_SEAL_BYTES) if self.has(job) else function(job)

    def mark_merged(self) -> None:
        """All is in shards, which are about to be published: a build to come needs none of it."""
        if (about := self._about()) is not None:
            self._tell({**about, "merged": True})

    def remove_merged(self) -> None:
        """The shards are published; the mark goes last, so that a killed removal is taken up."""
        about = self._about()
        if about is None or not about["merged"]:
            return
        for path in sorted(self._folder.iterdir(), key=lambda path: path.name == ABOUT):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._folder.rmdir()

    def _about(self) -> dict[str, Any] | None:
        """What the parts have in common; None where nothing is told, or it is damaged."""
        path = self._folder / ABOUT
        return read_sealed(path) if path.is_file() else None

    def _tell(self, about: dict[str, Any]) -> None:
        write_sealed(self._folder / ABOUT, about)

    def _seal(self, pieces: Iterable[bytes | memoryview]) -> bytes:
        """Covers the plan: what another recipe made of the same input does not fit."""
        import xxhash

        found = xxhash.xxh3_128(self._plan.encode())
        for piece in pieces:
            found.update(piece)
        return f"{found.hexdigest()}\n".encode()

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.input}-{job.state}"


def _described(one: Converted) -> dict[str, Any]:
    about: dict[str, Any] = {**one.__dict__, "left_out": dict(one.left_out), "sample": None}
    if one.sample is not None:
        about["sample"] = {
            "key": one.sample.key,
            "record": dict(one.sample.record),
            "sha256": dict(one.sample.sha256),
            "sizes": {name: len(content) for name, content in one.sample.members.items()},
            "checksums": {name: sums.as_json() for name, sums in one.sample.checksums.items()},
        }
    return about
