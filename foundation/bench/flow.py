"""The same updates, fed with crops that the stream cuts out of shards."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from foundation.bench.cases import Case, Extent
from foundation.bench.clock import Ground
from foundation.bench.model import start, updates_of
from foundation.bench.results import FlowFigures
from shards.bench.timing import spread
from shards.bench.volume import FULL, build_shards, write_scans
from shards.stream import crop_batches
from shards.streaming.batch import CropBatch
from shards.streaming.corpus import open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reading import FolderConfig


def write_shards(folder: Path, extent: Extent) -> Path:
    """Synthetic scans, built into shards as the command would."""
    sizes = replace(FULL, shape=extent.scan_shape)
    write_scans(folder / "nifti", sizes, count=extent.num_scans)
    build_shards(folder / "nifti", folder / "shards")
    return folder / "shards"


def flow_figures(case: Case, *, ground: Ground, extent: Extent, shards: Path) -> FlowFigures:
    """Seconds of whole steps, and which share of them there was no batch.

    Reading processes have started and the page cache is warm when the time begins.
    """
    update = updates_of(start(case, ground, compiled=False), ground)
    batches = _batches(case, extent, shards)
    waits, steps = [], []
    for number in range(extent.warmup + extent.repeats):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        update(batch.to(ground.device))
        ground.finished()
        if number >= extent.warmup:
            waits.append(waited)
            steps.append(time.perf_counter() - began)
    taken = spread(steps)
    return FlowFigures(
        case=case,
        precision=ground.precision,
        workers=extent.workers,
        step_s=taken,
        volumes_per_s=case.micro_batch / taken.median,
        wait_share=sum(waits) / sum(steps),
    )


def _batches(case: Case, extent: Extent, shards: Path) -> Iterator[CropBatch]:
    plan = CropPlan(shape=case.crop_shape)
    return crop_batches(
        open_corpus([FolderConfig(folder=str(shards))], plan=plan, seed=0),
        plan=plan,
        micro_batch=case.micro_batch,
        seed=0,
        stop_position=(extent.warmup + extent.repeats) * case.micro_batch,
        num_workers=extent.workers,
    )
