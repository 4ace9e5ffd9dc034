"""One table of scans: who, which files, which part of the split, and every other column.

A cohort is a YAML file beside a CSV or Parquet table (or a MedMNIST ``.npz``, or the
``dataset.json`` of the Medical Segmentation Decathlon). Shard building and task cards read it
through :func:`load_cohort`, so both see the same subjects in the same split.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from recipes.load import Section, digest, load
from shards.scan import MODALITIES
from shards.sources.cohort_table import (
    CohortError,
    Value,
    columns_of,
    fill,
    fill_or_none,
    read_columns,
)

SPLITS = ("train", "val", "test")
MAX_DAYS = 36525  # a hundred years: a larger number is a date in disguise

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class SplitConfig(Section):
    """A split by subject: either fractions and a seed, or the column that holds it."""

    column: str | None = None
    train: float = Field(default=0.0, ge=0, le=1)
    val: float = Field(default=0.0, ge=0, le=1)
    test: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_kind(self) -> "SplitConfig":
        total = self.train + self.val + self.test
        if self.column is not None and total > 0:
            raise ValueError("give a column or fractions, not both")
        if self.column is None and abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and test must add up to 1, got {total:g}")
        return self


class CohortConfig(Section):
    """Of ``recipes/cohorts/NAME.yaml``.

    All but names, ``licence`` and ``source`` are format strings over the table's columns
    (``{case:03d}`` works); scans and masks are relative to the table's folder. A row is one
    ``scan``, or several ``sequences`` of one subject and visit on one grid; a sequence or mask with
    an empty cell is absent. ``masks`` go into shards, ``mask`` is what evaluation measures.
    ``visit`` is a number of days or a date (2024-01-31). Instead of a ``table``: ``npz``, a file
    of MedMNIST, or ``msd``, a ``dataset.json`` of the Medical Segmentation Decathlon.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    table: str | None = None
    npz: str | None = None
    msd: str | None = None
    subject: str | None = None
    scan: str | None = None
    sequences: dict[Name, str] = Field(default_factory=dict)
    mask: str | None = None
    masks: dict[Name, str] = Field(default_factory=dict)
    modality: str | dict[Name, str] | None = None
    visit: str | None = None
    split: SplitConfig | None = None
    licence: str
    source: str

    @model_validator(mode="after")
    def _one_kind(self) -> "CohortConfig":
        if [self.table, self.npz, self.msd].count(None) != 2:
            raise ValueError("give either table or npz or msd")
        if self.table is not None and self.subject is None:
            raise ValueError("a table needs subject, a format string over its columns")
        if self.table is not None and (self.scan is None) == (not self.sequences):
            raise ValueError("a table needs either scan or sequences, over its columns")
        others = (self.subject, self.scan, self.sequences, self.mask, self.masks, self.visit)
        if self.npz is not None and any((*others, self.split)):
            raise ValueError(
                "an npz brings its own subjects, scans and split; leave those keys out"
            )
        if self.msd is not None and any(others):
            raise ValueError(
                "an msd brings its own subjects, scans and masks; leave those keys out"
            )
        if isinstance(self.modality, dict) and self.modality.keys() != self.sequences.keys():
            raise ValueError("modality names other sequences than sequences does")
        return self

    @property
    def file(self) -> str:
        """The one file that lists the scans, below ``data_root``."""
        return self.table or self.npz or self.msd or ""

    def templates(self) -> list[str]:
        """All format strings."""
        of_names = [self.sequences, self.masks]
        single = [self.subject, self.scan, self.mask, self.visit]
        if isinstance(self.modality, dict):
            of_names.append(self.modality)
        else:
            single.append(self.modality)
        return [*filter(None, single), *(text for each in of_names for text in each.values())]


@dataclass(frozen=True)
class CohortRow:
    """One scan, or several sequences of one visit.

    Attributes:
        scan, mask: What :func:`shards.scan.read_scan` takes; of several sequences the first. No
            mask where the cohort names none, or its cell is empty.
        modality: Of ``scan``.
        sequences, masks, modalities: By name, where the cohort names them and the row has them.
        visit: Days, or a date, which identifies and is never written.
    """

    subject: str
    scan: str
    mask: str | None
    split: str | None
    modality: str | None
    values: Mapping[str, Value]
    sequences: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    modalities: Mapping[str, str | None] = field(default_factory=dict)
    visit: int | date | None = None


@dataclass(frozen=True)
class Cohort:
    """``digest`` covers the config and the table, not the voxels and not where the data lies."""

    config: CohortConfig
    rows: tuple[CohortRow, ...]
    digest: str


def load_cohort(path: str | Path, *, data_root: Path) -> Cohort:
    """Read a cohort's YAML and its table.

    Raises:
        RecipeError: The YAML is not a cohort.
        CohortError: Missing data, no rows, a missing column, a row given twice, or a subject in
            two parts of the split.
    """
    config = load(path, CohortConfig)
    table = Path(data_root) / config.file
    if not table.is_file():
        raise CohortError(
            f"cohort {config.name}: {table} does not exist; its data is: {config.source}; put it"
            " there or point data_root at the folder that holds it"
        )
    rows = _rows(config, table)
    if not rows:
        raise CohortError(f"cohort {config.name}: {table} has no rows; is the download complete?")
    _check_rows(config.name, rows)
    content = hashlib.sha256(table.read_bytes()).hexdigest()
    # Without defaults, so that a key that recipes may have one day changes no digest.
    about = config.model_dump(mode="json", exclude_defaults=True)
    key = digest({"config": about, "content": content})
    return Cohort(config=config, rows=tuple(rows), digest=key)


