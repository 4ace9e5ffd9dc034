"""Progress of long work: a bar with the time left, on a terminal and in a log alike."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_EVERY_S = 10.0


def progress(
    items: Iterable[Any] | None = None, *, title: str, unit: str, total: int
) -> "tqdm[Any]":
    """A bar over ``items``, or one to be updated by hand; a log gets a line every ten seconds."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        mininterval=0.1 if is_terminal else _LOG_EVERY_S,
        maxinterval=_LOG_EVERY_S,
        dynamic_ncols=is_terminal,
    )
