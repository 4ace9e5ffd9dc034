"""Reading processes under the signals that a cluster sends to all: they read on, and end."""

import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import _utils as loading

from shards.stream import crop_batches
from shards.streaming.batch import CropBatch
from shards.streaming.corpus import open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reading import FolderConfig
from shards.streaming.undisturbed import read_undisturbed, signals_withheld
from tests.written_shards import plain, write_shards

PLAN = CropPlan((6, 8, 5))
ENDS_S = 60

FORK = get_context("fork")


class Endless(torch.utils.data.Dataset[int]):
    """Every read takes for ever."""

    def __getitem__(self, index: int) -> int:
        time.sleep(600)
        return index

    def __len__(self) -> int:
        return 100


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("ct") / "shards", plain(9, box=[[2, 7]] * 3))


def stream(ct: Path, *, num_workers: int) -> Iterator[CropBatch]:
    corpus = open_corpus([FolderConfig(folder=str(ct))], plan=PLAN, seed=5)
    return crop_batches(
        corpus,
        plan=PLAN,
        micro_batch=2,
        seed=7,
        stop_position=60,
        num_workers=num_workers,
        timeout_s=ENDS_S,
    )


def told_by_another(pids: list[int], *names: str) -> None:
    """Signals that do not come from the rank: SLURM's, a terminal's."""
    each = "; ".join(f"kill -s {name} {' '.join(map(str, pids))}" for name in names)
    subprocess.run(["sh", "-c", each], check=True)


def readers_of(batches: Iterator[CropBatch]) -> tuple[CropBatch, list[psutil.Process]]:
    """The first batch, and the processes that came with it: other tests may have left some."""
    others = psutil.Process().children()
    first = next(batches)
    return first, [each for each in psutil.Process().children() if each not in others]


def test_signals_in_the_middle_of_a_stream_change_nothing(ct: Path) -> None:
    undisturbed = list(stream(ct, num_workers=0))
    assert len(undisturbed) == 30
    batches = stream(ct, num_workers=2)
    first, readers = readers_of(batches)
    found = [first]
    assert len(readers) == 2
    for batch in batches:
        found.append(batch)
        if len(found) < 20:
            told_by_another([each.pid for each in readers], "TERM", "USR1", "INT")
        if len(found) == 20:
            assert all(each.is_running() for each in readers)
    for batch, expected in zip(found, undisturbed, strict=True):
        assert torch.equal(batch.position, expected.position)
        assert torch.equal(batch.volume, expected.volume)
    _, alive = psutil.wait_procs(readers, timeout=ENDS_S)
    assert not alive


def test_an_order_of_the_rank_ends_the_readers_of_a_stream(ct: Path) -> None:
    batches = stream(ct, num_workers=1)
    _, (reader,) = readers_of(batches)
    reader.terminate()
    assert not psutil.wait_procs([reader], timeout=ENDS_S)[1]
    del batches


def test_the_rank_itself_hears_what_came_while_it_started_its_readers() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with signals_withheld():
            signal.raise_signal(signal.SIGUSR1)  # to this thread: others may not withhold it
            assert not heard
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def rank(pids: Connection, *, closes: bool) -> None:
    """A process with two readers in the middle of a read."""
    loading.MP_STATUS_CHECK_INTERVAL = 0.3  # what the loader waits before its SIGTERM
    loader = torch.utils.data.DataLoader(
        Endless(), batch_size=None, num_workers=2, worker_init_fn=read_undisturbed
    )
    with signals_withheld():
        batches = iter(loader)
    pids.send([each.pid for each in psutil.Process().children()])
    pids.recv()
    if not closes:
        time.sleep(600)
    del batches


@pytest.mark.parametrize("closes", [False, True], ids=["killed", "closes"])
def test_readers_that_hang_end_with_their_rank(closes: bool) -> None:
    """It sends them SIGTERM, which from a rank is an order; or is gone."""
    here, there = Pipe()
    process = FORK.Process(target=rank, args=(there,), kwargs={"closes": closes})
    process.start()
    pids: list[int] = here.recv()
    assert len(pids) == 2
    told_by_another(pids, "TERM", "USR1", "INT")
    readers = [psutil.Process(pid) for pid in pids]
    assert not psutil.wait_procs(readers, timeout=0.3)[0]
    here.send("go on")
    if not closes:
        process.kill()
    assert not psutil.wait_procs(readers, timeout=ENDS_S)[1]
    process.join(ENDS_S)
    assert process.exitcode == (0 if closes else -signal.SIGKILL)
