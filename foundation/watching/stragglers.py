"""Every rank's seconds, and the rank whose own work holds the others up."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from foundation.objective.collectives import num_ranks
from foundation.watching.stopwatch import Times

STRETCHES = (
    "wait",
    "augment",
    "forward",
    "backward",
    "optimiser",
    "health",
    "log",
    "checkpoint",
)
"""Of the loop, one behind the other: together all of the time."""
BESIDE = ("read", "decode", "communication")
"""Seconds that are not a stretch of their own: a worker's, which pass beside the loop or within its
wait, and those in collective calls, which lie within the loop's stretches."""

_OWN = ("wait", "augment", "forward", "backward", "optimiser")
_LEAST_SHARE = 0.1


class Straggler(NamedTuple):
    """A rank whose own work takes longer than that of most."""

    rank: int
    stretch: str
    """where most of the excess is"""
    behind_s: float
    """seconds more than the median of ranks"""
    share: float
    """of that median"""


def with_communication(times: Times) -> dict[str, float]:
    """This rank's seconds, to a microsecond, in the order in which a line of the log has them."""
    waiting = sum(times.waiting.values())
    named = {**times.whole, **({"communication": waiting} if times.waiting else {})}
    return {name: round(named[name], 6) for name in (*STRETCHES, *BESIDE) if name in named}


def gather_times(times: Times) -> list[Times]:
    """The times of every rank, in the order of ranks; a collective call, of a few numbers."""
    if num_ranks() == 1:
        return [times]
    names = (*STRETCHES, *BESIDE)
    mine = torch.tensor(
        [[part.get(name, 0.0) for name in names] for part in times], dtype=torch.float64
    )
    found = [torch.empty_like(mine) for _ in range(num_ranks())]
    dist.all_gather(found, mine)
    return [Times(*(_named(row, names) for row in each.tolist())) for each in found]


def compact(ranks: Sequence[Times]) -> dict[str, list[float]]:
    """``{"wait": [of rank 0, of rank 1, ...]}`` to a tenth of a millisecond, of what took any."""
    seconds = [with_communication(times) for times in ranks]
    return {
        name: [round(each.get(name, 0.0), 4) for each in seconds]
        for name in (*STRETCHES, *BESIDE)
        if any(name in each for each in seconds)
    }


def find_straggler(ranks: Sequence[Times]) -> Straggler | None:
    """The rank with most work of its own, where that is over a tenth above the median of ranks.

    Work of its own is what each update takes without the waiting in collective calls: all ranks
    wait there for the slowest, and only its own share tells that one from the others. The median
    is the lower one, so that of two ranks one can be slower.
    """
    own = [_own(times) for times in ranks]
    totals = [sum(each.values()) for each in own]
    usual = statistics.median_low(totals)
    rank = max(range(len(ranks)), key=totals.__getitem__)
    behind_s = totals[rank] - usual
    if behind_s <= _LEAST_SHARE * usual:
        return None
    excess = {
        name: own[rank][name] - statistics.median_low([each[name] for each in own]) for name in _OWN
    }
    stretch = max(_OWN, key=excess.__getitem__)
    return Straggler(rank, stretch, round(behind_s, 4), round(behind_s / max(usual, 1e-9), 4))


def _own(times: Times) -> dict[str, float]:
    return {name: times.whole.get(name, 0.0) - times.waiting.get(name, 0.0) for name in _OWN}


def _named(row: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    return {name: seconds for name, seconds in zip(names, row, strict=True) if seconds}
