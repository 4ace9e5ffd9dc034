"""Times every collective call of this process, DeepSpeed's and our own, without slowing any.

DeepSpeed's own communication log makes the GPU finish at each call. Whatever calls them, all calls
go through the methods of torch's process group, and wait by those of its ``Work``: those are timed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from foundation.watching.heartbeat import Heartbeat
from foundation.watching.stopwatch import Stopwatch

# Of several versions of torch; not every one has all of them.
_CALLS = (
    "allreduce",
    "allreduce_coalesced",
    "reduce",
    "broadcast",
    "allgather",
    "_allgather_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "gather",
    "gather_single",
    "scatter",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "alltoall",
    "alltoall_base",
    "all_to_all_single",
    "barrier",
    "_end_coalescing",
)
_WAIT = "wait"


@contextlib.contextmanager
def timing_collectives(watch: Stopwatch, *, heartbeat: Heartbeat | None) -> Iterator[None]:
    """While it lasts, tell the watch of collective calls, and the heartbeat which one this is in.

    Calls that a gradient's reduction does beside the backward pass count as far as something waits
    for them.
    """
    plain = [
        # As it lies in the class: what getattr gives would not bind to an object again.
        (owner, name, vars(owner)[name])
        for owner, names in ((dist.ProcessGroup, _CALLS), (dist.Work, (_WAIT,)))
        for name in names
        if name in vars(owner)
    ]
    for owner, name, _ in plain:
        setattr(owner, name, _timed(getattr(owner, name), watch=watch, heartbeat=heartbeat))
    try:
        yield
    finally:
        for owner, name, call in plain:
            setattr(owner, name, call)


def _timed(
    call: Callable[..., Any], *, watch: Stopwatch, heartbeat: Heartbeat | None
) -> Callable[..., Any]:
    name = call.__name__

    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if heartbeat is not None:
            heartbeat.inside = name
        try:
            with watch.collective():
                return call(*args, **kwargs)
        finally:
            if heartbeat is not None:
                heartbeat.inside = None

    return timed
