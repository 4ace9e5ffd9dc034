"""Where scans come from: a cohort's table, a tree of DICOM, or NIfTI files; each an ordered list.

The order of the inputs is the order of the samples, so it depends on names alone, never on the
file system.
"""

import difflib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recipes.load import Section
from shards.cohort import Cohort, CohortRow, load_cohort
from shards.dicom import read_tree
from shards.policy import Policy

Spacing = tuple[float, float, float]
Cell = str | int | float | None


class SourceError(ValueError):
    """A source without usable input; the message is meant for the recipe's author."""


class SourceConfig(Section):
    """One of ``cohort`` (a YAML file), ``dicom`` (a folder tree) and ``nifti`` (a pattern)."""

    cohort: str | None = None
    splits: list[Literal["train", "val", "test"]] | None = Field(default=None, min_length=1)
    where: dict[str, Cell | list[Cell]] = Field(default_factory=dict)
    dicom: str | None = None
    nifti: str | None = None
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_]*$")
    modality: Literal["CT", "MR", "PT", "OT"] | None = None
    licence: str | None = None
    source: str | None = None
    spacing_mm: Spacing | None = None
    max_spacing_mm: float | None = Field(default=None, gt=0)
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _one_kind(self) -> "SourceConfig":
        if [self.cohort, self.dicom, self.nifti].count(None) != 2:
            raise ValueError("give exactly one of cohort, dicom and nifti")
        described = [self.name, self.licence, self.source]
        if self.cohort is not None and any([*described, self.modality]):
            raise ValueError("a cohort brings its own name, modality, licence and source")
        if self.cohort is None and None in described:
            raise ValueError("dicom and nifti need a name, a licence and a source")
        if self.nifti is not None and self.modality is None:
            raise ValueError("nifti needs a modality, which its files do not tell")
        if self.cohort is None and (self.splits or self.where):
            raise ValueError("splits and where choose rows of a cohort")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be positive")
        return self


@dataclass(frozen=True)
class Input:
    """One scan to read; ``files`` are the slices of a DICOM series, else ``where`` names it."""

    position: int
    subject: str
    where: str
    files: tuple[Path, ...] = ()
    modality: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """All inputs of one entry of a recipe; ``skipped`` are reasons of files that are no scan."""

    name: str
    licence: str
    source: str
    config: SourceConfig
    inputs: tuple[Input, ...]
    skipped: tuple[str, ...]


def read_source(config: SourceConfig, *, data_root: Path) -> Source:
    """List the inputs of one source; of DICOM files the headers are read.

    Raises:
        SourceError: Nothing there.
        CohortError: The cohort cannot be used.
    """
    if config.cohort is not None:
        cohort, rows = _rows(config, data_root)
        inputs = [
            Input(place, row.subject, row.scan, modality=row.modality, split=row.split)
            for place, row in enumerate(rows)
        ]
        about = cohort.config
        found = Source(about.name, about.licence, about.source, config, tuple(inputs), ())
    else:
        assert config.name is not None
        assert config.licence is not None
        assert config.source is not None
        inputs, skipped = (_dicom if config.dicom else _nifti)(config, data_root)
        found = Source(
            config.name, config.licence, config.source, config, tuple(inputs), tuple(skipped)
        )
    if not found.inputs:
        raise SourceError(f"source {found.name}: no scans; see {_place(config, data_root)}")
    return found


def source_files(config: SourceConfig, *, data_root: Path) -> list[Path]:
    """The files a source reads, in order, without opening a scan."""
    if config.cohort is None:
        return sorted(path for path in _found(config, data_root) if path.is_file())
    cohort, rows = _rows(config, data_root)
    table = data_root / (cohort.config.table or cohort.config.npz or "")
    scans = dict.fromkeys(Path(row.scan.partition("#")[0]) for row in rows)
    files = [path for scan in scans for path in (_below(scan) if scan.is_dir() else [scan])]
    return [Path(config.cohort), table, *files]


def fingerprint(files: Iterable[Path], *, key: bytes) -> str:
    """Changes when a file comes, goes, or is written again; keyed, as it covers names."""
    found = hmac.new(key, digestmod=sha256)
    for path in files:
        try:
            state = os.stat(path)
            line = f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\n"
        except OSError:
            line = f"{path.absolute()}\0absent\n"
        found.update(line.encode())
    return found.hexdigest()


def _rows(config: SourceConfig, data_root: Path) -> tuple[Cohort, list[CohortRow]]:
    assert config.cohort is not None
    cohort = load_cohort(config.cohort, data_root=data_root)
    for column in config.where:
        known = list(cohort.rows[0].values)
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise SourceError(f"cohort {cohort.config.name}: no column {column!r}; {hint}")
    if config.splits is not None and cohort.config.split is None and cohort.config.npz is None:
        raise SourceError(f"cohort {cohort.config.name} has no split, so splits cannot choose")
    rows = [row for row in cohort.rows if _is_wanted(row, config)]
    return cohort, rows


def _is_wanted(row: CohortRow, config: SourceConfig) -> bool:
    if config.splits is not None and row.split not in config.splits:
        return False
    return _matches(row.values, config.where)


def _matches(values: Mapping[str, Cell], wanted: Mapping[str, Cell | list[Cell]]) -> bool:
    return all(
        values[column] in (cell if isinstance(cell, list) else [cell])
        for column, cell in wanted.items()
    )


def _dicom(config: SourceConfig, data_root: Path) -> tuple[list[Input], Sequence[str]]:
    tree = read_tree(_place(config, data_root))
    inputs = []
    for place, series in enumerate(tree.series):
        folder = series.files[0].parent
        # Where the files name nobody, each folder counts as a subject.
        subject = series.subject or folder.relative_to(data_root).as_posix()
        inputs.append(Input(place, subject, str(folder), series.files, config.modality))
    return inputs, [reason for _, reason in tree.skipped]


def _nifti(config: SourceConfig, data_root: Path) -> tuple[list[Input], Sequence[str]]:
    inputs = [
        Input(place, path.relative_to(data_root).as_posix(), str(path), modality=config.modality)
        for place, path in enumerate(sorted(_found(config, data_root)))
    ]
    return inputs, []


def _found(config: SourceConfig, data_root: Path) -> Iterable[Path]:
    if config.dicom is not None:
        return _below(_place(config, data_root))
    assert config.nifti is not None
    if not data_root.is_dir():
        raise SourceError(f"source {config.name}: {data_root} does not exist; see data_root")
    try:
        return sorted(data_root.glob(config.nifti))
    except (NotImplementedError, ValueError):
        raise SourceError(
            f"source {config.name}: nifti is a pattern below data_root, such as images/*.nii.gz"
        ) from None


def _place(config: SourceConfig, data_root: Path) -> Path:
    place = data_root / (config.dicom or config.nifti or "")
    if config.dicom is not None and not place.is_dir():
        raise SourceError(f"source {config.name}: {place} does not exist; see data_root")
    return place


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
