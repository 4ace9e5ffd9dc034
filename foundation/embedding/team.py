"""The processes that share one job of embedding, as ``foundation.launch`` starts them."""

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from recipes.command import USER_ERROR

Value = TypeVar("Value")

_PATIENCE = datetime.timedelta(days=7)
"""The last process may be at its scans long after the first is through with its own."""
_OTHERS_SPEAK_S = 2.0


class LostProcess(ValueError):
    """A process that shared the job has gone."""


@dataclass(frozen=True)
class Team:
    """One process of ``size``; alone unless a launcher says otherwise."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Writes the table, and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here.

        Raises:
            LostProcess: One has gone; of that the first process tells, the others leave.
        """
        if self.size == 1:
            return
        try:
            torch.distributed.barrier()
        except RuntimeError:
            if self.is_first:
                raise LostProcess(
                    "another process of the job has gone; start the command again, what was "
                    "finished is kept"
                ) from None
            # The launcher ends every process once one has failed: let that one finish its line.
            time.sleep(_OTHERS_SPEAK_S)
            sys.exit(USER_ERROR)

    def first_alone(self, make: Callable[[], Value]) -> Value:
        """``make`` by the first process and then by the others: a mistake is told once."""
        if not self.is_first:
            self.wait()
        value = make()
        if self.is_first:
            self.wait()
        return value

    def device(self, name: str) -> str:
        """``cuda`` is the next GPU for each process of a machine; any other name stays."""
        if name != "cuda" or self.size == 1 or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


@contextmanager
def joined() -> Iterator[Team]:
    """This process as part of what a launcher started, by the variables torch reads."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Team(torch.distributed.get_rank(), int(os.environ.get("LOCAL_RANK", "0")), size)
    finally:
        torch.distributed.destroy_process_group()
