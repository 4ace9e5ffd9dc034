"""Tells when something takes too long, while it still does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Barks once each time that what it watches takes longer than ``limit_s``."""

    def __init__(self, limit_s: float, *, bark: Callable[[], None]) -> None:
        """``bark`` is called in the watchdog's own thread, which lives inside the ``with``."""
        self._limit_s, self._bark = limit_s, bark
        self._began: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What runs in here is timed."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def _run(self) -> None:
        told: float | None = None
        while not self._ended.wait(min(self._limit_s / 4, 5.0)):
            began = self._began
            if began is None or began == told or time.monotonic() - began < self._limit_s:
                continue
            told = began
            self._bark()
