"""One table of scans: who, which file, which part of the split, and every other column.

A cohort is a YAML file beside a CSV table (or a MedMNIST ``.npz``). Shard building and task cards
read it through :func:`load_cohort`, so both see the same subjects in the same split.
"""

import csv
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np
from pydantic import Field, model_validator

from recipes.load import Section, digest, load
from shards.scan import MODALITIES

SPLITS = ("train", "val", "test")

Value = str | int | float | None


class CohortError(ValueError):
    """A cohort that cannot be used; the message is meant for its author."""


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

    ``subject``, ``scan``, ``mask`` and ``modality`` are format strings over the table's columns
    (``{case:03d}`` works); scans and masks are relative to the table's folder.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    table: str | None = None
    npz: str | None = None
    subject: str | None = None
    scan: str | None = None
    mask: str | None = None
    modality: str | None = None
    split: SplitConfig | None = None
    licence: str
    source: str

    @model_validator(mode="after")
    def _one_kind(self) -> "CohortConfig":
        if (self.table is None) == (self.npz is None):
            raise ValueError("give either table or npz")
        if self.table is not None and (self.subject is None or self.scan is None):
            raise ValueError("a table needs subject and scan, format strings over its columns")
        if self.npz is not None and (self.subject or self.scan or self.mask or self.split):
            raise ValueError(
                "an npz brings its own subjects, scans and split; leave those keys out"
            )
        return self


@dataclass(frozen=True)
class CohortRow:
    """One scan. ``scan`` and ``mask`` are what :func:`shards.scan.read_scan` takes."""

    subject: str
    scan: str
    mask: str | None
    split: str | None
    modality: str | None
    values: Mapping[str, Value]


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
    table = Path(data_root) / (config.table or config.npz or "")
    if not table.is_file():
        raise CohortError(
            f"cohort {config.name}: {table} does not exist; its data is: {config.source}; put it"
            " there or point data_root at the folder that holds it"
        )
    rows = _npz_rows(config, table) if config.npz else _table_rows(config, table)
    if not rows:
        raise CohortError(f"cohort {config.name}: {table} has no rows; is the download complete?")
    _check_rows(config.name, rows)
    content = hashlib.sha256(table.read_bytes()).hexdigest()
    key = digest({"config": config.model_dump(mode="json"), "content": content})
    return Cohort(config=config, rows=tuple(rows), digest=key)


def _table_rows(config: CohortConfig, table: Path) -> list[CohortRow]:
    columns = _read_columns(config.name, table)
    if not columns:
        return []
    _check_columns(config, columns)
    names = list(columns)
    records = [
        dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)
    ]
    assert config.subject is not None
    assert config.scan is not None
    subjects = [_filled(config, config.subject, record) for record in records]
    splits = _splits(config, subjects, records)
    return [
        CohortRow(
            subject=subject,
            scan=str(table.parent / _filled(config, config.scan, record)),
            mask=str(table.parent / _filled(config, config.mask, record)) if config.mask else None,
            split=split,
            modality=_filled(config, config.modality, record) if config.modality else None,
            values=record,
        )
        for subject, split, record in zip(subjects, splits, records, strict=True)
    ]


def _npz_rows(config: CohortConfig, table: Path) -> list[CohortRow]:
    """MedMNIST: arrays ``{train,val,test}_images`` (N, D, H, W) and ``_labels`` (N, 1)."""
    rows = []
    try:
        with np.load(table, allow_pickle=False) as arrays:
            labels = {split: arrays[f"{split}_labels"].reshape(-1) for split in SPLITS}
        if any(each.dtype.kind not in "biu" for each in labels.values()):
            raise ValueError("labels that are no whole numbers")
    # The library raises a dozen types for bytes that are no archive.
    except Exception as error:
        raise CohortError(
            f"cohort {config.name}: {table} is not a MedMNIST archive ({error}); it needs"
            " {train,val,test}_images and {train,val,test}_labels"
        ) from None
    for split in SPLITS:
        rows += [
            CohortRow(
                subject=f"{split}-{index}",
                scan=f"{table}#{split}/{index}",
                mask=None,
                split=split,
                modality=config.modality,
                values={"label": int(label)},
            )
            for index, label in enumerate(labels[split])
        ]
    return rows


def _read_columns(name: str, table: Path) -> dict[str, list[Value]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
            if any("\0" in cell for line in [header, *lines] for cell in line):
                raise ValueError("it holds a zero byte")
    except (ValueError, csv.Error) as error:
        raise CohortError(f"cohort {name}: {table} is not a CSV table ({error})") from None
    lines = [line for line in lines if line]
    if len(set(header)) != len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise CohortError(f"cohort {name}: {table} has the column {twice!r} twice")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise CohortError(
                f"cohort {name}: {table}, row {number}: {len(line)} cells, expected {len(header)}"
            )
    cells = [[line[index].strip() for line in lines] for index in range(len(header))]
    return {column: _typed(values) for column, values in zip(header, cells, strict=True)}


def _typed(cells: Sequence[str]) -> list[Value]:
    """A column as int, float or text, whichever all its cells allow; an empty cell is None.

    A leading zero makes text: ``007`` is a name, not a number.
    """
    filled = [cell for cell in cells if cell]
    kind: type[str] | type[int] | type[float] = str
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", cell) for cell in filled):
        kind = int
    elif all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell) for cell in filled) and (
        not any(re.fullmatch(r"-?0\d+", cell) for cell in filled)
    ):
        kind = float
    return [kind(cell) if cell else None for cell in cells]


def _check_columns(config: CohortConfig, columns: Mapping[str, object]) -> None:
    templates = [config.subject, config.scan, config.mask, config.modality]
    wanted = [name for text in templates if text for name in _columns_of(config, text)]
    if config.split and config.split.column:
        wanted.append(config.split.column)
    for name in wanted:
        if name not in columns:
            close = difflib.get_close_matches(name, list(columns), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(columns)}"
            raise CohortError(f"cohort {config.name}: the table has no column {name!r}; {hint}")


def _columns_of(config: CohortConfig, template: str) -> list[str]:
    """The columns a format string names."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise CohortError(f"cohort {config.name}: {template!r} is no template ({error})") from None


def _filled(config: CohortConfig, template: str, record: Mapping[str, Value]) -> str:
    for name in _columns_of(config, template):
        if record[name] is None:
            raise CohortError(f"cohort {config.name}: {template!r} meets an empty {name!r} cell")
    try:
        return template.format_map(record)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise CohortError(
            f"cohort {config.name}: {template!r} does not fit its columns ({error})"
        ) from None


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
        if row.modality is not None and row.modality not in MODALITIES:
            raise CohortError(
                f"cohort {name}: row {number} has modality {row.modality!r}; expected one of"
                f" {', '.join(MODALITIES)}"
            )
