"""Where finished shards go: a folder of this machine, or one behind a URL.

Either way a reader sees the old content or the new one, and nothing between: ``dataset.json``
names every other file, and it is the last to change.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from shards.building.journal import JOURNAL
from shards.files import publish_folder, recover_folder, sha256_of, write_json, xxh3_128_of
from shards.index import DATASET, LEDGER, index_path
from shards.storage.places import Place, PlaceError

STAMP = ".inputs"


class Output(Protocol):
    """A folder of shards that is being made or changed; ``str(output)`` names it for a person.

    Attributes:
        place: What readers see.
        draft: Folder of this machine for what is not published yet.
        spool: Folder of this machine for the inputs that parts have converted.
        beside: A path of this machine that other files of the build are named after.
    """

    place: Place
    draft: Path
    spool: Path
    beside: Path

    def recover(self) -> None:
        """Bring back what a kill in the middle of a publication moved away."""

    def deliver(self, tar: Path, entry: Mapping[str, Any]) -> None:
        """A shard of the draft is whole, and so is its index."""

    def is_whole(self, entry: Mapping[str, Any]) -> bool:
        """A shard that was delivered is still what was written, as far as this machine has it."""

    def publish(self, shards: Sequence[Mapping[str, Any]], *, content: Mapping[str, Any]) -> None:
        """Make the draft, whose ledger and stamp are written, what readers see.

        Args:
            shards: Entries of all tars, new ones and those that stay.
            content: Of ``dataset.json``.
        """


class LocalOutput:
    """A draft folder beside the published one takes its name when it is complete."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder)
        self.beside = folder
        self.draft = folder.with_name(f".{folder.name}.building")
        self.spool = folder.with_name(f".{folder.name}.parts")

    def __str__(self) -> str:
        return str(self.place)

    def recover(self) -> None:
        """As :class:`Output`."""
        recover_folder(self.beside)

    def deliver(self, tar: Path, entry: Mapping[str, Any]) -> None:
        """It waits in the draft for the others."""

    def is_whole(self, entry: Mapping[str, Any]) -> bool:
        """As :class:`Output`; every byte is read."""
        tar = self.draft / entry["file"]
        return (
            tar.is_file()
            and tar.stat().st_size == entry["size_bytes"]
            and xxh3_128_of(tar) == entry["xxh3_128"]
            and _has_index(self.draft, entry)
        )

    def publish(self, shards: Sequence[Mapping[str, Any]], *, content: Mapping[str, Any]) -> None:
        """As :class:`Output`; shards that stay are linked, so none of their bytes is touched."""
        for entry in shards:
            tar = self.beside / entry["file"]
            for path in (tar, index_path(tar)):
                if not (self.draft / path.name).exists():
                    _link(path, self.draft / path.name)
        write_json(self.draft / DATASET, content)
        (self.draft / JOURNAL).unlink(missing_ok=True)
        publish_folder(self.draft, self.beside)


class RemoteOutput:
    """Shards are sent when they are whole; ``dataset.json`` goes last."""

    def __init__(self, url: str, *, staging: Path, name: str) -> None:
        self.place = Place(url)
        self.beside = staging / name
        self.draft = staging / f".{name}.building"
        self.spool = staging / f".{name}.parts"

    def __str__(self) -> str:
        return str(self.place)

    def recover(self) -> None:
        """Nothing was moved."""

    def deliver(self, tar: Path, entry: Mapping[str, Any]) -> None:
        """Send tar and index; of the tar nothing stays here."""
        self.place.upload(tar, entry["file"])
        self.place.upload(index_path(tar), index_path(tar).name)
        if (sent := self.place.info(entry["file"]).size) not in (-1, entry["size_bytes"]):
            raise PlaceError(
                f"{self}: {entry['file']} arrived with {sent} of {entry['size_bytes']} bytes;"
                " run the same command again"
            )
        tar.unlink()

    def is_whole(self, entry: Mapping[str, Any]) -> bool:
        """As :class:`Output`: the index; the tar has left."""
        return _has_index(self.draft, entry)

    def publish(self, shards: Sequence[Mapping[str, Any]], *, content: Mapping[str, Any]) -> None:
        """As :class:`Output`; files that nothing names any more are removed at last."""
        write_json(self.draft / DATASET, content)
        for name in (LEDGER, STAMP, DATASET):
            self.place.upload(self.draft / name, name)
        named = {
            name for one in shards for name in (one["file"], index_path(Path(one["file"])).name)
        }
        for file in self.place.files():
            if file.name.startswith("shard-") and file.name not in named:
                self.place.delete(file.name)
        shutil.rmtree(self.draft)


def open_output(out: str, *, staging: Path, name: str) -> Output:
    """Of a recipe's ``out``; ``staging`` keeps the draft of one behind a URL."""
    if Place(out).is_local:
        return LocalOutput(Place(out).path)
    return RemoteOutput(out, staging=staging, name=name)


def fresh_draft(output: Output) -> None:
    """Make the draft an empty folder."""
    with suppress(FileNotFoundError):
        shutil.rmtree(output.draft)
    output.draft.mkdir(parents=True)


def _has_index(draft: Path, entry: Mapping[str, Any]) -> bool:
    index = index_path(draft / entry["file"])
    return index.is_file() and sha256_of(index) == entry["index_sha256"]


def _link(path: Path, there: Path) -> None:
    try:
        os.link(path, there)  # no byte is copied
    except OSError:  # a file system without hard links
        shutil.copyfile(path, there)
