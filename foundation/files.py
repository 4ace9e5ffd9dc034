"""Files and folders that are either whole or absent, whatever moment a process dies at."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            found.update(piece)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write beside, sync, then take the name."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of indented JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def publish_folder(beside: Path, folder: Path) -> None:
    """Sync everything below ``beside``, then give it the name ``folder``.

    A folder that holds the name already is replaced: it is moved away first and removed last, so
    that a reader finds the old one, for an instant none, or the new one; never a mixture.
    """
    for path in sorted(beside.rglob("*")):
        _sync(path)
    _sync(beside)
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    beside.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside ``folder`` to fill and then publish."""
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def numbered(path: Path) -> Path:
    """``path`` with the first number after a dot that is not taken: ``NAME.1``, ``NAME.2``, ..."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