def _rows(config: CohortConfig, table: Path) -> list[CohortRow]:
    if config.npz is not None:
        from shards.sources.npz import npz_rows

        return npz_rows(config, table)
    if config.msd is not None:
        from shards.sources.msd import msd_rows

        return msd_rows(config, table)
    return _table_rows(config, table)


def _table_rows(config: CohortConfig, table: Path) -> list[CohortRow]:
    columns = read_columns(config.name, table)
    if not columns or not next(iter(columns.values())):
        return []
    _check_columns(config, columns)
    names = list(columns)
    records = [
        dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
    ]
    assert config.subject is not None
    subjects = [fill(config.name, config.subject, record) for record in records]
    splits = _splits(config, subjects, records)
    return [
        _row(config, table.parent, record, subject=subject, split=split)
        for subject, split, record in zip(subjects, splits, records, strict=True)
    ]


def _row(
    config: CohortConfig,
    folder: Path,
    record: Mapping[str, Value],
    *,
    subject: str,
    split: str | None,
) -> CohortRow:
    sequences = _present(config, config.sequences, folder, record)
    if config.scan is not None:
        scan, first = str(folder / fill(config.name, config.scan, record)), ""
    elif sequences:
        first, scan = next(iter(sequences.items()))
    else:
        raise CohortError(
            f"cohort {config.name}: subject {subject!r} has a row without any of the sequences"
            f" {', '.join(config.sequences)}; take it out of the table"
        )
    modalities = {name: _modality(config, name, record) for name in sequences or [first]}
    mask = _present(config, {"mask": config.mask} if config.mask else {}, folder, record)
    return CohortRow(
        subject=subject,
        scan=scan,
        mask=mask.get("mask"),
        split=split,
        modality=modalities[first],
        values=record,
        sequences=sequences,
        masks=_present(config, config.masks, folder, record),
        modalities=modalities if sequences else {},
        visit=_visit(config, record),
    )


def _present(
    config: CohortConfig, templates: Mapping[str, str], folder: Path, record: Mapping[str, Value]
) -> dict[str, str]:
    """Paths by name, without those whose cell is empty."""
    found = {name: fill_or_none(config.name, text, record) for name, text in templates.items()}
    return {name: str(folder / path) for name, path in found.items() if path is not None}


def _modality(config: CohortConfig, name: str, record: Mapping[str, Value]) -> str | None:
    found = config.modality
    template = found.get(name) if isinstance(found, dict) else found
    return fill(config.name, template, record) if template else None


def _visit(config: CohortConfig, record: Mapping[str, Value]) -> int | date | None:
    found = fill_or_none(config.name, config.visit, record) if config.visit else None
    if found is None:
        return None
    try:
        days = int(found)
    except ValueError:
        days = None
    if days is not None and abs(days) <= MAX_DAYS:
        return days
    try:
        if days is None:
            return date.fromisoformat(found)
    except ValueError:
        pass
    raise CohortError(
        f"cohort {config.name}: visit {found!r} is neither a number of days up to {MAX_DAYS} nor a"
        " date such as 2024-01-31"
    )


def _check_columns(config: CohortConfig, columns: Mapping[str, object]) -> None:
    wanted = [name for text in config.templates() for name in columns_of(config.name, text)]
    if config.split and config.split.column:
        wanted.append(config.split.column)
    for name in wanted:
        if name not in columns:
            close = difflib.get_close_matches(name, list(columns), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(columns)}"
            raise CohortError(f"cohort {config.name}: the table has no column {name!r}; {hint}")


def _splits(
    config: CohortConfig, subjects: Sequence[str], records: Sequence[Mapping[str, Value]]
) -> list[str | None]:
    if config.split is None:
        return [None] * len(subjects)
    if config.split.column is None:
        part = random_split(subjects, split=config.split)
        return [part[subject] for subject in subjects]
    values = [record[config.split.column] for record in records]
    wrong = next((value for value in values if value not in SPLITS), None)
    if any(value not in SPLITS for value in values):
        raise CohortError(
            f"cohort {config.name}: column {config.split.column!r} holds {wrong!r}; expected one"
            f" of {', '.join(SPLITS)}"
        )
    return [str(value) for value in values]


def random_split(subjects: Iterable[str], *, split: SplitConfig) -> dict[str, str]:
    """Cut the subjects, ordered by a seeded hash, at the fractions; independent of their order."""
    unique = set(subjects)

    def rank(subject: str) -> str:
        return hashlib.sha256(f"{split.seed}:{subject}".encode()).hexdigest()

    ordered = sorted(unique, key=rank)
    first = round(len(ordered) * split.train)
    second = round(len(ordered) * (split.train + split.val))
    parts = [("train", ordered[:first]), ("val", ordered[first:second]), ("test", ordered[second:])]
    return {subject: part for part, members in parts for subject in members}


def _check_rows(name: str, rows: Sequence[CohortRow]) -> None:
    seen: set[tuple[str, str]] = set()
    split_of: dict[str, str | None] = {}
    for number, row in enumerate(rows, start=1):
        if (row.subject, row.scan) in seen:
            raise CohortError(
                f"cohort {name}: row {number} repeats subject {row.subject!r} with the same scan;"
                " each scan stands once"
            )
        seen.add((row.subject, row.scan))
        if split_of.setdefault(row.subject, row.split) != row.split:
            raise CohortError(
                f"cohort {name}: subject {row.subject!r} is in both {split_of[row.subject]} and"
                f" {row.split}; a split is by subject"
            )
        for modality in (row.modality, *row.modalities.values()):
            if modality is not None and modality not in MODALITIES:
                raise CohortError(
                    f"cohort {name}: row {number} has modality {modality!r}; expected one of"
                    f" {', '.join(MODALITIES)}"
                )
