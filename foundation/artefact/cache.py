"""Backbones fetched from elsewhere, each under its own digest: whole, or not there.

``SCANFM_CACHE`` names the folder, ``~/.cache/scanfm`` otherwise. Any number of processes may fetch
the same backbone: each fills a folder of its own, and the first to finish gives it the name.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foundation.artefact.layout import BackboneError
from foundation.artefact.reading import digest_of, verified_sums
from foundation.running.files import sync_tree
from recipes.load import digest
from shards.files import write_json

CACHE = "SCANFM_CACHE"
_DEFAULT = "~/.cache/scanfm"


def cache_folder() -> Path:
    """Where everything fetched lies."""
    return Path(os.environ.get(CACHE) or _DEFAULT).expanduser()


def held(identity: str) -> Path | None:
    """The folder of a digest, if it is here and whole; a damaged one is removed."""
    folder = _folder(identity)
    if not folder.is_dir():
        return None
    with suppress(BackboneError):
        if digest_of(verified_sums(folder)) == identity:
            return folder
    _discard(folder)
    return None


@contextmanager
def draft() -> Iterator[Path]:
    """An empty folder of this process to fetch into; what is left of it is removed.

    Raises:
        BackboneError: The cache cannot be written.
    """
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fetching-", dir=cache_folder()))
    except OSError as error:
        raise BackboneError(
            f"{cache_folder()}: the cache cannot be written ({error.strerror}); name another "
            f"folder with {CACHE}"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kept(folder: Path, *, where: str) -> Path:
    """Verify what was fetched from ``where``, and give it its place.

    Raises:
        BackboneError: It is no whole backbone.
    """
    try:
        final = _folder(digest_of(verified_sums(folder)))
    except BackboneError as error:
        raise BackboneError(str(error).replace(str(folder), where)) from None
    final.parent.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # a draft is private
    sync_tree(folder)
    try:
        folder.rename(final)
    except OSError:  # another process was first
        if held(final.name) is None:
            folder.rename(final)
    return final


def remembered(what: Mapping[str, Any]) -> Path | None:
    """The backbone that :func:`remember` was told of, if it is still here and whole."""
    path = _note(what)
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return held(identity) if isinstance(identity, str) and identity.isalnum() else None


def remember(what: Mapping[str, Any], folder: Path) -> None:
    """Note that an address, in this state of it, holds the backbone in ``folder``.

    A cache that others filled may be read-only: then there is no note, and the next load asks anew.
    """
    path, content = _note(what), {"digest": folder.name}  # the address may hold credentials
    with suppress(OSError, ValueError):
        if path.is_file() and json.loads(path.read_bytes()) == content:
            return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may write the same note.
        with tempfile.TemporaryDirectory(prefix=".note-", dir=path.parent) as own:
            write_json(Path(own) / path.name, content)
            (Path(own) / path.name).replace(path)


def _folder(identity: str) -> Path:
    return cache_folder() / "backbones" / identity


def _note(what: Mapping[str, Any]) -> Path:
    return cache_folder() / "addresses" / f"{digest(dict(what))}.json"


def _discard(folder: Path) -> None:
    """Take the name away first: another process may be reading, or doing the same."""
    with draft() as aside, suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
