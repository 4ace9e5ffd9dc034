"""How `shards.bench` measures: interleaved repeats on one core, memory by PSS, the machine's facts.

Times mean nothing by themselves on a shared machine; ratios of contenders that took turns do.
"""

import io
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

LIBRARIES = ("numpy", "torch", "blosc2", "xxhash", "nibabel", "torchio", "webdataset", "monai")
SAMPLE_S = 0.004  # between two looks at a worker's memory
BURN_BYTES = 8_000_000

Given = TypeVar("Given")
Made = TypeVar("Made")
Name = TypeVar("Name")


class Spread(NamedTuple):
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One contender of one comparison.

    Attributes:
        part: Which comparison.
        contender: Whose figure it is.
        spread: In ``unit``.
        ratio: What the requirement is about, or None where the figure only informs.
        at_least, at_most: The requirement on ``ratio``; both None where there is none.
    """

    part: str
    contender: str
    spread: Spread
    unit: str
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def required(self) -> str:
        """``>= 100``, ``<= 1.5`` or nothing."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def is_met(self) -> bool | None:
        """None where nothing is required."""
        if self.ratio is None or not self.required:
            return None
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return self.at_most is None or self.ratio <= self.at_most


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of one value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def take_turns(
    contenders: Mapping[Name, Callable[[Given], object]], given: Iterable[Given]
) -> dict[Name, list[float]]:
    """Seconds of each contender for each of ``given``; drift of the machine meets all alike."""
    taken: dict[Name, list[float]] = {name: [] for name in contenders}
    for each in given:
        for name, run in contenders.items():
            began = time.perf_counter()
            run(each)
            taken[name].append(time.perf_counter() - began)
    return taken


def one_thread() -> None:
    """No library of this process, or of its children, computes on more than one thread."""
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)


@contextmanager
def quietly() -> Iterator[None]:
    """What another library says of itself while it is loaded is no part of a table."""
    with (
        warnings.catch_warnings(action="ignore"),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        yield


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, where the system lets it choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def num_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(pid: int) -> int:
    """What a process adds to the machine: PSS, or RSS where the system does not tell it."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    (line,) = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def watch(future: Future[Made], *, pid: int) -> tuple[Made, int]:
    """The result of a worker's task, and the most memory seen while it ran."""
    peak = 0
    while not future.done():
        peak = max(peak, memory_bytes(pid))
        time.sleep(SAMPLE_S)
    return future.result(), peak


def burn(seconds: float) -> float:
    """Rounds per second of hashing and copying: what one process gets from this machine."""
    content = bytearray(BURN_BYTES)
    rounds, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        sha256(bytes(content)).digest()
        rounds += 1
    return rounds / (time.perf_counter() - began)


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures: no names."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return {
        "cores": num_cores(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": found,
    }
