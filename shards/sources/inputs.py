"""One input of a build: what is read together, who it is of, and what it is recognised by."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from shards.sources.visit import Part
from shards.storage.places import FileInfo

Value = str | int | float | None


class SourceError(ValueError):
    """A source without usable input; the message is meant for the recipe's author."""


@dataclass(frozen=True)
class Input:
    """One scan, or the sequences and masks of one visit.

    Attributes:
        position: Its number in the source.
        subject: As the archive has it; it identifies.
        sequences, masks: What is read, relative to ``root``.
        root: A folder, or the URL of one.
        name: Its place below the root: the same in every build. It identifies.
        identity: Its name and all that its samples come from: sizes and times of files, columns.
        split, values: Of a cohort's row; ``values`` are the columns that the recipe names.
        visit: Days, or a date, which identifies.
        verdict: What is known already, with the reason: it is not read.
    """

    position: int
    subject: str
    sequences: tuple[Part, ...]
    masks: tuple[Part, ...] = ()
    root: str = ""
    name: str = ""
    identity: str = ""
    split: str | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    visit: int | date | None = None
    verdict: tuple[Literal["rejected", "skipped"], str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read, relative to ``root``."""
        parts = (*self.sequences, *self.masks)
        return tuple(dict.fromkeys(name for part in parts for name in part.files))

    @property
    def num_files(self) -> int:
        """Files of the archive that are this input's; a member of a tar or npz counts as one."""
        return len(self.files)

    @property
    def modality(self) -> str | None:
        """What the recipe says of the first sequence."""
        return self.sequences[0].modality


def identity_of(name: str, files: Sequence[FileInfo], *about: object) -> str:
    """Text that changes when a file is written again or a row says something else."""
    return json.dumps([name, *about, [list(one) for one in files]], sort_keys=True, default=str)


def subject_in(name: str, pattern: str | None, *, source: str | None) -> str:
    """What a recipe's ``subject`` finds in a name; the name itself where there is no pattern.

    Raises:
        SourceError: It finds nothing.
    """
    if pattern is None:
        return name
    found = re.search(pattern, name)
    if found is None:
        raise SourceError(f"source {source}: subject finds nothing in the file name {name}")
    return "/".join(group or "" for group in found.groups()) or found[0]
