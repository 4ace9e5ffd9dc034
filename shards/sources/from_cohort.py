"""The rows of a cohort as inputs."""

import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes.load import load
from shards.index import VOLUME
from shards.scan import ABSENT, file_and_member
from shards.sources.cohort import Cohort, CohortConfig, CohortRow, load_cohort
from shards.sources.from_files import partner_info
from shards.sources.inputs import Input, SourceError, Value, identity_of
from shards.sources.listing import Listing
from shards.sources.visit import Part
from shards.storage.places import FileInfo

if TYPE_CHECKING:
    from shards.sources.source import SourceConfig

Cell = str | int | float | None
MASK = "mask"
"""What shards call a cohort's only mask."""
_ABSENT = "absent"  # in place of a time


def cohort_inputs(config: "SourceConfig", listing: Listing) -> tuple[CohortConfig, list[Input]]:
    """An input for each row that the recipe chooses."""
    cohort, rows, root = _rows(config, listing)
    paths = _Paths(listing, root)
    inputs = [_input(row, config, paths, place) for place, row in enumerate(rows)]
    return cohort.config, inputs


def cohort_files(config: "SourceConfig", listing: Listing) -> list[FileInfo]:
    """The table, and every file of the chosen rows."""
    cohort, rows, root = _rows(config, listing)
    paths = _Paths(listing, root)
    table = paths.info(cohort.config.file)
    found = {table.name: table}
    for row in rows:
        for where in (
            *(row.sequences or {VOLUME: row.scan}).values(),
            *_masks(row, config).values(),
        ):
            found |= {one.name: one for one in paths.files(where)}
    return list(found.values())


class _Paths:
    """Places of a cohort's rows, relative to ``data_root``; each file is asked for once."""

    def __init__(self, listing: Listing, root: Path) -> None:
        """``root``: what the rows' places begin with."""
        self.listing = listing
        self._root = root
        self._known: dict[str, list[FileInfo]] = {}

    def relative(self, where: str) -> str:
        """A place with its member, if it has one."""
        file, member = file_and_member(where)
        if member is not None:
            return f"{self.relative(file)}#{member}"
        path = Path(os.path.normpath(where))
        root = Path(os.path.normpath(self._root))
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
        if not self.listing.place.is_local:
            raise SourceError(f"{self.listing.place}: the cohort names a file outside of it")
        return str(path.absolute())

    def info(self, name: str) -> FileInfo:
        """Of a file; of size -1 where it is absent."""
        return self.listing.info(name) or FileInfo(name, -1, _ABSENT)

    def files(self, where: str) -> list[FileInfo]:
        """All files that reading ``where`` takes."""
        name = self.relative(file_and_member(where)[0])
        if name not in self._known:
            one = self.listing.info(name)
            if one is None:
                self._known[name] = self.listing.below(name) or [self.info(name)]
            else:
                partner = partner_info(name, self.listing)
                self._known[name] = [one] if partner is None else [one, partner]
        return self._known[name]

    def part(self, name: str, where: str, modality: str | None) -> Part:
        """Of a visit."""
        names = tuple(one.name for one in self.files(where))
        return Part(name, self.relative(where), modality, names)


def _input(row: CohortRow, config: "SourceConfig", paths: _Paths, place: int) -> Input:
    sequences = row.sequences or {VOLUME: row.scan}
    modalities = row.modalities or {VOLUME: row.modality}
    parts = tuple(paths.part(name, where, modalities[name]) for name, where in sequences.items())
    named = _masks(row, config)
    masks = tuple(paths.part(name, where, None) for name, where in named.items())
    files = [one for where in (*sequences.values(), *named.values()) for one in paths.files(where)]
    values = {column: row.values[column] for column in config.metadata}
    name = f"{row.subject}\0{parts[0].where}"
    about = [list(part) for part in (*parts, *masks)]
    return Input(
        position=place,
        subject=row.subject,
        sequences=parts,
        masks=masks,
        root=paths.listing.root,
        name=name,
        identity=identity_of(name, files, about, row.split, values, row.visit),
        split=row.split,
        values=values,
        visit=row.visit,
        verdict=_verdict({**sequences, **named}, paths),
    )


def _masks(row: CohortRow, config: "SourceConfig") -> dict[str, str]:
    """What goes into the shards beside the row's scans, by name."""
    own = {MASK: row.mask} if config.with_mask and row.mask is not None else {}
    return {**own, **row.masks}


def _verdict(
    parts: Mapping[str, str], paths: _Paths
) -> tuple[Literal["rejected", "skipped"], str] | None:
    """A file that is not there; one that a reader misses nevertheless has gone since."""
    for name, where in parts.items():
        if any(one.stamp == _ABSENT for one in paths.files(where)):
            return "rejected", ABSENT if len(parts) == 1 else f"{name}: {ABSENT}"
    return None


def _rows(config: "SourceConfig", listing: Listing) -> tuple[Cohort, list[CohortRow], Path]:
    assert config.cohort is not None
    with _local_root(config.cohort, listing) as root:
        cohort = load_cohort(config.cohort, data_root=root)
    known = list(cohort.rows[0].values)
    for column in (*config.where, *config.metadata):
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise SourceError(f"cohort {cohort.config.name}: no column {column!r}; {hint}")
    if config.splits is not None and cohort.config.split is None and cohort.config.npz is None:
        raise SourceError(f"cohort {cohort.config.name} has no split, so splits cannot choose")
    return cohort, [row for row in cohort.rows if is_wanted(row, config)], root


@contextmanager
def _local_root(recipe: str, listing: Listing) -> Iterator[Path]:
    """A folder where the cohort's table lies; of a URL a copy of it alone."""
    if listing.place.is_local:
        yield listing.place.path
        return
    about = load(recipe, CohortConfig)
    table = about.file
    with tempfile.TemporaryDirectory(prefix="scanfm-") as folder:
        if listing.info(table) is not None:
            listing.place.fetch([table], Path(folder))
        yield Path(folder)


def is_wanted(row: CohortRow, config: "SourceConfig") -> bool:
    """Whether the recipe chooses a row of the cohort."""
    if config.splits is not None and row.split not in config.splits:
        return False
    return _matches(row.values, config.where)


def _matches(values: Mapping[str, Value], wanted: Mapping[str, Cell | list[Cell]]) -> bool:
    return all(
        values[column] in (cell if isinstance(cell, list) else [cell])
        for column, cell in wanted.items()
    )
