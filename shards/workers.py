"""Worker processes: they leave Ctrl-C to the process that started them, and die in one line."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context


class WorkerDied(ValueError):
    """A worker process ended without an answer."""


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; only a main thread may ask for one.

    Raises:
        WorkerDied: One of them ended without an answer.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        _start(pool, workers)
        try:
            yield pool
        except BrokenProcessPool:
            raise WorkerDied(
                "a worker process died (out of memory, or a decoder crashed); run again with"
                " one worker to see where"
            ) from None


def _start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start every process: what this one ignores, they ignore from their first line on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(workers):
            pool.submit(int)  # each starts a process, as none is up and idle yet
    finally:
        signal.signal(signal.SIGINT, before)
