"""Where conversions run: in this process, or in worker processes; the results keep their order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from shards.workers import worker_pool

AHEAD = 4  # inputs in work for each worker: enough to keep it busy, few enough for memory

Given = TypeVar("Given")
Made = TypeVar("Made")


class Executor(Protocol):
    """One ordered map; what differs is where the work is done."""

    def map(self, function: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
        """The results in the order of ``items``."""


class Serial:
    """In this process."""

    def map(self, function: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
        """The results in the order of ``items``."""
        return map(function, items)


class Pool:
    """In worker processes of this machine."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, function: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
        """The results in the order of ``items``; a few inputs are in work for each worker."""
        with worker_pool(self._workers) as pool:
            waiting: deque[Future[Made]] = deque()
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) >= AHEAD * self._workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
