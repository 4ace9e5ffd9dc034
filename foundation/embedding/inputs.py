"""Inputs: files, DICOM series of a folder, rows of a cohort or of a plain table."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from foundation.embedding.coverage import is_oriented
from shards.dicom.series import read_series
from shards.dicom.tree import Series, read_tree, refusal
from shards.policy import LENIENT
from shards.scan import ITK, MODALITIES, NIFTI, Scan, file_and_member, read_scans
from shards.sources.cohort import CohortRow, load_cohort
from shards.sources.cohort_table import Value, read_columns

TABLES = (".csv", ".parquet", ".pq")
RECIPES = (".yaml", ".yml")
NAMESPACE = "embed"


class JobError(ValueError):
    """Nothing was found or could be done, or the table could not be written."""


@dataclass(frozen=True)
class Item:
    """One input: a file, a series, or a member of an archive.

    Attributes:
        name: Its path relative to what was given; the key of its row.
        subject: Whose it is, by its place or its cohort.
        read: Its scans, several where it holds several volumes.
        patient: DICOM PatientID, or the study; it identifies and is never written as it is.
        sequence: Of the subject's visit, where the cohort names it.
        files: That it is read from: a change of one makes it another input.
        verdict: Why it is refused, where headers alone tell.
        is_oriented: Whether its file can say how it lies in the body; asked when it is read.
    """

    name: str
    subject: str
    read: Callable[[], Iterator[Scan]]
    patient: str = ""
    sequence: str = ""
    files: tuple[Path, ...] = ()
    verdict: str | None = None
    is_oriented: Callable[[], bool] = lambda: True


class Found(NamedTuple):
    """What lies at a place.

    Attributes:
        items: In the order of their names.
        skipped: Files that are no scan: their number, by reason.
        namespace: Of pseudonyms, where the user names none.
    """

    items: tuple[Item, ...]
    skipped: Mapping[str, int]
    namespace: str = NAMESPACE


def find_items(
    scans: Path,
    *,
    modality: str | None = None,
    subject: str | None = None,
    data_root: Path | None = None,
) -> Found:
    """Everything at a place that may be a scan; of DICOM files the headers are read.

    Args:
        scans: A file, a folder, a table (``scan``, and as wanted ``subject``, ``sequence`` and
            ``modality``) or the YAML file of a cohort.
        modality: Of image files, which do not tell; a column of a table goes before it.
        subject: Regular expression: what it finds in an image's name is the subject (its groups,
            if it has any). Without it the first folder of the name is, or the file itself.
        data_root: What a cohort's table and scans lie below; of a plain table its own folder.

    Raises:
        JobError: Nothing is there, or a table is none.
        ValueError: The cohort cannot be used.
    """
    if not scans.exists():
        raise JobError(f"{scans}: no such file or folder")
    if scans.is_dir():
        return _of_folder(scans, modality=modality, subject=subject)
    ending = scans.suffix.lower()
    if ending in RECIPES:
        return _of_cohort(scans, data_root=data_root or Path("data"), modality=modality)
    if ending in TABLES:
        return _of_table(scans, root=data_root or scans.parent, modality=modality)
    item = _image(scans, scans.name, modality=modality, subject=subject)
    return Found((item,), {})


def _of_folder(folder: Path, *, modality: str | None, subject: str | None) -> Found:
    images = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(NIFTI + ITK) and path.is_file()
    ]
    items = [
        _image(path, path.relative_to(folder).as_posix(), modality=modality, subject=subject)
        for path in images
    ]
    tree = read_tree(folder)
    items.extend(_of_series(tree.series, folder))
    taken = set(images)
    skipped = Counter(reason for path, reason in tree.skipped if path not in taken)
    return Found(tuple(sorted(items, key=lambda item: item.name)), skipped)


def _image(path: Path, name: str, *, modality: str | None, subject: str | None) -> Item:
    return Item(
        name=name,
        subject=_subject_in(name, subject),
        read=partial(read_scans, path, modality=modality, policy=LENIENT),
        files=_partners(path),
        is_oriented=partial(is_oriented, str(path)),
    )


def _partners(path: Path) -> tuple[Path, ...]:
    """A header and the file of its voxels, which has the same name."""
    if path.suffix.lower() not in (".nhdr", ".mhd"):
        return (path,)
    return tuple(sorted(one for one in path.parent.glob(f"{path.stem}.*") if one.is_file()))


def _subject_in(name: str, pattern: str | None) -> str:
    if pattern is None:
        return PurePosixPath(name).parts[0]
    found = re.search(pattern, name)
    if found is None:
        raise JobError(f"--subject {pattern!r} finds nothing in the name {name}")
    return "/".join(group or "" for group in found.groups()) or found[0]


def _of_series(several: Sequence[Series], folder: Path) -> Iterator[Item]:
    """Each series by its folder; a second one there has ``#2`` behind it."""
    taken: Counter[str] = Counter()
    for series in several:
        parent = series.files[0].parent.relative_to(folder).as_posix()
        place = folder.name if parent == "." else parent
        refused = refusal(series, policy=LENIENT)
        # Scouts and captures beside a scan do not change its name.
        counted = f"{place}/refused" if refused else place
        taken[counted] += 1
        name = counted if taken[counted] == 1 else f"{counted}#{taken[counted]}"
        yield Item(
            name=name,
            subject=place,
            read=partial(read_series, series.files, policy=LENIENT),
            patient=series.subject,
            files=series.files,
            verdict=refused,
        )


