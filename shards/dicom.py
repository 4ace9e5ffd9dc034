"""DICOM files: their headers, and a tree of them sorted into series."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.scan import ScanError

SAME_DIRECTION = 1e-2  # of a direction cosine
HEADER_TAGS = [
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImageOrientationPatient",
    "Rows",
    "Columns",
]


class Header(NamedTuple):
    """What sorts a file into its series. ``orientation`` is ImageOrientationPatient, or zeros."""

    series: tuple[str, int, int]  # UID, rows, columns
    instance: str
    orientation: np.ndarray
    subject: str


@dataclass(frozen=True)
class Series:
    """The slices of one series that share orientation and size; ``subject`` is its PatientID."""

    files: tuple[Path, ...]
    subject: str


@dataclass(frozen=True)
class Tree:
    """All that lies below a folder; ``skipped`` holds each file that is no image, with why."""

    series: tuple[Series, ...]
    skipped: tuple[tuple[Path, str], ...]


def find_series(folder: str | Path) -> list[Series]:
    """The series below ``folder``, in the order of their first file."""
    return list(read_tree(folder).series)


def read_tree(folder: str | Path) -> Tree:
    """Sort every file below ``folder`` into series by its header; pixels are not read."""
    groups: dict[tuple[str, int, int], list[list[tuple[Path, Header]]]] = {}
    skipped = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        header = read_header(path)
        if isinstance(header, str):
            skipped.append((path, header))
            continue
        alike = groups.setdefault(header.series, [])
        for members in alike:
            if same_direction(members[0][1].orientation, header.orientation):
                members.append((path, header))
                break
        else:
            alike.append([(path, header)])
    series = [one for alike in groups.values() for members in alike for one in _series_of(members)]
    return Tree(tuple(sorted(series, key=lambda one: one.files[0])), tuple(skipped))


def _series_of(members: Sequence[tuple[Path, Header]]) -> list[Series]:
    """One series, or one for each folder where folders hold copies of the same slices."""
    subject = members[0][1].subject
    if len({header.instance for _, header in members}) == len(members):
        return [Series(tuple(path for path, _ in members), subject)]
    folders = sorted({path.parent for path, _ in members})
    return [
        Series(tuple(path for path, _ in members if path.parent == folder), subject)
        for folder in folders
    ]


def read_header(path: Path) -> Header | str:
    """The header of an image, or the reason why the file is none."""
    import pydicom

    with quiet():
        try:
            found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            if "Rows" not in found or "Columns" not in found:
                return "DICOM without an image"
            key = (str(found.get("SeriesInstanceUID")), int(found.Rows), int(found.Columns))
            cosines = numbers(found, "ImageOrientationPatient", 6) or [0.0] * 6
            instance = str(found.get("SOPInstanceUID"))
            return Header(key, instance, np.asarray(cosines), subject_of(found) or "")
        # The parser raises many types for bytes that are no DICOM.
        except Exception:
            return "not a DICOM file"


def read_dataset(path: Path) -> Any:
    """The whole file, every element parsed, so that a damaged one is found here."""
    import pydicom

    with quiet():
        try:
            dataset = pydicom.dcmread(path)
            for _ in dataset:
                pass
        except Exception as error:
            raise ScanError(f"a slice cannot be read ({type(error).__name__})") from None
    return dataset


def subject_of(dataset: Any) -> str | None:
    """PatientID, or the study where there is none."""
    return str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or "") or None


def number(dataset: Any, tag: str) -> float | None:
    """One finite number, or None."""
    try:
        value = float(dataset.get(tag))
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def numbers(dataset: Any, tag: str, count: int) -> list[float]:
    """``count`` finite numbers, or an empty list."""
    try:
        values = [float(value) for value in dataset.get(tag) or []]
    except (TypeError, ValueError):
        return []
    return values if len(values) == count and np.isfinite(values).all() else []


def same_direction(one: np.ndarray, other: np.ndarray) -> bool:
    """Two directions, or two sets of direction cosines, that differ by rounding alone."""
    return bool(np.allclose(one, other, rtol=0, atol=SAME_DIRECTION))


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of the parser quote header values: none may reach a log."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
