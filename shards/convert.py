"""One input into one sample: read, resample, measure, quantise, compress. Runs in a worker."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.codec import encode, quantise, source_digest
from shards.dicom_series import read_series
from shards.intensity import foreground_box, intensity_statistics
from shards.scan import Scan, ScanError, read_scan, resample
from shards.sources import Input, SourceConfig
from shards.workers import worker_pool

AHEAD = 4  # inputs in work for each worker: enough to keep it busy, few enough for memory


@dataclass(frozen=True)
class Task:
    """An input with what its sample will say of it; ``subject`` is the pseudonym."""

    item: Input
    config: SourceConfig
    source: str
    subject: str


@dataclass(frozen=True)
class Converted:
    """A sample, ready to be written; or, with ``reason`` set, an input that was rejected."""

    key: str
    record: dict[str, Any]
    frame: bytes
    reason: str | None = None


def convert_all(tasks: Sequence[Task], *, workers: int) -> Iterator[Converted]:
    """The results in the order of ``tasks``, whatever the number of workers."""
    if workers == 1:
        yield from map(convert, tasks)
        return
    with worker_pool(workers) as pool:
        waiting: list[Future[Converted]] = []
        try:
            for task in tasks:
                waiting.append(pool.submit(convert, task))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def convert(task: Task) -> Converted:
    """Never raises for a scan that cannot be used: its reason is the result."""
    try:
        scan = _read(task)
        digest = source_digest(scan)
        if task.config.spacing_mm is not None:
            scan = resample(scan, task.config.spacing_mm)
    except ScanError as error:
        return Converted("", {}, b"", reason=str(error))
    stored = quantise(scan.voxels)
    statistics = intensity_statistics(scan.voxels)
    key = f"{task.source}-{task.subject}-{digest[:12]}"
    record = {
        "key": key,
        "shape": list(scan.voxels.shape),
        "spacing_mm": [float(edge) for edge in scan.spacing_mm],
        "modality": scan.modality,
        "body_part": scan.metadata.get("body_part"),
        "metadata": dict(scan.metadata),
        "slope": stored.slope,
        "intercept": stored.intercept,
        "statistics": statistics._asdict(),
        "foreground_box": foreground_box(
            scan.voxels, modality=scan.modality, statistics=statistics
        ),
        "subject": task.subject,
        "source": task.source,
        "split": task.item.split,
        "source_digest": digest,
    }
    return Converted(key, record, encode(np.ascontiguousarray(stored.voxels)))


def _read(task: Task) -> Scan:
    item, config = task.item, task.config
    if item.files:
        scan = read_series(item.files, modality=item.modality, min_slices=config.min_slices)
    else:
        scan = read_scan(item.where, modality=item.modality, min_slices=config.min_slices)
    if config.max_spacing_mm is not None and max(scan.spacing_mm) > config.max_spacing_mm:
        spacing = ", ".join(f"{edge:.2f}" for edge in scan.spacing_mm)
        raise ScanError(
            f"spacing is ({spacing}) mm, the recipe allows {config.max_spacing_mm:g};"
            " raise max_spacing_mm to take it"
        )
    return scan
