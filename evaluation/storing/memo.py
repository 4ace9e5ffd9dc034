"""Work that is done once: a folder of tables and JSON for each, named by what it was made from.

A killed run goes on where it stopped, and a changed input is a name that does not exist yet. What
is found under the right name with another content (a mixed or damaged cache) is made again, in one
line that says so.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.storing.store import (
    StoreError,
    read_parquet,
    read_sealed,
    sealed,
    sha256_of,
    write_json,
    write_parquet,
)

if TYPE_CHECKING:
    import pandas

CONTENT = "content.json"
_SHOWN = 24


class Kept(NamedTuple):
    """What a piece of work came to."""

    tables: dict[str, "pandas.DataFrame"]
    content: dict[str, Any]


def remember(folder: Path, *, name: str, digest: str, make: Callable[[], Kept]) -> Kept:
    """What ``make`` gives, from ``folder`` where it is there.

    Args:
        folder: Of all work of this sort.
        name: For people, ``[a-z0-9_]+``.
        digest: 64 hex digits over everything that ``make`` depends on.
        make: Does the work; its tables and JSON are kept.
    """
    place = folder / f"{name}-{digest[:_SHOWN]}"
    try:
        if place.is_dir():
            return _read(place, digest)
    except StoreError as error:
        print(f"redone  {place.name}: {error}", flush=True)
        shutil.rmtree(place)
    kept = make()
    _write(place, digest, kept)
    return kept


def forget_others(folder: Path, *, used: set[str]) -> None:
    """Remove the work that no model of a run asked for; ``used`` are digests."""
    shown = {digest[:_SHOWN] for digest in used}
    for place in folder.glob("*-*"):
        if place.name.rpartition("-")[2] not in shown:
            shutil.rmtree(place, ignore_errors=True)


def _write(place: Path, digest: str, kept: Kept) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        for name, table in kept.tables.items():
            write_parquet(draft / f"{name}.parquet", table)
        tables = {name: sha256_of(draft / f"{name}.parquet") for name in kept.tables}
        whole = {"made_from": digest, "tables": tables, "content": kept.content}
        write_json(draft / CONTENT, sealed(whole))
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _read(place: Path, digest: str) -> Kept:
    found = read_sealed(place / CONTENT)
    if found["made_from"] != digest:
        raise StoreError(f"{place / CONTENT}: made from something else")
    for name, sha256 in found["tables"].items():
        path = place / f"{name}.parquet"
        if not path.is_file() or sha256_of(path) != sha256:
            raise StoreError(f"{path}: damaged")
    tables = {name: read_parquet(place / f"{name}.parquet") for name in found["tables"]}
    return Kept(tables, found["content"])
