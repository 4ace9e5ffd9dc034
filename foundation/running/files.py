"""What a run's files need beyond ``shards/files.py``: to be on the disk, and never to collide."""

import os
from pathlib import Path


def sync_tree(folder: Path, *, deep: bool = True) -> None:
    """Bring a folder to the disk, and everything below it unless not ``deep``."""
    for path in [*(sorted(folder.rglob("*")) if deep else []), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def numbered(path: Path) -> Path:
    """``path`` with the first number after a dot that is not taken: ``NAME.1``, ``NAME.2``, ..."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free
