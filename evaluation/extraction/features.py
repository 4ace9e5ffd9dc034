"""Features of scans: each scan is read once, every extractor sees it, and the result is cached.

A backbone, a raw-voxel floor and a scan's digest are all *extractors*. The cache holds one file per
extractor and scan, named by the digest of what it was made from: a killed run goes on
where it stopped, and a changed scan, backbone or view is a name that does not exist yet.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.embedder import EmbedderError
from evaluation.extraction.cache import FORMAT, Arrays, CacheFile, Stacked, joined, stacked
from evaluation.extraction.cache import FeatureError as FeatureError
from evaluation.extraction.progress import progress
from evaluation.extraction.sharing import ALONE, Share, shared
from evaluation.probing.estimator import Bags
from evaluation.storing.store import sha256_of
from foundation.tasks.task import Task
from recipes.load import digest
from shards.scan import Scan, ScanError, read_scan, resample
from shards.sources.cohort import CohortRow

Spacing = tuple[float, float, float]

_ROOT = Path(__file__).parents[2]
_VOXEL_PATH = (
    "shards/scan.py", "shards/images/*.py", "shards/dicom/*.py", "shards/measure/*.py",
    "foundation/preprocessing.py", "foundation/windows.py", "foundation/vit.py",
    "foundation/network/*.py", "evaluation/backbones/*.py", "evaluation/extraction/embeddings.py",
    "evaluation/extraction/dense.py", "evaluation/floors/*.py",
)  # fmt: skip
Rows = Sequence[CohortRow]

_HEADERS = (".mhd", ".nhdr")  # whose voxels lie in another file
_READERS = 2


@dataclass(frozen=True)
class Extractor:
    """What makes arrays of one scan.

    Attributes:
        name: Of its folder in the cache, ``[a-z0-9_]+``.
        digest: Of everything its output depends on beside the scan.
        spacing_mm: The scan is resampled to this before it is handed over; None keeps its own.
        extract: From the scan and its row of the cohort; the same names and shapes for every scan.
        ragged: Names of arrays whose first axis is as long as the scan makes it.
    """

    name: str
    digest: str
    spacing_mm: Spacing | None
    extract: Callable[[Scan, CohortRow], Arrays]
    ragged: tuple[str, ...] = ()


def extract_all(
    rows: Rows, extractors: Sequence[Extractor], *, folder: Path, title: str
) -> dict[str, Stacked]:
    """Arrays of every scan by every extractor, from the cache where it has them.

    Args:
        rows: Scans, n of them.
        extractors: Each with its own name.
        folder: Of the cache.
        title: Shown beside the progress bar.

    Returns:
        By extractor and array name, (n, ...) in the order of ``rows``; bags of ragged arrays.

    Raises:
        FeatureError: A scan cannot be read, or gives arrays unlike the others; or the cache holds
            what was made of something else.
    """
    assert len({each.name for each in extractors}) == len(extractors)
    fill_share(rows, extractors, folder=folder, title=title, share=ALONE)
    parts: dict[str, list[Arrays]] = {each.name: [] for each in extractors}
    for row in rows:
        files = _cache_files(folder, extractors, row)
        for each in extractors:
            arrays = files[each.name].read()
            if arrays is None:  # it was damaged
                _fill(row, read_row(row), [each], files)
                arrays = files[each.name].read()
            assert arrays is not None
            parts[each.name].append(arrays)
    return {name: joined(name, files) for name, files in parts.items()}


def fill_share(
    rows: Rows, extractors: Sequence[Extractor], *, folder: Path, title: str, share: Share
) -> None:
    """Fill a rank's share of the cache; every rank calls it with the same arguments.

    Afterwards :func:`extract_all` finds what all ranks have filled.
    """

    def unfilled() -> list[tuple[int, list[str]]]:
        cached = (_cache_files(folder, extractors, row) for row in rows)
        missing = [
            [name for name, file in files.items() if not file.is_there()] for files in cached
        ]
        return [(number, names) for number, names in enumerate(missing) if names]

    mine = shared(share, unfilled)
    if not mine:
        return
    title = title if share.world_size == 1 else f"{title}, {share.world_size} ranks"
    with (
        progress(title=title, unit="scan", total=len(mine))
        if share.is_first
        else nullcontext() as bar,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        scans = _read_ahead([rows[number] for number, _ in mine], pool)
        for (row, scan), (_, names) in zip(scans, mine, strict=True):
            wanted = [each for each in extractors if each.name in names]
            _fill(row, scan, wanted, _cache_files(folder, wanted, row))
            if bar is not None:
                bar.update(1)


@overload
def pool_by_subject(task: Task, rows: Rows, values: Bags) -> Bags: ...


@overload
def pool_by_subject(task: Task, rows: Rows, values: NDArray[Any]) -> NDArray[Any]: ...


def pool_by_subject(task: Task, rows: Rows, values: NDArray[Any] | Bags) -> NDArray[Any] | Bags:
    """Pool each subject's scans, in the task's order of subjects.

    Args:
        task: Says which scans are whose.
        rows: The scans of ``values``; those of other tasks are passed over.
        values: (scans, ...), of which the mean is taken, or bags, which are joined.
    """
    place = {(row.subject, row.scan): index for index, row in enumerate(rows)}
    chosen = [[place[row.subject, row.scan] for row in scans] for scans in task.scans]
    if isinstance(values, Bags):
        parts = [np.concatenate([values[scan] for scan in scans]) for scans in chosen]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Bags(np.concatenate(parts), starts)
    return np.stack([values[scans].mean(axis=0) for scans in chosen])


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


def view_of(row: CohortRow, spacing_mm: Spacing | None) -> Scan:
    """The scan of a row at a spacing; errors as in :func:`read_row`."""
    scan = read_row(row)
    if spacing_mm is None:
        return scan
    with naming(row):
        return resample(scan, spacing_mm)


@contextmanager
def naming(row: CohortRow) -> Iterator[None]:
    """Name the scan in what goes wrong with it."""
    try:
        yield
    except (ScanError, EmbedderError) as error:
        raise FeatureError(f"{row.scan}: {error}") from error


def _named(where: str, modality: str | None) -> Scan:
    try:
        return read_scan(where, modality=modality)
    except ScanError as error:
        raise FeatureError(
            f"{where}: {error}; mend the scan or take its row out of the cohort"
        ) from None


def fingerprint(where: str | None) -> list[Any]:
    """What changes when a scan's file, folder or archive does: its place, names, sizes and times.

    Copies of an archive have the times of the archive, and scans of one grid the same size: of two
    visits with files of the same name, the place alone tells one from the other.
    """
    if where is None:
        return []
    name, _, member = where.partition("#")
    path = Path(name)
    try:
        files = sorted(_files_of(path))
        marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        raise FeatureError(f"{name}: no such scan; is the data complete?") from None
    return [name, member, marks]


def _files_of(path: Path) -> Iterable[Path]:
    """A scan's own file, all in its folder, or a header with what lies beside it by its name."""
    if path.is_dir():
        return path.iterdir()
    if path.suffix.lower() in _HEADERS:
        return [each for each in path.parent.iterdir() if each.stem == path.stem or each == path]
    return [path]


