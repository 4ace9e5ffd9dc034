"""A store changes as a whole: a draft is written inside it, then moved into place.

Caches (features, what was scored) are no part of a draft; they stay where they are.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = ".building"
RUN = "run.json"  # written last: a draft that has one is whole
PARTS = ("predictions", "groups", "few_shot", "fractions", "statistics", "curves", "pictures")


@contextmanager
def drafted(store: Path) -> Iterator[Path]:
    """A folder to write a store into; it takes the store's place when the block ends well."""
    draft = store / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    for part in PARTS:
        (draft / part).mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    publish(store)


def publish(store: Path) -> None:
    """Move a whole draft into place, or what a process that died in the middle has left of one."""
    draft = store / DRAFT
    if not (draft / RUN).is_file():
        return
    (store / RUN).unlink(missing_ok=True)
    for part in PARTS:
        if (draft / part).is_dir():
            shutil.rmtree(store / part, ignore_errors=True)
            (draft / part).rename(store / part)
    files = sorted(path for path in draft.iterdir() if path.name != RUN)
    for path in [*files, draft / RUN]:
        os.replace(path, store / path.name)
    draft.rmdir()
