"""Turning files into shards: memory of a worker, one against two workers, and MONAI's way.

MONAI loads, orients, resamples and compresses the same files; it neither checks nor measures them.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.bench.timing import (
    Line,
    burn,
    memory_bytes,
    one_core,
    quietly,
    spread,
    take_turns,
    watch,
)
from shards.bench.volume import (
    QUICK,
    SPACING_MM,
    TARGET_MM,
    Modality,
    Sizes,
    build_shards,
    ct_like,
    source_config,
    write_scans,
)
from shards.building.convert import Task, convert
from shards.building.workers import worker_pool
from shards.codec import encode
from shards.phantom.files import write_nifti
from shards.phantom.space import Grid
from shards.sources.source import Spacing as SpacingMm
from shards.sources.source import read_source
from shards.write import ShardWriter

MEMORY, WORKERS, BUILD = "memory of a worker", "workers", "build"
SPARE_BYTES = 100_000_000
CONVERSIONS = 3  # of which the fastest counts
FLOAT_SLOPE = np.float32(1.37)  # makes whole numbers fractions, so that they must be quantised


def memory_lines(folder: Path, sizes: Sizes) -> list[Line]:
    """MB above an idle worker while one converts a scan; ``ratio`` is of what is allowed."""
    (whole,) = write_scans(folder / "int16", sizes, count=1)
    fractions = folder / "float32.nii.gz"
    voxels = ct_like(sizes.shape, seed=0) * FLOAT_SLOPE
    write_nifti(fractions, voxels, Grid(sizes.shape, SPACING_MM), orientation="RAS")
    lines = []
    cases: list[tuple[str, Path, Modality, int]] = [
        ("int16 CT", whole, "CT", 2),
        ("float32 MR", fractions, "MR", 4),
    ]
    for name, path, modality, itemsize in cases:
        for spacing_mm in (None, TARGET_MM):
            used = _peak_bytes(_task(path, modality, spacing_mm))
            allowed = 4 * itemsize * voxels.size + SPARE_BYTES
            told = f"{name}, {'own spacing' if spacing_mm is None else 'resampled'}"
            ratio = used / allowed
            lines.append(Line(MEMORY, told, spread([used / 1e6]), "MB", ratio, at_most=1))
    return lines


def worker_lines(folder: Path, sizes: Sizes) -> list[Line]:
    """Scans a second of whole builds, less what the same build of toy scans takes to start.

    The last lines are what this machine gives two processes that know nothing of each other: that
    only compute, and that convert the same scans, which also share its memory's bandwidth.
    """
    scan = _task(write_scans(folder / "large", sizes, count=sizes.scans)[0], "CT", None)
    write_scans(folder / "toy", QUICK, count=sizes.scans)

    def run(name: str, workers: int) -> Callable[[int], None]:
        return lambda number: build_shards(
            folder / name, folder / f"{name}-{workers}-{number}", workers=workers
        )

    headroom, converting = [_headroom(sizes.burn_s)], [_converting(scan)]
    builds = {
        (name, workers): run(name, workers) for workers in (1, 2) for name in ("toy", "large")
    }
    taken = take_turns(builds, range(sizes.build_repeats))
    headroom.append(_headroom(sizes.burn_s))
    converting.append(_converting(scan))
    start_s = {workers: spread(taken["toy", workers]).median for workers in (1, 2)}
    rates = {
        workers: [
            sizes.scans / max(each - start_s[workers], each / 2) for each in taken["large", workers]
        ]
        for workers in (1, 2)
    }
    gain = spread(rates[2]).median / spread(rates[1]).median
    return [
        Line(WORKERS, "1 worker", spread(rates[1]), "scans/s"),
        Line(WORKERS, "2 workers", spread(rates[2]), "scans/s", gain, at_least=1.8),
        Line(WORKERS, "2 workers, to start", spread(taken["toy", 2]), "s"),
        Line(WORKERS, "this machine: 2 that compute to 1", spread(headroom), "times"),
        Line(WORKERS, "this machine: 2 that convert to 1", spread(converting), "times"),
    ]


def build_lines(folder: Path, sizes: Sizes) -> list[Line]:
    """Seconds a scan on one core, resampled; ``ratio`` is how much longer the others take."""
    (path,) = write_scans(folder / "nifti", sizes, count=1)
    out = folder / "monai"
    out.mkdir()
    (folder / "shards").mkdir()
    contenders: dict[str, Callable[[int], None]] = {}
    for told, spacing_mm in (("resampled", TARGET_MM), ("own spacing", None)):
        contenders[f"scanfm, {told}"] = _ours(path, folder / "shards", spacing_mm)
        contenders[f"MONAI to npz, {told}"] = _monai(path, out, spacing_mm, _save_npz)
        contenders[f"MONAI to blosc2, {told}"] = _monai(path, out, spacing_mm, _save_blosc2)
    with one_core():
        take_turns(contenders, [-1])  # loads what each needs
        taken = take_turns(contenders, range(sizes.build_repeats))
    lines = []
    for name, seconds in taken.items():
        ours_s = spread(taken[f"scanfm, {name.split(', ')[1]}"]).median
        ratio = spread(seconds).median / ours_s
        at_least = 1.0 if name.startswith("MONAI to npz") else None
        lines.append(Line(BUILD, name, spread(seconds), "s", ratio, at_least=at_least))
    return lines


def _task(path: Path, modality: Modality, spacing_mm: SpacingMm | None) -> Task:
    config = source_config(path.name, modality=modality, spacing_mm=spacing_mm)
    (item,) = read_source(config, data_root=path.parent).inputs
    return Task(item, config, "bench", "0" * 16)


def _peak_bytes(task: Task) -> int:
    """Most memory of a fresh worker that converts ``task``, above what it takes when idle."""
    with worker_pool(1) as pool:
        pid = pool.submit(os.getpid).result()
        pool.submit(_warm_up).result()
        idle = memory_bytes(pid)
        found, peak = watch(pool.submit(convert, task), pid=pid)
    assert all(one.sample is not None for one in found), found
    return max(peak - idle, 0)


def _warm_up() -> None:
    """Load every library by a scan of no size, so that an idle worker is one that has worked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.nii.gz"
        shape = (16, 20, 24)
        write_nifti(path, ct_like(shape, seed=1), Grid(shape, SPACING_MM), orientation="RAS")
        kinds: tuple[Modality, ...] = ("CT", "MR")
        for modality in kinds:
            convert(_task(path, modality, TARGET_MM))


