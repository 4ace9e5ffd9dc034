"""Converted inputs in files: on their way from a worker, or from the parts of a build to its merge.

A file holds what :func:`shards.building.convert.convert` returned for one input: a line of JSON,
then the members' bytes. Its name is keyed.
"""

import json
import mmap
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shards.building.convert import Converted
from shards.building.executors import Executor
from shards.building.plan import Job
from shards.codec import Checksums
from shards.files import write_bytes, write_json
from shards.write import PackedSample

ABOUT = "parts.json"


class SpoolError(ValueError):
    """Parts that do not make a whole."""


def packed(found: Sequence[Converted]) -> list[bytes | memoryview]:
    """The scans of one input as the pieces of a file."""
    header = json.dumps([_described(one) for one in found], separators=(",", ":")).encode()
    bodies = [content for one in found if one.sample for content in one.sample.members.values()]
    return [header, b"\n", *bodies]


def fetch(path: Path) -> list[Converted]:
    """Back from :func:`packed`; the members stay in the file, which is mapped."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content, end = memoryview(mapped), mapped.find(b"\n")
    place, found = end + 1, []
    for about in json.loads(content[:end].tobytes()):
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

    def map(
        self,
        function: Callable[[Job], list[Converted]],
        items: Sequence[Job],
        *,
        failed: Callable[[Job, str], list[Converted]],
    ) -> Iterator[list[Converted]]:
        """The results in the order of ``items``."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        send = partial(_send, function, self._folder)
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
        about = {"plan": self._plan, "of": of}
        if (found := self._about()) not in (None, about):
            raise SpoolError(
                f"{self._folder}: holds parts of another recipe, other inputs or another number of"
                " parts; merge it with part=merge, or remove it"
            )
        if found is None:
            write_json(self._folder / ABOUT, about)

    def has(self, job: Job) -> bool:
        """This input is converted."""
        return self._path(job).is_file()

    def store(self, job: Job, found: Sequence[Converted]) -> None:
        """Keep the scans of one input."""
        write_bytes(self._path(job), b"".join(packed(found)))

    def check_complete(self, jobs: Sequence[Job]) -> None:
        """All parts are done.

        Raises:
            SpoolError: Inputs are missing; it names the parts.
        """
        about = self._about()
        if about is None or about["plan"] != self._plan:
            raise SpoolError(
                f"{self._folder}: no parts of this build; convert them first with part=0/N"
                " and so on, from the same recipe, inputs and key"
            )
        missing = [place for place, job in enumerate(jobs) if not self.has(job)]
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
        """As an executor: all has been made, it is only read."""
        del function, failed
        return (fetch(self._path(job)) for job in items)

    def remove(self) -> None:
        """The shards are made."""
        shutil.rmtree(self._folder)

    def _about(self) -> dict[str, Any] | None:
        path = self._folder / ABOUT
        return json.loads(path.read_bytes()) if path.is_file() else None

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
