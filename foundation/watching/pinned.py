"""The pinned scans: a few subjects of the run's own shards that its health is measured on.

Which they are follows from the seed and the shards; each gives one crop, from the middle of its
foreground. They are read once, and stay in memory as the integers that were stored.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from shards.streaming.batch import CropBatch, Row, stack
from shards.streaming.corpus import Corpus, column_value
from shards.streaming.crops import Box, CropPlan, crop_extent, crop_start
from shards.streaming.order import random_words
from shards.streaming.reader import DamagedSample

_MOST_CLASSES = 8

_log = logging.getLogger("scanfm.health")


class PinnedScan(NamedTuple):
    """Where one lies, and the class it is in."""

    source: int
    """of the corpus"""
    sample: int
    """its place in the source's folder"""
    label: str | None


class PinnedSet(NamedTuple):
    """A rank's share of the pinned scans.

    Attributes:
        batches: As of the stream, but for ``position``, which counts pinned scans.
        labels: Of each scan of all batches.
    """

    batches: list[CropBatch]
    labels: list[str | None]


class _Facts(NamedTuple):
    source: int
    sample: int
    subject: str
    value: Any


def pinned_scans(
    corpus: Corpus, *, num_scans: int, label: str | None, seed: int
) -> list[PinnedScan]:
    """Choose scans of different subjects at random, with a label evenly over its classes.

    Args:
        corpus: Where scans come from.
        num_scans: At most; a corpus of fewer subjects gives fewer.
        label: Column of the classes, or None.
        seed: Of the choice.

    Raises:
        ValueError: The label does not divide the subjects into classes.
    """
    facts = list(_facts(corpus, label=label))
    order = np.argsort(random_words(f"pinned {seed}", len(facts)), kind="stable")
    first: dict[str, _Facts] = {}
    for place in order:
        first.setdefault(facts[place].subject, facts[place])
    shuffled = list(first.values())
    names = _classes([each.value for each in shuffled])
    if label is not None and len({name for name in names if name is not None}) < 2:
        raise ValueError(
            f"health.label: the column {label!r} does not divide the subjects of "
            f"{', '.join(map(str, corpus.readers))} into classes; choose another, or null"
        )
    turns: Counter[str | None] = Counter()
    ranked = []
    for place, (each, name) in enumerate(zip(shuffled, names, strict=True)):
        ranked.append(
            (name is None, turns[name], place, PinnedScan(each.source, each.sample, name))
        )
        turns[name] += 1
    return [scan for *_, scan in sorted(ranked)[:num_scans]]


def read_pinned(
    corpus: Corpus,
    *,
    scans: list[PinnedScan],
    plan: CropPlan,
    micro_batch: int,
    rank: int,
    world_size: int,
    max_damaged: int,
) -> PinnedSet:
    """Read this rank's share of the scans, ``micro_batch`` to a batch.

    A damaged one is left out with a warning, where ``max_damaged`` allows any.

    Raises:
        DamagedSample: ``max_damaged`` is 0, and one is damaged.
    """
    plan = plan._replace(masks=())  # what a loss ignores, a backbone sees
    rows: list[Row] = []
    labels: list[str | None] = []
    for place in range(rank, len(scans), world_size):
        try:
            rows.append(_row(corpus, scan=scans[place], place=place, plan=plan))
        except DamagedSample as error:
            if not max_damaged:
                raise
            _log.warning("a pinned scan is left out: %s", error)
            continue
        labels.append(scans[place].label)
    starts = range(0, len(rows), micro_batch)
    chunks = [rows[start : start + micro_batch] for start in starts]
    return PinnedSet([stack(rows, plan=plan, read_s=0.0, damaged=[]) for rows in chunks], labels)


def _facts(corpus: Corpus, *, label: str | None) -> Iterator[_Facts]:
    """Of every scan that can be drawn; records are read once for each folder."""
    for reader in corpus.readers:
        found = [
            (scan["subject"], None if label is None else column_value(scan, label))
            for scan in reader.samples.scans()
        ]
        for number, source in enumerate(corpus.sources):
            if source.reader is reader:
                for sample in source.indices.tolist():
                    yield _Facts(number, sample, *found[sample])


def _classes(values: list[Any]) -> list[str | None]:
    """The class of each value; numbers of many values are cut at their median."""
    known = [value for value in values if value is not None]
    numbers = [value for value in known if isinstance(value, int | float)]
    if len(numbers) == len(known) and len(set(known)) > _MOST_CLASSES:
        middle = float(np.median(numbers))
        return [None if value is None else str(value > middle) for value in values]
    sizes = Counter(known)
    return [str(value) if sizes[value] > 1 else None for value in values]


def _row(corpus: Corpus, *, scan: PinnedScan, place: int, plan: CropPlan) -> Row:
    """The crop in the middle of a scan's foreground."""
    reader = corpus.sources[scan.source].reader
    sample = reader.samples[scan.sample]
    extent = crop_extent(plan, spacing_mm=sample.spacing_mm)
    middle = [(first + last) // 2 for first, last in sample.foreground_box]
    start = crop_start(
        place,
        seed=0,  # a box of one voxel leaves nothing to draw
        shape=sample.shape,
        extent=extent,
        box=[(centre, centre + 1) for centre in middle],
    )
    box = Box(start, extent)
    (crop,), _ = reader.read_crops(sample, boxes=[box], sequences=plan.sequences, masks=plan.masks)
    return Row(place, sample, box, crop, scan.source, float(reader.days[scan.sample]))
