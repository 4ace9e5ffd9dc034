"""Features of scans: each scan is read once, every extractor sees it, and the result is cached.

A backbone, a raw-voxel floor and a scan's digest are all *extractors*. The cache holds one file per
extractor and chunk of scans, named by the digest of what it was made from: a killed run goes on
where it stopped, and a changed scan, backbone or view is a name that does not exist yet.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.progress import progress
from evaluation.storing.store import read_arrays, write_arrays
from evaluation.tasks.task import Task
from recipes.load import digest
from shards.scan import Scan, ScanError, read_scan, resample
from shards.sources.cohort import CohortRow

Spacing = tuple[float, float, float]
Arrays = Mapping[str, NDArray[Any]]

_CHUNK = 8  # scans a file holds, and at most in memory at once
_READERS = 2


class FeatureError(ValueError):
    """A scan of a task that cannot be read or embedded."""


@dataclass(frozen=True)
class Extractor:
    """What makes arrays of one scan.

    Attributes:
        name: Of its folder in the cache, ``[a-z0-9_]+``.
        digest: Of everything its output depends on beside the scan.
        spacing_mm: The scan is resampled to this before it is handed over; None keeps its own.
        extract: From the scan and its row of the cohort; the same names and shapes for every scan.
    """

    name: str
    digest: str
    spacing_mm: Spacing | None
    extract: Callable[[Scan, CohortRow], Arrays]


def extract_all(
    rows: Sequence[CohortRow], extractors: Sequence[Extractor], *, folder: Path, title: str
) -> dict[str, dict[str, NDArray[Any]]]:
    """Arrays of every scan by every extractor, from the cache where it has them.

    Args:
        rows: Scans, n of them.
        extractors: Each with its own name.
        folder: Of the cache.
        title: Shown beside the progress bar.

    Returns:
        By extractor and array name, (n, ...) in the order of ``rows``.

    Raises:
        FeatureError: A scan cannot be read, or gives arrays unlike the others.
    """
    assert len({each.name for each in extractors}) == len(extractors)
    parts: dict[str, list[dict[str, NDArray[Any]]]] = {each.name: [] for each in extractors}
    with (
        progress(title=title, unit="scan", total=len(rows)) as bar,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        for chunk in (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)):
            paths = _cache_paths(folder, extractors, chunk)
            missing = [each for each in extractors if not paths[each.name].is_file()]
            if missing:
                _fill(chunk, missing, paths, pool)
            for name, path in paths.items():
                parts[name].append(read_arrays(path))
            bar.update(len(chunk))
    return {name: _joined(name, chunks) for name, chunks in parts.items()}


def pool_by_subject(task: Task, rows: Sequence[CohortRow], values: NDArray[Any]) -> NDArray[Any]:
    """Mean over each subject's scans: (scans, ...) -> (subjects, ...), in the task's order.

    Args:
        task: Says which scans are whose.
        rows: The scans of ``values``; those of other tasks are passed over.
        values: (scans, ...).
    """
    place = {(row.subject, row.scan): index for index, row in enumerate(rows)}
    chosen = [[place[row.subject, row.scan] for row in scans] for scans in task.scans]
    return np.stack([values[positions].mean(axis=0) for positions in chosen])


def read_row(row: CohortRow) -> Scan:
    """The scan of a row.

    Raises:
        FeatureError: It cannot be read; the message names it.
    """
    return _named(row.scan, row.modality)


def read_mask(row: CohortRow) -> NDArray[np.bool_]:
    """The mask of a row that has one, (D, H, W); errors as in :func:`read_row`."""
    assert row.mask is not None
    inside: NDArray[np.bool_] = _named(row.mask, "OT").voxels > 0
    return inside


def _named(where: str, modality: str | None) -> Scan:
    try:
        return read_scan(where, modality=modality)
    except ScanError as error:
        raise FeatureError(
            f"{where}: {error}; mend the scan or take its row out of the cohort"
        ) from None


def fingerprint(where: str | None) -> list[Any]:
    """What changes when a scan's file, folder or archive does: names, sizes and times."""
    if where is None:
        return []
    name, _, member = where.partition("#")
    path = Path(name)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        raise FeatureError(f"{name}: no such scan; is the data complete?") from None
    return [path.name, member, marks]


def _cache_paths(
    folder: Path, extractors: Sequence[Extractor], chunk: Sequence[CohortRow]
) -> dict[str, Path]:
    """Where each extractor's arrays of a chunk are: a name for what they are made of."""
    content = digest(
        [[row.subject, row.modality, fingerprint(row.scan), fingerprint(row.mask)] for row in chunk]
    )
    paths = {}
    for each in extractors:
        made_by = digest({"extractor": each.digest, "view": each.spacing_mm})
        paths[each.name] = folder / f"{each.name}-{made_by[:16]}" / f"{content[:24]}.npz"
    return paths


def _fill(
    chunk: Sequence[CohortRow],
    extractors: Sequence[Extractor],
    paths: Mapping[str, Path],
    pool: ThreadPoolExecutor,
) -> None:
    made: dict[str, list[Arrays]] = {each.name: [] for each in extractors}
    for row, scan in zip(chunk, pool.map(read_row, chunk), strict=True):
        try:
            for extractor, view in _views(scan, extractors):
                made[extractor.name].append(extractor.extract(view, row))
        except ScanError as error:
            raise FeatureError(f"{row.scan}: {error}") from None
    for name, arrays in made.items():
        write_arrays(paths[name], _stacked(name, arrays))


def _views(scan: Scan, extractors: Sequence[Extractor]) -> Iterator[tuple[Extractor, Scan]]:
    """Each extractor with its view of the scan; one resampling for all that share a spacing."""
    views: dict[Spacing | None, Scan] = {None: scan}
    for extractor in extractors:
        spacing = extractor.spacing_mm
        if spacing is not None and spacing not in views:
            views[spacing] = resample(scan, spacing)
        yield extractor, views[spacing]


def _stacked(name: str, arrays: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    try:
        return {key: np.stack([each[key] for each in arrays]) for key in arrays[0]}
    except ValueError:
        raise FeatureError(f"{name}: scans give arrays of different shapes") from None


def _joined(name: str, chunks: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    try:
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    except ValueError:
        raise FeatureError(f"{name}: scans give arrays of different shapes") from None
