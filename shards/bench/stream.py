"""Crops a second out of the stream, by number of reading processes and of crops a scan."""

import itertools
import time
from pathlib import Path

from shards.bench.timing import Line, spread
from shards.bench.volume import Sizes, build_shards, write_scans
from shards.stream import crop_batches
from shards.streaming.corpus import open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reading import FolderConfig

PART = "stream"
MICRO_BATCH = 4
SCANS = 4


def stream_lines(folder: Path, sizes: Sizes) -> list[Line]:
    """Crops a second, and how many times those of no worker and one crop a scan.

    Processes start outside the time.
    """
    write_scans(folder / "nifti", sizes, count=min(sizes.scans, SCANS))
    build_shards(folder / "nifti", folder / "shards")
    cases = list(itertools.product((0, 1, 2), (1, 4)))
    rates: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(sizes.build_repeats):
        for workers, per_scan in cases:
            rate = _rate(folder / "shards", sizes, workers=workers, per_scan=per_scan)
            rates[workers, per_scan].append(rate)
    alone = spread(rates[0, 1]).median
    return [
        Line(
            PART,
            f"{workers} workers, {per_scan} crops a scan",
            spread(each),
            "crops/s",
            spread(each).median / alone,
        )
        for (workers, per_scan), each in rates.items()
    ]


def _rate(folder: Path, sizes: Sizes, *, workers: int, per_scan: int) -> float:
    plan = CropPlan(shape=sizes.crop, per_scan=per_scan)
    batches = crop_batches(
        open_corpus([FolderConfig(folder=str(folder))], plan=plan, seed=0),
        plan=plan,
        micro_batch=MICRO_BATCH,
        seed=0,
        stop_position=(sizes.stream_steps + 1) * MICRO_BATCH,
        num_workers=workers,
    )
    next(batches)
    began = time.perf_counter()
    count = sum(len(batch.keys) for batch in batches)
    return count / (time.perf_counter() - began)