def content_of(rows: Rows) -> str:
    """Digest of what features of these scans are made of, beside what makes them."""
    return digest(
        [[row.subject, row.modality, fingerprint(row.scan), fingerprint(row.mask)] for row in rows]
    )


def made_by(extractor_digest: str, spacing_mm: Spacing | None) -> str:
    """Digest of what makes features, beside the scans."""
    made_of = {"extractor": extractor_digest, "view": spacing_mm, "format": FORMAT}
    return digest({**made_of, "code": _voxel_code()})


@lru_cache
def _voxel_code() -> str:
    """Digest of the files that a voxel passes on its way into a feature: another way of reading,
    resampling or cutting makes other features."""
    files = [file for part in _VOXEL_PATH for file in sorted(_ROOT.glob(part))]
    return digest([sha256_of(file) for file in files])


def _cache_files(
    folder: Path, extractors: Sequence[Extractor], row: CohortRow
) -> dict[str, CacheFile]:
    """One for each scan: tasks over other parts of a cohort share what they have in common."""
    content = content_of([row])
    return {
        each.name: CacheFile(folder, each.name, made_by(each.digest, each.spacing_mm), content)
        for each in extractors
    }


def _fill(
    row: CohortRow,
    scan: Scan,
    extractors: Sequence[Extractor],
    files: Mapping[str, CacheFile],
) -> None:
    with naming(row):
        for extractor, view in _views(scan, extractors):
            arrays = extractor.extract(view, row)
            require_finite(arrays, extractor.name, row)
            files[extractor.name].write(stacked(extractor.name, [arrays], ragged=extractor.ragged))


def require_finite(arrays: Arrays, name: str, row: CohortRow) -> None:
    """Refuse features that no probe could learn from, before they are cached.

    Raises:
        FeatureError: An array holds NaN or infinity.
    """
    for key, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise FeatureError(
                f"{row.scan}: {name} gives {key} that is not finite; mend the backbone or the "
                "scan, or take its row out of the cohort"
            )


def _read_ahead(rows: Rows, pool: ThreadPoolExecutor) -> Iterator[tuple[CohortRow, Scan]]:
    """Each row with its scan, while the next ones are read; no more than these are in memory."""
    waiting: deque[Future[Scan]] = deque()
    ahead = iter(rows)
    for row in rows:
        for later in islice(ahead, 1 + _READERS - len(waiting)):
            waiting.append(pool.submit(read_row, later))
        yield row, waiting.popleft().result()


def _views(scan: Scan, extractors: Sequence[Extractor]) -> Iterator[tuple[Extractor, Scan]]:
    """Each extractor with its view of the scan; one resampling for all that share a spacing."""
    views: dict[Spacing | None, Scan] = {None: scan}
    for extractor in extractors:
        spacing = extractor.spacing_mm
        if spacing is not None and spacing not in views:
            views[spacing] = resample(scan, spacing)
        yield extractor, views[spacing]
