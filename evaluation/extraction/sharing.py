"""Several processes that extract features together, of which one goes on to score them.

    python -m foundation.launch 2 evaluation.run RECIPE

Files are the seam: each rank fills its share of the cache, all meet, and rank 0 reads it. Without a
launcher there is one rank and no process group.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from foundation.running.ranks import LostRank, from_rank_zero, join_ranks, leave_ranks
from foundation.watching.behind import lost_the_others

Item = TypeVar("Item")
Value = TypeVar("Value")

_LONGEST_WAIT_S = 6 * 3600.0
_LAUNCHER_ENDS_US_S = 4.0


class Share(NamedTuple):
    """This process among those that extract."""

    rank: int
    world_size: int
    device: str
    """``cpu``, or this rank's GPU"""

    @property
    def is_first(self) -> bool:
        """Of the one that speaks, scores and writes the store."""
        return self.rank == 0


ALONE = Share(0, 1, "cpu")


def join_share(*, device: str) -> Share:
    """Meet the other processes, if a launcher has started any.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``; each rank then has a GPU of its own, if there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return Share(0, 1, device)
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    ranks = join_ranks(timeout_s=_LONGEST_WAIT_S)
    return Share(ranks.rank, ranks.world_size, str(ranks.device))


def decide(share: Share, choose: Callable[[], Value]) -> Value:
    """What rank 0 chooses, on every rank; an error of its own ends the job with one line."""
    if share.world_size == 1:
        return choose()
    with _losing_a_rank_is_one_line():
        return from_rank_zero(choose)


def shared(share: Share, items: Callable[[], Sequence[Item]]) -> Sequence[Item]:
    """This rank's items of those that rank 0 finds."""
    return decide(share, items)[share.rank :: share.world_size]


def leave_to_first(share: Share) -> None:
    """Wait for all, then rank 0 goes on alone and the others end, successfully and silently."""
    if share.world_size == 1:
        return
    with _losing_a_rank_is_one_line():
        dist.all_reduce(torch.zeros(1))
    leave_ranks()
    if not share.is_first:
        sys.exit(0)


@contextmanager
def _losing_a_rank_is_one_line() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        # A launcher ends this process meanwhile, and names the lost rank itself.
        time.sleep(_LAUNCHER_ENDS_US_S)
        raise LostRank(
            "another process of the job has gone while features were extracted; what was finished "
            "is kept, start the command again"
        ) from error
