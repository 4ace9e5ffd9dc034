"""A task card and the subjects it makes of a cohort: who, which label, which part of the split.

The unit of independence is the subject: several scans of a subject become one row, and the label
must be the same on all of them.
"""

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from recipes.load import Section, digest, load
from shards.pseudonym import pseudonym
from shards.sources.cohort import Cohort, CohortRow, load_cohort

SPLITS = ("train", "val", "test")
METRIC_OF_KIND = {"binary": "auroc", "regression": "r2"}


class TaskError(ValueError):
    """A task that cannot be scored; the message says which and why."""


class Label(Section):
    """Which column is predicted. With ``at_most_quantile`` the task is whether the column's value
    is at most that quantile of the training split."""

    column: str
    at_most_quantile: float | None = Field(default=None, gt=0, lt=1)


class RepeatedCv(Section):
    """Cross-validation by subject, stratified by class, repeated with new folds."""

    folds: int = Field(default=5, ge=2)
    repeats: PositiveInt = 20
    seed: int = 0


class Protocol(Section):
    """Either the split the data set came with or our cohort's own, or repeated cross-validation."""

    split: Literal["official", "cohort"] | None = None
    repeated_cv: RepeatedCv | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Protocol":
        if (self.split is None) == (self.repeated_cv is None):
            raise ValueError("give either split or repeated_cv")
        return self


class VoxelFloor(Section):
    """Raw voxels: each scan is brought to ``spacing_mm``, padded or cut about its centre to
    ``grid`` voxels, mean-pooled by ``pool`` and reduced to ``pca`` components."""

    spacing_mm: tuple[float, float, float] | None = None
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]
    pool: PositiveInt = 1
    pca: PositiveInt = 128

    @model_validator(mode="after")
    def _divides(self) -> "VoxelFloor":
        if any(edge % self.pool for edge in self.grid):
            raise ValueError(f"pool {self.pool} does not divide the grid {self.grid}")
        return self


class Floors(Section):
    """What a backbone must beat. The constant, the intensity histogram and random
    initialisations of each backbone always stand in the table.

    ``volume`` is one feature, ``mask_intensity`` the mean and maximum inside the cohort's mask;
    beside clinical columns, all of them together are one more floor."""

    volume: Literal["foreground", "mask"] | None = None
    clinical: tuple[str, ...] = ()
    mask_intensity: bool = False
    voxels: VoxelFloor | None = None


class TaskCard(Section):
    """Of ``recipes/tasks/NAME.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    disease: str
    cohort: str
    where: dict[str, list[str | int | float]] = Field(default_factory=dict)
    kind: Literal["binary", "regression"]
    label: Label
    spacing_mm: tuple[float, float, float] | None = None
    protocol: Protocol
    floors: Floors = Floors()
    groups: tuple[str, ...] = ()
    known_floors: str = ""
    known_leaks: str = ""

    @model_validator(mode="after")
    def _quantile_is_binary(self) -> "TaskCard":
        if self.label.at_most_quantile is None:
            return self
        if self.kind != "binary" or self.protocol.split is None:
            raise ValueError("label.at_most_quantile makes a binary task of a task with a split")
        return self

    @property
    def metric(self) -> str:
        """The primary metric, by which every choice is made."""
        return METRIC_OF_KIND[self.kind]


@dataclass(frozen=True)
class Task:
    """A card with its subjects, ordered by split and subject.

    Attributes:
        subjects: Pseudonyms, (n,).
        label: float64, (n,).
        split: ``train``, ``val`` or ``test``; ``cv`` throughout under cross-validation, (n,).
        scans: The cohort's rows of each subject; their features are averaged.
        candidates: All rows the card selects, labelled or not, ordered by subject: what features
            are extracted from, so tasks over the same scans share them.
        threshold: Where the label is a quantile, its value in the training split.
    """

    card: TaskCard
    cohort: Cohort
    subjects: tuple[str, ...]
    label: NDArray[np.float64]
    split: NDArray[np.str_]
    scans: tuple[tuple[CohortRow, ...], ...]
    candidates: tuple[CohortRow, ...]
    threshold: float | None

    @property
    def num_unlabelled(self) -> int:
        """Scans left out because their label is empty."""
        return len(self.candidates) - sum(len(rows) for rows in self.scans)

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Positions of the subjects in these splits."""
        return np.flatnonzero(np.isin(self.split, splits))

    @property
    def digest(self) -> str:
        """Of the card and the table behind it."""
        return digest({"card": digest(self.card), "cohort": self.cohort.digest})


def load_task(path: str | Path, *, data_root: Path, key: bytes) -> Task:
    """Read a card, its cohort and the labels.

    Args:
        path: Of the card; its ``cohort`` is a path from the same working directory.
        data_root: Folder the cohort's table is relative to.
        key: Makes pseudonyms, the same as in the shards.

    Raises:
        TaskError: A column that is not there, no subjects, labels that disagree within a subject
            or are not what the kind asks for, or a split with one class.
    """
    card = load(path, TaskCard)
    cohort = load_cohort(card.cohort, data_root=data_root)
    rows = sorted(
        (row for row in cohort.rows if _selected(row, card)),
        key=lambda row: (row.subject, row.scan),
    )
    labelled = [row for row in rows if _value(row, card.label.column, card) is not None]
    if not labelled:
        raise TaskError(
            f"task {card.name}: no scan of cohort {cohort.config.name} has a label and fits "
            f"{card.where or 'the card'}; check where and label.column"
        )
    for name in [*card.floors.clinical, *card.groups]:
        _value(rows[0], name, card)
    task = _by_subject(card, cohort, labelled, key=key, candidates=rows)
    _check_labels(task)
    return task


