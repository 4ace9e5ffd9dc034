"""One ordered map: the same results from this process, from workers that die, and from dask."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.building.executors import CRASHED, Dask, ExecutorError, Pool, Serial

CRASHES, HANGS = 5, 8


def _square(item: int) -> int:
    return item * item


def _fragile(item: int) -> int:
    if item == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == HANGS:
        time.sleep(3600)
    return item * item


def _failed(item: int, reason: str) -> str:
    return f"{item}: {reason}"


def test_the_results_keep_the_order_of_the_items() -> None:
    items = list(range(23))
    expected = [item * item for item in items]
    assert list(Serial().map(_square, items, failed=_failed)) == expected
    assert list(Pool(2, timeout_s=60).map(_square, items, failed=_failed)) == expected
    assert list(Pool(2, timeout_s=60).map(_square, [], failed=_failed)) == []


def test_a_worker_that_crashes_or_hangs_costs_its_own_item_only() -> None:
    found = list(Pool(2, timeout_s=3).map(_fragile, list(range(11)), failed=_failed))
    expected: list[int | str] = [item * item for item in range(11)]
    expected[CRASHES] = f"{CRASHES}: {CRASHED}"
    expected[HANGS] = f"{HANGS}: reading it took longer than 3 s, twice"
    assert found == expected


def test_a_pool_that_is_left_early_ends() -> None:
    results: Iterator[int] = Pool(2, timeout_s=60).map(_square, list(range(100)), failed=_failed)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]


def test_workers_end_with_a_parent_that_is_killed(project: Path) -> None:
    """One that works, and one that waits for work: they hold the other end of the pipe."""
    program = (
        "import time; from shards.building.workers import worker_pool\n"
        "with worker_pool(2) as pool:\n"
        "    pool.submit(time.sleep, 600)\n"
        "    print(pool.submit(int).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=project,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    process.kill()
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def test_dask_by_address() -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        found = list(Dask(address).map(_square, list(range(30)), failed=_failed))
    assert found == [item * item for item in range(30)]


def test_no_dask_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.building.executors.DASK_CONNECT_S", 1)
    with pytest.raises(ExecutorError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        next(Dask("tcp://127.0.0.1:9").map(_square, [1], failed=_failed))
