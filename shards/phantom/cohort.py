"""Write a whole phantom cohort: scans, masks, ``cohort.csv``, ``lesions.csv``, ``phantom.json``."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.load import digest
from shards.building.workers import worker_pool
from shards.phantom.acquisition import SITES
from shards.phantom.files import write_dicom, write_nifti
from shards.phantom.simulate import PhantomScan, simulate
from shards.phantom.subject import Subject

GENERATOR_VERSION = 1
"""Raised with every change of a voxel or a column; claims name the version they were made with."""

SPLITS = {"train": 0.5, "val": 0.2, "test": 0.3}


class PhantomError(ValueError):
    """A cohort that cannot be written where it was asked for."""


class Written(NamedTuple):
    """What one worker reports of one subject."""

    rows: list[dict[str, Any]]
    """Of ``cohort.csv``: head, chest; without the split."""
    lesions: dict[str, Any]
    digests: list[str]


def write_cohort(
    out: Path, *, subjects: int, seed: int, workers: int, overwrite: bool = False
) -> bool:
    """Write a cohort to ``out``, whole or not at all.

    Returns:
        False when the same cohort was there already, and nothing was done.

    Raises:
        PhantomError: ``out`` holds something else, or a cohort with other settings, or cannot be
            written.
    """
    if subjects < 1 or seed < 0 or workers < 1:
        raise PhantomError(
            f"got {subjects} subjects, seed {seed}, {workers} workers; expected at least 1, 0 and 1"
        )
    settings = {"generator_version": GENERATOR_VERSION, "seed": seed, "subjects": subjects}
    if _is_up_to_date(out, settings, overwrite=overwrite):
        return False
    partial_out = out.parent / f".{out.name}.partial"
    try:
        if partial_out.exists():
            shutil.rmtree(partial_out)
        partial_out.mkdir(parents=True)
        _write(partial_out, settings, workers=workers)
        _swap_in(partial_out, out)
    except OSError as error:
        reason = error.strerror or error
        raise PhantomError(
            f"{out}: cannot be written: {reason}; what stood there is unchanged"
        ) from None
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return True


def _is_up_to_date(out: Path, settings: dict[str, int], *, overwrite: bool) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "phantom.json").read_text())
        found = {name: found[name] for name in settings}
    except (OSError, ValueError, KeyError, TypeError):
        raise PhantomError(f"{out}: holds no phantom cohort; choose another folder") from None
    if overwrite and found != settings:
        return False
    if found != settings:
        raise PhantomError(
            f"{out}: holds a phantom cohort of {_words(found)}, asked for {_words(settings)}; "
            "add --overwrite, or choose another folder"
        )
    missing = _missing_files(out)
    if missing and not overwrite:
        raise PhantomError(
            f"{out}: {missing} is gone from this phantom cohort; add --overwrite to write it again"
        )
    return not missing


def _words(settings: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _missing_files(out: Path) -> str | None:
    try:
        with (out / "cohort.csv").open(newline="") as table:
            names = [row[column] for row in csv.DictReader(table) for column in ("scan", "mask")]
    except (OSError, KeyError):
        return "cohort.csv"
    return next((name for name in [*names, "lesions.csv"] if not (out / name).exists()), None)


def _swap_in(finished: Path, out: Path) -> None:
    """Put the finished folder in place; an older cohort goes only once the new one is there."""
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(finished, out)
    shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, settings: dict[str, int], *, workers: int) -> None:
    from tqdm import tqdm

    for name in ("scans", "masks"):
        (folder / name).mkdir()
    count, seed = settings["subjects"], settings["seed"]
    task = partial(write_subject, folder=folder, seed=seed)
    with tqdm(total=count, unit="subject", desc="phantom") as progress:
        written = []
        for subject in _map(task, range(count), workers=min(workers, count)):
            written.append(subject)
            progress.update()
    splits = draw_splits(count, seed=seed)
    rows = [
        {**row, "split": split}
        for split, subject in zip(splits, written, strict=True)
        for row in subject.rows
    ]
    tables = {"cohort.csv": rows, "lesions.csv": [subject.lesions for subject in written]}
    texts = {name: _csv(table) for name, table in tables.items()}
    for name, text in texts.items():
        (folder / name).write_text(text)
    scans = [value for subject in written for value in subject.digests]
    found = {**settings, "scans": len(scans), "digest": digest({**texts, "scans": scans})}
    (folder / "phantom.json").write_text(json.dumps(found, indent=2) + "\n")


def _map(task: Any, items: Sequence[int], *, workers: int) -> Iterator[Written]:
    """The task's results in order, one at a time as they come."""
    if workers == 1:
        yield from map(task, items)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(task, items, chunksize=2)


def write_subject(index: int, *, folder: Path, seed: int) -> Written:
    """Simulate one subject and write its two scans and masks under ``folder``."""
    subject, lesions, scans = simulate(seed, index)
    rows, digests = [], []
    for scan in scans:
        is_dicom = scan.scanner.modality == "CT" and (scan.body_part == "chest" or index % 2 == 0)
        ending = "" if is_dicom else ".nii.gz"
        name = f"scans/{subject.name}/{scan.body_part}{ending}"
        mask = f"masks/{subject.name}_{scan.body_part}.nii.gz"
        (folder / name).parent.mkdir(exist_ok=True)
        orientation = "LPS" if is_dicom else scan.scanner.orientation
        if is_dicom:
            write_dicom(folder / name, scan, subject)
        else:
            write_nifti(folder / name, scan.voxels, scan.grid, orientation=orientation)
        write_nifti(folder / mask, scan.mask, scan.grid, orientation=orientation)
        rows.append(_row(subject, scan, name=name, mask=mask))
        digests.append(scan_digest(scan))
    return Written(rows, {"subject": subject.name, **lesions.variables()}, digests)


def scan_digest(scan: PhantomScan) -> str:
    """SHA-256 over geometry, int16 voxels and mask, whatever the file format."""
    geometry = json.dumps([scan.grid.shape, scan.grid.spacing_mm, scan.scanner.name])
    parts = (geometry.encode(), scan.voxels.astype("<i2").tobytes(), scan.mask.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def draw_splits(count: int, *, seed: int) -> list[str]:
    """The split of each subject, as near to :data:`SPLITS` as whole subjects allow."""
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**31,))).permutation(
        count
    )
    ends = np.rint(np.cumsum(list(SPLITS.values())) * count)
    names = list(SPLITS)
    return [names[int(np.searchsorted(ends, place, side="right"))] for place in order]


def _row(subject: Subject, scan: PhantomScan, *, name: str, mask: str) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "scan": name,
        "mask": mask,
        "modality": scan.scanner.modality,
        "body_part": scan.body_part,
        "split": "",
        "age": subject.age,
        "sex": subject.sex,
        "site": SITES[subject.site],
        "scanner": scan.scanner.name,
        "bmi": subject.bmi,
        "pack_years": subject.pack_years,
        **subject.laboratory,
        **subject.variants,
        **subject.labels,
        "survival_days": subject.survival_days,
        "event": subject.event,
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
