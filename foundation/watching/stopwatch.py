"""Where the time of an update goes, on the device's own clock: a GPU never waits to be asked."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

_MOST_PENDING = 1024


class Span(NamedTuple):
    """Time between two marks, which a GPU may not have come to yet."""

    begin: Any
    end: Any


class Stretch(NamedTuple):
    """What passed between two laps, and which of it within collective calls."""

    name: str
    whole: Span
    inside: list[Span]


class Times(NamedTuple):
    """Seconds by the name of a stretch."""

    whole: dict[str, float]
    waiting: dict[str, float]
    """the part of it that was spent in collective calls, so in waiting for other ranks"""


class Stopwatch:
    """Each lap adds to one name what passed since the last; together they are all of the time.

    On a GPU laps are events in its stream. So a stretch is what it kept the GPU from going on: work
    queued in ``forward`` counts as forward whenever it is done, and a wait for a batch counts only
    as far as the GPU had nothing left to do. Where the host alone works, the two clocks agree.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._whole: defaultdict[str, float] = defaultdict(float)
        self._waiting: defaultdict[str, float] = defaultdict(float)
        self._pending: deque[Stretch] = deque()
        self._inside: list[Span] = []
        self._is_inside = False
        self._last = self._mark()

    def lap(self, name: str) -> None:
        """Count the time since the last lap as ``name``."""
        now = self._mark()
        self._pending.append(Stretch(name, Span(self._last, now), self._inside))
        self._last, self._inside = now, []
        if not self._is_cuda:
            self._settle()
        elif len(self._pending) > _MOST_PENDING:
            while self._pending and self._pending[0].whole.end.query():
                self._settle(most=1)

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Count what passes within, once however deep, as waiting for other ranks."""
        if self._is_inside:
            yield
            return
        self._is_inside = True
        begin = self._mark()
        try:
            yield
        finally:
            self._inside.append(Span(begin, self._mark()))
            self._is_inside = False

    def add(self, name: str, seconds: float) -> None:
        """Count time that passed elsewhere, such as in a loader's worker."""
        self._whole[name] += seconds

    def take(self) -> Times:
        """What was counted since the last taking; on a GPU after all of it is done."""
        self._settle()
        taken = Times(dict(self._whole), dict(self._waiting))
        self._whole.clear()
        self._waiting.clear()
        return taken

    def _mark(self) -> Any:
        """This moment: seconds, or an event that a GPU will pass."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self, *, most: int = -1) -> None:
        """Turn pending stretches, the oldest first, into seconds."""
        while self._pending and most:
            stretch = self._pending.popleft()
            self._whole[stretch.name] += self._seconds(stretch.whole)
            if stretch.inside:
                self._waiting[stretch.name] += sum(map(self._seconds, stretch.inside))
            most -= 1

    def _seconds(self, span: Span) -> float:
        if not self._is_cuda:
            return float(span.end - span.begin)
        span.end.synchronize()
        return float(span.begin.elapsed_time(span.end)) / 1000