def describe_split(task: Task) -> str:
    """How the task's scores come about, in one sentence for the report."""
    cv = task.card.protocol.repeated_cv
    if cv is not None:
        return f"{cv.repeats} x {cv.folds}-fold cross-validation by subject, stratified, nested"
    whose = "official split" if task.card.protocol.split == "official" else "split of the cohort"
    return f"{whose}, by subject; settings chosen on validation"


def describe_label(task: Task) -> str:
    """What is predicted, in words."""
    label = task.card.label
    if label.at_most_quantile is None:
        return f"column {label.column}"
    return (
        f"{label.column} at most {task.threshold:g}, the {label.at_most_quantile:g} quantile of "
        "the training split"
    )


def _selected(row: CohortRow, card: TaskCard) -> bool:
    return all(_value(row, column, card) in allowed for column, allowed in card.where.items())


def _value(row: CohortRow, column: str, card: TaskCard) -> str | int | float | None:
    if column not in row.values:
        close = difflib.get_close_matches(column, list(row.values), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(row.values)}"
        raise TaskError(f"task {card.name}: its cohort has no column {column!r}; {hint}")
    return row.values[column]


def _by_subject(
    card: TaskCard,
    cohort: Cohort,
    rows: list[CohortRow],
    *,
    key: bytes,
    candidates: list[CohortRow],
) -> Task:
    members: dict[str, list[CohortRow]] = {}
    for row in rows:
        members.setdefault(row.subject, []).append(row)
    is_cv = card.protocol.repeated_cv is not None
    split_of = {subject: "cv" if is_cv else rows[0].split for subject, rows in members.items()}
    if None in split_of.values():
        raise TaskError(
            f"task {card.name}: protocol.split needs a split, cohort {cohort.config.name} has "
            "none; give it one or use protocol.repeated_cv"
        )
    order = sorted(members, key=lambda name: ((*SPLITS, "cv").index(str(split_of[name])), name))
    values = np.array([_label_of(members[name], card) for name in order])
    split = np.array([split_of[name] for name in order], dtype=np.str_)
    threshold = None
    if card.label.at_most_quantile is not None:
        if "train" not in split:
            raise TaskError(f"task {card.name}: the train split has no subject")
        threshold = float(np.quantile(values[split == "train"], card.label.at_most_quantile))
        values = (values <= threshold).astype(np.float64)
    return Task(
        card=card,
        cohort=cohort,
        subjects=tuple(pseudonym(key, cohort.config.name, name) for name in order),
        label=values,
        split=split,
        scans=tuple(tuple(members[name]) for name in order),
        candidates=tuple(candidates),
        threshold=threshold,
    )


def _label_of(rows: list[CohortRow], card: TaskCard) -> float:
    values = {row.values[card.label.column] for row in rows}
    if len(values) > 1:
        raise TaskError(
            f"task {card.name}: a subject has {len(values)} different values of "
            f"{card.label.column!r}; a label is one per subject"
        )
    value = values.pop()
    if isinstance(value, str) or value is None:
        raise TaskError(f"task {card.name}: {card.label.column!r} holds {value!r}, not a number")
    return float(value)


def _check_labels(task: Task) -> None:
    card, cv = task.card, task.card.protocol.repeated_cv
    wrong = [value for value in np.unique(task.label) if value not in (0.0, 1.0)]
    if card.kind == "binary" and wrong:
        raise TaskError(
            f"task {card.name}: a binary label is 0 or 1, {card.label.column!r} holds {wrong[0]:g}"
        )
    for part in ("cv",) if cv else SPLITS:
        label = task.label[task.split == part]
        counts = Counter(label.tolist())
        if not len(label):
            raise TaskError(f"task {card.name}: the {part} split has no subject")
        if len(counts) == 1:
            what = "class" if card.kind == "binary" else "value"
            raise TaskError(
                f"task {card.name}: the {part} split has one {what} (all {len(label)} are "
                f"{label[0]:g}), so nothing can be scored; change the split or the label"
            )
        if cv and card.kind == "binary" and min(counts.values()) < cv.folds:
            raise TaskError(
                f"task {card.name}: {min(counts.values())} subjects of the rarer class do not fill "
                f"{cv.folds} folds; lower protocol.repeated_cv.folds"
            )


def count_groups(task: Task) -> Mapping[str, Mapping[str, int]]:
    """Number of subjects at each value of the card's group columns."""
    firsts = [rows[0].values for rows in task.scans]
    return {
        column: dict(sorted(Counter(str(values[column]) for values in firsts).items()))
        for column in task.card.groups
    }