def _of_cohort(recipe: Path, *, data_root: Path, modality: str | None) -> Found:
    cohort = load_cohort(recipe, data_root=data_root)
    items = [
        item for row in cohort.rows for item in _of_row(row, root=data_root, modality=modality)
    ]
    return Found(tuple(items), {}, cohort.config.name)


def _of_row(row: CohortRow, *, root: Path, modality: str | None) -> Iterator[Item]:
    modalities = row.modalities or {"": row.modality}
    for sequence, where in (row.sequences or {"": row.scan}).items():
        yield _place(
            where,
            root=root,
            subject=row.subject,
            sequence=sequence,
            modality=modalities[sequence] or modality,
        )


def _of_table(table: Path, *, root: Path, modality: str | None) -> Found:
    columns = read_columns(table.name, table)
    if "scan" not in columns:
        raise JobError(
            f"{table}: no column 'scan', it has {', '.join(columns) or 'none'}; a table names its "
            f"scans in 'scan', and as wanted 'subject', 'sequence' and 'modality'; for other names "
            f"write a cohort YAML (recipes/cohorts/template.yaml)"
        )
    items = []
    for number, where in enumerate(columns["scan"]):
        if where is None:
            raise JobError(f"{table}, row {number + 1}: the cell of 'scan' is empty")
        told = {name: _cell(columns, name, number) for name in ("subject", "sequence", "modality")}
        if told["modality"] not in ("", *MODALITIES):
            raise JobError(
                f"{table}, row {number + 1}: modality {told['modality']!r}, expected one of "
                f"{', '.join(MODALITIES)}"
            )
        items.append(
            _place(
                str(root / str(where)),
                root=root,
                subject=told["subject"] or str(where),
                sequence=told["sequence"],
                modality=told["modality"] or modality,
            )
        )
    return Found(tuple(items), {})


def _cell(columns: Mapping[str, Sequence[Value]], name: str, number: int) -> str:
    found = columns[name][number] if name in columns else None
    return "" if found is None else str(found)


def _place(where: str, *, root: Path, subject: str, sequence: str, modality: str | None) -> Item:
    """What a cohort names: a file, a folder with one series, or a member of an archive."""
    file = Path(file_and_member(where)[0])
    files = (
        tuple(sorted(path for path in file.rglob("*") if path.is_file()))
        if file.is_dir()
        else _partners(file)
    )
    return Item(
        name=Path(os.path.relpath(where, root)).as_posix(),
        subject=subject,
        # A DICOM folder tells its modality by itself, and must agree.
        read=partial(read_scans, where, modality=modality, policy=LENIENT),
        sequence=sequence,
        files=files,
        is_oriented=partial(is_oriented, where),
    )
