"""Worker processes: they leave Ctrl-C to the process that started them, and end when it does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

FEW = 4_000  # items that are done before the processes have started
CHUNK = 64


class WorkerDied(ValueError):
    """A worker process ended without an answer."""


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; only a main thread may ask for one.

    Raises:
        WorkerDied: One of them ended without an answer.
    """
    with ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        _start(pool, workers)
        try:
            yield pool
        except BrokenProcessPool:
            raise WorkerDied(
                "a worker process died (out of memory, or a decoder crashed); run again with"
                " one worker to see where"
            ) from None


def ordered_map(workers: int) -> Callable[..., Iterator[Any]]:
    """Like ``map`` over a sequence; many small items are done in worker processes."""

    def apply(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        if workers < 2 or len(items) < FEW:
            yield from map(function, items)
            return
        with worker_pool(workers) as pool:
            yield from pool.map(function, items, chunksize=CHUNK)

    return apply


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its workers, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        wait([parent.sentinel])  # the system closes the other end, whatever the parent died of
        os._exit(1)  # whoever would read the rest of its work is gone

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _keep_memory() -> dict[str, str]:
    """For glibc: what a scan let go of is kept for the next one.

    Else the system clears tens of megabytes anew for every array, an eighth of a conversion's time.
    """
    return {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def _start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start every process: what this one ignores, they ignore from their first line on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    added = {name: value for name, value in _keep_memory().items() if name not in os.environ}
    os.environ.update(added)
    try:
        for _ in range(workers):
            pool.submit(int)  # each starts a process, as none is up and idle yet
    finally:
        signal.signal(signal.SIGINT, before)
        for name in added:
            del os.environ[name]
