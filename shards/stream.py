"""Batches of crops, in an order that is the same for any number of ranks and workers.

Workers read, verify and cut integers; all arithmetic on intensities happens later, in batches on
the device. What is damaged is never delivered: it is told, counted, and replaced up to a limit.
"""

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Sampler

from shards.index import DamagedShard
from shards.streaming.batch import CropBatch, Damage, Row, received, sent, stack
from shards.streaming.corpus import Corpus, Drawn
from shards.streaming.crops import CropPlan, crop_box
from shards.streaming.reader import DamagedSample
from shards.streaming.undisturbed import read_undisturbed, signals_withheld
from shards.streaming.watchdog import Watchdog

MAX_ATTEMPTS = 32
"""Samples tried for one scan of the stream before its source is given up."""

Sent = tuple[Any, ...]
"""A batch on its way out of a worker."""

_log = logging.getLogger("scanfm.stream")


class StalledReader(ValueError):
    """A worker that gave no batch in time, or died."""


def crop_batches(
    corpus: Corpus,
    *,
    plan: CropPlan,
    micro_batch: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_position: int = 0,
    stop_position: int | None = None,
    num_workers: int = 0,
    max_damaged: int = 0,
    timeout_s: float = 600.0,
) -> Iterator[CropBatch]:
    """The batches of one rank, from a position of the global stream on.

    All ranks together take ``world_size * micro_batch`` positions at a time, rank 0 the first
    ``micro_batch`` of them; so the ranks' batches, joined, are those of one rank with a batch as
    large. Nothing but the seed and the position needs to be kept to go on, with as many ranks as
    before or others.

    Args:
        corpus: Where scans come from.
        plan: What is cut out of them.
        micro_batch: Crops of a batch.
        seed: Of the crops; the corpus has its own for the order.
        rank, world_size: Of this process among those that train.
        start_position: First position, of rank 0.
        stop_position: One past the last position of the last rank; None never ends.
        num_workers: Processes that read; 0 reads in this one.
        max_damaged: Damaged samples that are replaced; one more ends the stream.
        timeout_s: Longest wait for a batch. Without workers it is only warned of.

    Raises:
        DamagedShard: More samples than ``max_damaged`` are not what was written.
        StalledReader: No batch came in ``timeout_s``.
        ValueError: The positions are no whole number of batches.
    """
    together = world_size * micro_batch
    if stop_position is not None and (stop_position - start_position) % together:
        raise ValueError(
            f"positions {start_position} to {stop_position} are not a whole number of {together} "
            f"({world_size} ranks x {micro_batch})"
        )
    batches = _Batches(corpus, plan=plan, micro_batch=micro_batch, seed=seed)
    loader: DataLoader[Sent | DamagedShard] = DataLoader(
        batches,
        sampler=_Positions(start_position + rank * micro_batch, stop_position, step=together),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        timeout=timeout_s if num_workers else 0,
        worker_init_fn=read_undisturbed,
    )
    places = ", ".join(map(str, corpus.readers))
    timed = _with_waits(loader, timeout_s=timeout_s, num_workers=num_workers, places=places)
    return _delivered(timed, max_damaged=max_damaged)


def _with_waits(
    loader: Iterable[Sent | DamagedShard], *, timeout_s: float, num_workers: int, places: str
) -> Generator[CropBatch | DamagedShard, None, None]:
    """Time each wait, and say so where one is too long."""
    told = (
        f"no batch for {timeout_s:g} s: a reader hangs; look at the disk or server that holds "
        f"{places}, or raise reading.timeout_s"
    )
    failure: Exception | None = None
    with signals_withheld():
        batches = iter(loader)
    try:
        with Watchdog(timeout_s, bark=lambda: _log.warning("%s", told)) as watchdog:
            while True:
                began = time.perf_counter()
                try:
                    with watchdog.watching():
                        batch = next(batches, None)
                except RuntimeError as error:
                    failure = _stalled(error, told=told, num_workers=num_workers, places=places)
                    break
                if batch is None:
                    break
                if isinstance(batch, DamagedShard):
                    yield batch
                else:
                    yield received(batch)._replace(wait_s=time.perf_counter() - began)
    finally:
        del batches  # ends the workers now, and not whenever an error's traceback is let go
    if failure is not None:
        raise failure


def _stalled(error: RuntimeError, *, told: str, num_workers: int, places: str) -> Exception:
    """What a loader says of its workers, in words that help."""
    if "timed out" in str(error):
        return StalledReader(told)
    if "exited unexpectedly" in str(error):
        return StalledReader(
            f"one of {num_workers} reading processes of {places} died (out of memory or shared "
            f"memory?); lower train.workers, or look at the system's log"
        )
    return error


