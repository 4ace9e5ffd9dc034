"""Files and folders that are either whole or absent, whatever moment a process dies at."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, read in pieces."""
    return _hashed(path, hashlib.sha256())


def xxh3_128_of(path: Path) -> str:
    """XXH3-128 of a file, 32 hex digits: finds damage ten times as fast, withstands no forgery."""
    import xxhash

    return _hashed(path, xxhash.xxh3_128())


def _hashed(path: Path, found: Any) -> str:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
    digits: str = found.hexdigest()
    return digits


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, sync, then take the name.

    Raises:
        OSError: It cannot be written; it names ``path``, which is as it was.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of JSON with sorted keys: the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside ``folder`` to fill and then publish."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    discard_draft(folder)
    beside = _draft(folder)
    beside.mkdir()
    return beside


def discard_draft(folder: Path) -> None:
    """Remove what a process began beside ``folder`` and did not publish."""
    shutil.rmtree(_draft(folder), ignore_errors=True)


def publish_folder(beside: Path, folder: Path) -> None:
    """Give ``beside`` the name ``folder``; one that holds the name is moved away, then removed."""
    replaced = _replaced(folder)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    beside.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back what a process left that died between the two renames of a publication."""
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)


class Busy(ValueError):
    """Another process does what only one may do at a time."""


@contextmanager
def only_one(lock: Path, *, doing: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends.

    Raises:
        Busy: Another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the name between the opening and the lock.
            is_mine = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except BlockingIOError:
            is_mine = False
        if not is_mine:
            raise Busy(f"{doing}: another process is at it; wait for it to end")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _draft(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.building")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")
