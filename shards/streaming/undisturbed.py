"""Reading processes that go on when the whole job is told to stop.

SLURM signals every process of a step, a terminal every one of its group. The rank is to finish its
step and save, so what reads for it must not end by such a signal; only the rank ends it, by closing
the stream or by being gone.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_WITHHELD = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
_LOOK_S = 1.0


@contextmanager
def signals_withheld() -> Iterator[None]:
    """Processes that are started in here are born with the signals blocked.

    Else one that comes before ``read_undisturbed`` has run would end them. This process receives
    its own when it leaves here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WITHHELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_undisturbed(worker: int) -> None:
    """Begin a reading process; a DataLoader's ``worker_init_fn``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WITHHELD)  # of all threads started from here on
    name = f"signals-{worker}"
    threading.Thread(target=_end_with, args=(os.getppid(),), name=name, daemon=True).start()


def _end_with(parent: int) -> None:
    """Take the signals, and tell the rank's SIGTERM, which is an order, from all others."""
    while os.getppid() == parent:
        told = signal.sigtimedwait(_WITHHELD, _LOOK_S)
        if told is not None and told.si_signo == signal.SIGTERM and told.si_pid == parent:
            break
    os._exit(0)