def _delivered(
    batches: Generator[CropBatch | DamagedShard, None, None], *, max_damaged: int
) -> Iterator[CropBatch]:
    """Log and count each damaged sample, once however often it is met."""
    met: set[tuple[str, str]] = set()
    with closing(batches):
        for batch in batches:
            if isinstance(batch, DamagedShard):
                raise batch
            for damage in batch.damaged:
                if (damage.shard, damage.key) not in met:
                    met.add((damage.shard, damage.key))
                    _tell(damage, met=len(met), max_damaged=max_damaged)
            yield batch


def _tell(damage: Damage, *, met: int, max_damaged: int) -> None:
    if met > max_damaged:
        raise _too_many(damage, met=met, max_damaged=max_damaged)
    told = "%s: %s is damaged at byte %d (%s); replaced by %s, %d of at most %d"
    _log.warning(told, *damage, met, max_damaged)


def _too_many(damage: Damage, *, met: int, max_damaged: int) -> DamagedShard:
    told = str(DamagedSample(damage.shard, damage.key, damage.offset, damage.what))
    if not max_damaged:
        return DamagedShard(told)
    return DamagedShard(f"{met} damaged samples, reading.max_damaged is {max_damaged}; last {told}")


class _Positions(Sampler[int]):
    """The first position of each batch; the loader keeps their order whatever its workers do."""

    def __init__(self, start: int, stop: int | None, *, step: int) -> None:
        self._start, self._stop, self._step = start, stop, step

    def __iter__(self) -> Iterator[int]:
        position = self._start
        while self._stop is None or position < self._stop:
            yield position
            position += self._step


class _Read(NamedTuple):
    """Crops of consecutive positions."""

    rows: list[Row]
    read_s: float
    damaged: list[Damage]


class _Batches(Dataset[Sent | DamagedShard]):
    """First position -> batch. Damage is handed over whole, a worker's raise would bury it."""

    def __init__(self, corpus: Corpus, *, plan: CropPlan, micro_batch: int, seed: int) -> None:
        self._corpus, self._plan = corpus, plan
        self._micro_batch, self._seed = micro_batch, seed

    def __getitem__(self, first: int) -> Sent | DamagedShard:
        try:
            return sent(self._batch(first))
        except DamagedShard as error:
            return error

    def _batch(self, first: int) -> CropBatch:
        began = time.perf_counter()
        positions = range(first, first + self._micro_batch)
        reads = [
            self._scan(scan, list(group))
            for scan, group in groupby(positions, key=lambda each: each // self._plan.per_scan)
        ]
        batch = stack(
            [row for read in reads for row in read.rows],
            plan=self._plan,
            read_s=sum(read.read_s for read in reads),
            damaged=[each for read in reads for each in read.damaged],
        )
        return batch._replace(decode_s=time.perf_counter() - began - batch.read_s)

    def _scan(self, scan: int, positions: list[int]) -> _Read:
        """The crops of one scan of the stream; alone, where one of them finds damage.

        So whether a crop is replaced never depends on which others share its batch.
        """
        try:
            return self._crops(self._corpus.drawn(scan), positions)
        except DamagedSample as error:
            if len(positions) == 1:
                return self._replacement(scan, positions, first=error)
        alone = [self._scan(scan, [position]) for position in positions]
        return _Read(
            [row for read in alone for row in read.rows],
            sum(read.read_s for read in alone),
            [each for read in alone for each in read.damaged],
        )

    def _replacement(self, scan: int, positions: list[int], *, first: DamagedSample) -> _Read:
        """The next sample of the same source that is whole."""
        failed = {first.key: first}
        for attempt in range(1, MAX_ATTEMPTS):
            drawn = self._corpus.drawn(scan, attempt=attempt)
            sample = self._corpus.sample(drawn)
            if sample.key in failed:
                continue
            try:
                read = self._crops(drawn, positions)
            except DamagedSample as error:
                failed[error.key] = error
                continue
            found = [
                Damage(each.shard, each.key, each.offset, each.what, replaced_by=sample.key)
                for each in failed.values()
            ]
            return read._replace(damaged=found)
        raise first

    def _crops(self, drawn: Drawn, positions: list[int]) -> _Read:
        sample = self._corpus.sample(drawn)
        reader = self._corpus.sources[drawn.source].reader
        boxes = [
            crop_box(position, sample=sample, plan=self._plan, seed=self._seed)
            for position in positions
        ]
        crops, read_s = reader.read_crops(
            sample, boxes=boxes, sequences=self._plan.sequences, masks=self._plan.masks
        )
        day = float(reader.days[drawn.sample])
        rows = [
            Row(position, sample, box, crop, drawn.source, day)
            for position, box, crop in zip(positions, boxes, crops, strict=True)
        ]
        return _Read(rows, read_s, damaged=[])


def _unchanged(batch: Any) -> Any:
    return batch
