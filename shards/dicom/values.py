"""Values of a DICOM header, whatever stands there: a number, a text, a moment, or nothing.

A header is anything with ``get(keyword)``: a dataset of pydicom, or a dictionary of one frame's
values. Nothing here raises for a value that a damaged or careless file holds.
"""

import datetime
import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

SAME_DIRECTION = 1e-2  # of a direction cosine


class View(Protocol):
    """A header, or what a header says of one frame."""

    def get(self, key: Any, default: Any = None, /) -> Any:
        """The value of a keyword (``"EchoTime"``)."""


def number(view: View, tag: str) -> float | None:
    """One finite number, or None."""
    try:
        value = float(view.get(tag))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def numbers(view: View, tag: str, count: int) -> list[float]:
    """``count`` finite numbers, or an empty list."""
    try:
        values = [float(value) for value in view.get(tag) or []]
    except (TypeError, ValueError, OverflowError):
        return []
    return values if len(values) == count and all(map(math.isfinite, values)) else []


def text(view: View, tag: str) -> str:
    """The value as text; empty where there is none."""
    value = view.get(tag)
    return "" if value is None else str(value).strip()


def words(view: View, tag: str) -> tuple[str, ...]:
    """Each value of a multi-valued code, in capitals."""
    value = view.get(tag)
    if value is None or isinstance(value, bytes):
        return ()
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(str(one).strip().upper() for one in several)


def day(view: View, tag: str) -> datetime.date | None:
    """A date, as ``YYYYMMDD`` or the older ``YYYY.MM.DD``."""
    digits = text(view, tag).replace(".", "")
    try:
        return datetime.datetime.strptime(digits[:8], "%Y%m%d").date()
    except ValueError:
        return None


def clock(view: View, tag: str) -> datetime.timedelta | None:
    """Time of day since midnight, as ``HHMMSS.FFFFFF``, shorter, or with colons."""
    found = re.fullmatch(r"(\d\d)(\d\d)?(\d\d)?(\.\d*)?", text(view, tag).replace(":", ""))
    if found is None:
        return None
    hours, minutes, seconds = (int(found[place] or 0) for place in (1, 2, 3))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    fraction = float(found[4]) if found[4] and found[4] != "." else 0.0
    return datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds + fraction)


def moment(view: View, date: str, time: str) -> datetime.datetime | None:
    """Date and time of two tags; None where one is missing."""
    on, at = day(view, date), clock(view, time)
    if on is None or at is None:
        return None
    return datetime.datetime.combine(on, datetime.time()) + at


def timestamp(view: View, tag: str) -> datetime.datetime | None:
    """A DICOM date-time (``YYYYMMDDHHMMSS.FFFFFF&ZZXX``); its time zone is left aside."""
    found = re.match(r"(\d{8})(\d{2,6}(?:\.\d*)?)", text(view, tag))
    if found is None:
        return None
    return moment({"date": found[1], "time": found[2]}, "date", "time")


def same_direction(one: Sequence[float], other: Sequence[float]) -> bool:
    """Two sets of direction cosines that differ by rounding alone."""
    return all(abs(a - b) <= SAME_DIRECTION for a, b in zip(one, other, strict=True))