def _headroom(seconds: float) -> float:
    """How much more two processes get done than one."""
    with worker_pool(2) as pool:
        alone = pool.submit(burn, seconds).result()
        together = [pool.submit(burn, seconds) for _ in range(2)]
        return sum(one.result() for one in together) / alone


def _converting(task: Task) -> float:
    """How many more scans two processes convert than one."""
    with worker_pool(2) as pool:
        for _ in range(2):  # each loads its libraries
            list(pool.map(_conversion_s, [task, task]))
        alone = min(pool.submit(_conversion_s, task).result() for _ in range(CONVERSIONS))
        together = [list(pool.map(_conversion_s, [task, task])) for _ in range(CONVERSIONS)]
        return 2 * alone / min(sum(pair) / 2 for pair in together)


def _conversion_s(task: Task) -> float:
    began = time.perf_counter()
    convert(task)
    return time.perf_counter() - began


def _ours(path: Path, out: Path, spacing_mm: SpacingMm | None) -> Callable[[int], None]:
    """Everything a build does with a scan, shard, index and checksums included."""
    task = _task(path, "CT", spacing_mm)

    def run(number: int) -> None:
        writer = ShardWriter(out, shard_size_mb=1, first=number + 1)
        (found,) = convert(task)
        assert found.sample is not None, found.reason
        writer.add(found.sample)
        writer.close()

    return run


def _monai(
    path: Path, out: Path, spacing_mm: SpacingMm | None, save: Callable[[Path, np.ndarray], None]
) -> Callable[[int], None]:
    with quietly():
        from monai.transforms import Compose, LoadImage, Orientation, Spacing

        read = LoadImage(image_only=True, ensure_channel_first=True)
        steps = [read, Orientation("LPS", labels=None)]
        if spacing_mm is not None:
            steps.append(Spacing(spacing_mm[::-1]))
        load = Compose(steps)

    def run(number: int) -> None:
        volume = np.rint(load(path)[0].numpy().transpose(2, 1, 0)).astype(np.int16)
        save(out / f"scan-{number}", volume)

    return run


def _save_npz(path: Path, volume: np.ndarray) -> None:
    np.savez_compressed(path.with_suffix(".npz"), volume=volume)


def _save_blosc2(path: Path, volume: np.ndarray) -> None:
    path.with_suffix(".b2nd").write_bytes(encode(np.ascontiguousarray(volume)))
