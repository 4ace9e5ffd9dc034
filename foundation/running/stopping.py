"""A job that is asked to stop: the signal is noted, the step ends, the ranks save together.

SLURM warns with SIGTERM (preemption, ``scancel``) or the signal of ``--signal`` (time limit), a
terminal with SIGINT. A rank only notes them here; whether *any* rank was asked is for the ranks to
agree on, because a signal reaches some of them a step earlier than others.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_STDERR = 2


class StopRequest:
    """What this rank was asked; ``with StopRequest().listen() as stop: ... stop.asked``."""

    def __init__(self) -> None:
        self._asked: str | None = None
        self._owner = os.getpid()

    @property
    def asked(self) -> str | None:
        """Name of the first signal that asked, such as ``SIGTERM``; None: go on."""
        return self._asked

    @contextmanager
    def listen(self) -> Iterator[Self]:
        """Note SIGTERM, SIGUSR1 and SIGINT in here instead of ending by them.

        A second SIGINT ends the process at once, even inside a call that never returns; the other
        signals may come as often as they like. Handlers are then what they were before.

        No rank may leave this before all have saved: a signal that comes later ends it.
        """
        assert threading.current_thread() is threading.main_thread(), "signals reach it alone"
        self._owner = os.getpid()
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a child between its fork and its own handlers
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        first, self._asked = self._asked is None, self._asked or signal.Signals(number).name
        if (first or number == signal.SIGINT) and os.environ.get("RANK", "0") == "0":
            _tell(self._line(number))

    def _line(self, number: int) -> str:
        line = f"{signal.Signals(number).name}: stopping after this step and saving"
        return f"{line}; once more stops at once" if number == signal.SIGINT else line


def _tell(line: str) -> None:
    # Python's own stderr may be in the middle of a write, which a handler must not re-enter.
    try:
        os.write(_STDERR, f"\n{line}\n".encode())
    except OSError:
        return  # the terminal has gone; the request stands all the same
