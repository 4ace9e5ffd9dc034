"""The processes of one training job: who I am, and what rank 0 decides for all.

Works under ``torchrun``, the deepspeed launcher and as a plain ``python -m`` (one process).
"""

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from foundation.running.cluster import srun_variables
from foundation.watching.behind import describe, find_lost, lost_the_others
from recipes.command import USER_ERROR, errors_in_one_line, run_recipe
from recipes.load import Section

Value = TypeVar("Value")
Schema = TypeVar("Schema", bound=Section)

_LEADER_SPEAKS_S = 2.0
_PATIENCE = timedelta(days=30)


class LostRank(ValueError):
    """Another process of the job has gone."""


class Ranks(NamedTuple):
    """This process among those of the job."""

    rank: int
    world_size: int
    device: torch.device


def run_on_ranks(main: Callable[[Schema], None], schema: type[Schema], *, doc: str) -> NoReturn:
    """``run_recipe`` for a command of several processes: a mistake in the recipe is told once."""
    # The deepspeed launcher says in a word, too, what its variable says.
    sys.argv = [word for word in sys.argv if not word.startswith("--local_rank")]
    with errors_in_one_line():
        os.environ.update(srun_variables(os.environ))
    if int(os.environ.get("RANK", "0")) == 0:
        run_recipe(main, schema, doc=doc)
    silence = contextlib.ExitStack()
    silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
    silence.enter_context(contextlib.redirect_stdout(io.StringIO()))

    def speak(config: Schema) -> None:
        silence.close()
        main(config)

    try:
        run_recipe(speak, schema, doc=doc)
    except SystemExit:
        if sys.stderr is not sys.__stderr__:
            time.sleep(_LEADER_SPEAKS_S)
        raise


def join_ranks(*, timeout_s: float) -> Ranks:
    """Meet the other processes; a collective call that waits longer than ``timeout_s`` fails.

    Without a launcher's variables this process is the whole job. ``DS_ACCELERATOR=cpu`` keeps a
    job off the GPUs.
    """
    for name, value in _alone().items():
        os.environ.setdefault(name, value)
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        # A task that SLURM shows one GPU only counts that one as its first.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        device, backend = torch.device("cpu"), "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def leave_ranks() -> None:
    """Close the process group, so that no rank waits for one that has gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_zero(decide: Callable[[], Value]) -> Value:
    """Run ``decide`` on rank 0 and return its value on every rank.

    A ValueError or OSError it raises ends the job: rank 0 raises it, the others leave without a
    word (the same line from every rank helps nobody).
    """
    return _from_rank_zero(decide, group=None)


def _from_rank_zero(decide: Callable[[], Value], *, group: Any) -> Value:
    box: list[Value | None] = [None]
    failure: ValueError | OSError | None = None
    if dist.get_rank() == 0:
        try:
            box = [decide()]
        except (ValueError, OSError) as error:
            failure = error
    note = [failure is not None, *box]
    dist.broadcast_object_list(note, src=0, group=group, device=torch.device("cpu"))
    if failure is not None:
        raise failure
    if note[0]:
        leave_quietly()
    return note[1]  # type: ignore[return-value]


def patiently_from_rank_zero(decide: Callable[[], Value]) -> Value:
    """:func:`from_rank_zero` for what may take days; the others wait however long that is."""
    group = dist.new_group(timeout=_PATIENCE, backend="gloo")
    try:
        return _from_rank_zero(decide, group=group)
    finally:
        dist.destroy_process_group(group)


def leave_quietly() -> NoReturn:
    """End a rank that has nothing to add to what rank 0 says."""
    # A launcher stops every rank once the first has failed: let rank 0 finish its line.
    time.sleep(_LEADER_SPEAKS_S)
    sys.exit(USER_ERROR)


def stop_all(error: ValueError) -> NoReturn:
    """End the job with an error that every rank has found: rank 0 raises it."""
    if dist.get_rank() == 0:
        raise error
    leave_quietly()


def mean_over_ranks(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean of each scalar over all ranks; a value that is not finite anywhere shows everywhere."""
    together = torch.stack([value.detach().double() for value in values.values()])
    dist.all_reduce(together)
    means = (together / dist.get_world_size()).tolist()
    return dict(zip(values, means, strict=True))


def gather_from_ranks(value: Value) -> list[Value]:
    """The value of every rank, in the order of ranks, on every rank."""
    found: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def losing_a_rank_is_an_error(folder: Path) -> Iterator[None]:
    """Turn the broken connection of a rank that died elsewhere into a LostRank that names it.

    Args:
        folder: Of the run, where ranks leave their signs of life.
    """
    try:
        yield
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        told = describe(find_lost(folder, world_size=dist.get_world_size()))
        raise LostRank(
            f"rank {dist.get_rank()} lost the others in the middle of a step: {told}; the last "
            f"checkpoint is kept"
        ) from error


def _alone() -> dict[str, str]:
    if "RANK" in os.environ:
        return {"LOCAL_RANK": "0"}
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
