"""Which scans below a folder are whose: by a column of paths, or by names of files and folders.

A scan is an image file, or a folder with DICOM files in it.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from foundation.tasks.labels import TaskError
from shards.scan import ITK, NIFTI

Value = str | int | float | None

IMAGES = (*NIFTI, *ITK)

_FILES_ASKED = 3  # of a folder: a note or an index may come before the first slice
_MASK = re.compile(r"(^|[._-])(mask|seg|segmentation|label|labels|gt|lesion)$", re.IGNORECASE)
_ENDING = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)


class Match(NamedTuple):
    """A scan and the row of the table it belongs to."""

    row: int
    scan: Path
    is_dicom: bool


class Found(NamedTuple):
    """Matches, and the scans and rows without a partner."""

    matches: tuple[Match, ...]
    spare_scans: int
    spare_rows: int
    how: str


def match_column(folder: Path, cells: Sequence[Value], column: str) -> Found:
    """Scans by the paths in a column; an empty cell is a row without a scan.

    Raises:
        TaskError: A path that does not exist.
    """
    matches = []
    for row, cell in enumerate(cells):
        if cell is None:
            continue
        path = folder / str(cell)
        if not path.exists():
            raise TaskError(f"{path}: no such scan, it stands in row {row + 1} of {column!r}")
        matches.append(Match(row, path, path.is_dir()))
    return Found(tuple(matches), 0, len(cells) - len(matches), f"paths in column {column!r}")


def path_column(folder: Path, columns: Mapping[str, Sequence[Value]]) -> str | None:
    """The first column all of whose cells are paths of scans below ``folder``."""
    for name, cells in columns.items():
        filled = [cell for cell in cells if cell is not None]
        if filled and all(isinstance(cell, str) and _is_scan(folder / cell) for cell in filled):
            return name
    return None


def match_names(folder: Path, subjects: Sequence[Value], column: str) -> Found:
    """Scans by the subject's name: of the file, of a folder above it, or how the file begins.

    Names such as ``p01_mask`` are passed over.

    Raises:
        TaskError: There is no scan at all, or none of any subject, or a subject with two rows.
    """
    scans = list(find_scans(folder))
    if not scans:
        raise TaskError(f"{folder}: no NIfTI, NRRD or MetaImage file and no DICOM folder below it")
    row_of: dict[str, int] = {}
    for row, subject in enumerate(subjects):
        if subject is not None and row_of.setdefault(str(subject), row) != row:
            raise TaskError(
                f"{column!r} holds {subject!r} twice, and names alone do not tell which scan is "
                "which row's; give a column of paths with --scan"
            )
    found = [(path, _subject_of(path.relative_to(folder), row_of)) for path in scans]
    matches = [Match(row_of[name], path, path.is_dir()) for path, name in found if name is not None]
    if not matches:
        raise TaskError(
            f"{folder}: none of its {len(scans)} scans is named as a cell of {column!r} is (first "
            f"scan {scans[0].name!r}, first cell {subjects[0]!r}); say which column with "
            "--subject, or give paths with --scan"
        )
    spare_rows = len(subjects) - len({match.row for match in matches})
    return Found(
        tuple(matches), len(scans) - len(matches), spare_rows, f"names as in column {column!r}"
    )


def find_scans(folder: Path) -> Iterator[Path]:
    """Image files and DICOM folders, in the order of their names; masks are passed over.

    Links are followed, each folder once.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        images = [name for name in sorted(files) if name.lower().endswith(IMAGES)]
        if not images and _has_dicom(Path(place)):
            yield Path(place)
        yield from (Path(place) / name for name in images if not _MASK.search(_stem(name)))


def _is_scan(path: Path) -> bool:
    return _has_dicom(path) if path.is_dir() else path.is_file()


def _has_dicom(folder: Path) -> bool:
    """Whether one of the first files in a folder is DICOM."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return any(_is_dicom(path) for path in files[:_FILES_ASKED])


def _subject_of(path: Path, known: Collection[str]) -> str | None:
    stem = _stem(path.name)
    for name in (stem, path.name, *reversed(path.parts[:-1])):
        if name in known:
            return name
    begins = [name for name in known if re.match(re.escape(name) + r"[._-]", stem)]
    return max(begins, key=len, default=None)


def _stem(name: str) -> str:
    return _ENDING.sub("", name)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
