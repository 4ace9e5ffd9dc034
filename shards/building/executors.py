"""Where conversions run: in this process, in worker processes, or on a dask cluster.

One ordered map for all of them: the results come in the order of the inputs, whoever made them.
"""

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, Protocol, TypeVar

from shards.building.workers import worker_pool

AHEAD = 4  # inputs in work for each worker: enough to keep it busy, few enough for memory
CRASHED = "the reader crashed or ran out of memory on it, twice"
DASK_CONNECT_S = 30

Given = TypeVar("Given")
Made = TypeVar("Made")


class ExecutorError(ValueError):
    """Workers that cannot be had."""


class Executor(Protocol):
    """One ordered map; what differs is where the work is done."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        failed: Callable[[Any, str], Any],
    ) -> Iterator[Any]:
        """The results in the order of ``items``.

        Args:
            function: Does the work; it raises nothing for an item that is merely bad.
            items: What it is given.
            failed: The result for an item that cost a worker its life, with the reason.
        """


class Serial:
    """In this process."""

    def map(
        self,
        function: Callable[[Given], Made],
        items: Sequence[Given],
        *,
        failed: Callable[[Given, str], Made],
    ) -> Iterator[Made]:
        """The results in the order of ``items``; a crash is this process's own."""
        del failed
        return map(function, items)


class Pool:
    """In worker processes of this machine, of which any may die without ending the work."""

    def __init__(self, workers: int, *, timeout_s: float) -> None:
        """A worker that needs longer than ``timeout_s`` for one item is ended."""
        self._workers = workers
        self._timeout_s = timeout_s

    def map(
        self,
        function: Callable[[Given], Made],
        items: Sequence[Given],
        *,
        failed: Callable[[Given, str], Made],
    ) -> Iterator[Made]:
        """The results in the order of ``items``; a few inputs are in work for each worker."""
        place = 0
        while place < len(items):
            with worker_pool(self._workers) as pool:
                for made in self._from(pool, function, items[place:]):
                    yield made
                    place += 1
                if place == len(items):
                    return
            # The pool broke at or before this item; alone, it shows whether it is to blame.
            yield self._alone(function, items[place], failed=failed)
            place += 1

    def _from(
        self, pool: ProcessPoolExecutor, function: Callable[[Given], Made], items: Sequence[Given]
    ) -> Iterator[Made]:
        """Results until the pool breaks."""
        window = _Window(pool.submit, function, items, size=AHEAD * self._workers)
        try:
            for future in window:
                yield future.result(timeout=self._timeout_s)
        except BrokenProcessPool:
            return
        except FutureTimeout:
            _end_processes(pool)
        finally:
            window.cancel()

    def _alone(
        self,
        function: Callable[[Given], Made],
        item: Given,
        *,
        failed: Callable[[Given, str], Made],
    ) -> Made:
        with worker_pool(1) as pool:
            _check_start(pool)
            try:
                return pool.submit(function, item).result(timeout=self._timeout_s)
            except BrokenProcessPool:
                return failed(item, CRASHED)
            except FutureTimeout:
                _end_processes(pool)
                return failed(item, f"reading it took longer than {self._timeout_s:g} s, twice")


class Dask:
    """On the workers of a dask cluster, which see the same files and have scanfm installed."""

    def __init__(self, address: str) -> None:
        """``address`` is a scheduler's, such as ``tcp://10.0.0.5:8786``."""
        self._address = address

    def map(
        self,
        function: Callable[[Given], Made],
        items: Sequence[Given],
        *,
        failed: Callable[[Given, str], Made],
    ) -> Iterator[Made]:
        """The results in the order of ``items``."""
        client = self._connect()
        from distributed import KilledWorker

        try:
            workers = max(1, sum(client.ncores().values()))
            window = _Window(client.submit, function, items, size=AHEAD * workers)
            for item, future in zip(items, window, strict=True):
                try:
                    yield future.result()
                except KilledWorker:
                    yield failed(item, CRASHED)
        finally:
            client.close()

    def _connect(self) -> Any:
        try:
            from distributed import Client
        except ImportError:
            raise ExecutorError(
                "dask: the package distributed is missing; pip install 'scanfm[cluster]'"
            ) from None
        try:
            return Client(self._address, timeout=DASK_CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ExecutorError(
                f"dask: no scheduler answers at {self._address} ({type(error).__name__}); start one"
                " with dask scheduler, or leave dask out to work on this machine"
            ) from None


class _Window(Generic[Given]):
    """Futures of the items in their order, of which ``size`` are submitted at a time."""

    def __init__(
        self,
        submit: Callable[..., Any],
        function: Callable[[Given], Any],
        items: Sequence[Given],
        *,
        size: int,
    ) -> None:
        self._submit, self._function, self._items, self._size = submit, function, items, size
        self._waiting: deque[Future[Any]] = deque()

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._waiting.append(self._submit(self._function, item))
            if len(self._waiting) >= self._size:
                yield self._waiting.popleft()
        while self._waiting:
            yield self._waiting.popleft()

    def cancel(self) -> None:
        """Drop what no one waits for any more."""
        for future in self._waiting:
            future.cancel()


def _check_start(pool: ProcessPoolExecutor) -> None:
    """An item is to blame for a crash only where a process without it lives."""
    try:
        pool.submit(int).result()
    except BrokenProcessPool:
        raise ExecutorError(
            "worker processes die when they start (memory, or a main module without the guard"
            " __name__ == '__main__'); workers=0 works in this process"
        ) from None


def _end_processes(pool: ProcessPoolExecutor) -> None:
    """A worker that hangs does not listen, so its process is ended."""
    mine = set(getattr(pool, "_processes", None) or {})
    for process in multiprocessing.active_children():
        if process.pid in mine:
            with contextlib.suppress(OSError):
                process.kill()
