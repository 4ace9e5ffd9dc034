"""Converted inputs on the disk, for builds in parts: many jobs fill the folder, one merges it.

A file holds what :func:`shards.building.convert.convert` returned for one input: a line of JSON,
then the members' bytes. Its name is keyed, and it is whole or absent.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.building.convert import Converted
from shards.building.plan import Job
from shards.codec import Checksums
from shards.files import write_bytes, write_json
from shards.write import PackedSample

ABOUT = "parts.json"


class SpoolError(ValueError):
    """Parts that do not make a whole."""


def store(path: Path, found: Sequence[Converted]) -> None:
    """Write the scans of one input.

    Raises:
        OSError: It cannot be written; ``path`` is as it was.
    """
    header = json.dumps([_described(one) for one in found], separators=(",", ":")).encode()
    bodies = [content for one in found if one.sample for content in one.sample.members.values()]
    write_bytes(path, b"".join([header, b"\n", *bodies]))


def fetch(path: Path) -> list[Converted]:
    """Back from :func:`store`."""
    content = memoryview(path.read_bytes())
    end = bytes(content).index(b"\n")
    place, found = end + 1, []
    for about in json.loads(bytes(content[:end])):
        sample = None
        if about["sample"] is not None:
            members = {}
            for name, size in about["sample"].pop("sizes").items():
                members[name] = bytes(content[place : place + size])
                place += size
            sums = about["sample"].pop("checksums")
            sample = PackedSample(
                **about["sample"],
                members=members,
                checksums={name: Checksums.from_json(one) for name, one in sums.items()},
            )
        found.append(Converted(**{**about, "sample": sample}))
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
        store(self._path(job), found)

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
