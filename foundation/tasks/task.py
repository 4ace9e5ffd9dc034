"""The subjects a task card makes of a cohort: who, which label, which part of the split.

The unit of independence is the subject: several scans or sequences of a subject become one row,
and the label must be the same on all of them.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.tasks.card import TaskCard
from foundation.tasks.checks import check_enough
from foundation.tasks.labels import Labels, TaskError, is_labelled, read_labels
from recipes.load import digest, load
from shards.pseudonym import pseudonym
from shards.sources.cohort import SPLITS, Cohort, CohortRow, load_cohort


@dataclass(frozen=True)
class Task:
    """A card with its subjects, ordered by split and subject.

    Attributes:
        subjects: Pseudonyms, (n,).
        label: float64, (n,): 0/1 of a binary task, the class or level of a multi-class, ordinal or
            retrieval task, the value of a regression, 0 of a segmentation, whose labels are the
            masks of ``scans``. Of a multi-label task (n, L) with NaN where a label is missing, of a
            survival task (n, 2): days above 0, and 1 for an event.
        outputs: Names of the columns of a score.
        classes: Names of the classes, levels or labels; empty for kinds without classes.
        split: ``train``, ``val`` or ``test``; ``cv`` throughout under cross-validation, (n,).
        scans: The cohort's rows of each subject, one per sequence; their features are averaged. Of
            a segmentation ``mask`` is the one the card names.
        candidates: All rows the card selects, labelled or not, ordered by subject: what features
            are extracted from, so tasks over the same scans share them.
        threshold: Where the label is a quantile, its value in the training split.
    """

    card: TaskCard
    cohort: Cohort
    subjects: tuple[str, ...]
    label: NDArray[np.float64]
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
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
        """Of the card and the table behind it; the order of the classes is not in the card's."""
        order = [list(self.outputs), list(self.classes)]
        return digest({"card": digest(self.card), "cohort": self.cohort.digest, "order": order})


def load_task(path: str | Path, *, data_root: Path, key: bytes, needs_test: bool = True) -> Task:
    """Read a card, its cohort and the labels.

    Args:
        path: Of the card; its ``cohort`` is a path from the same working directory.
        data_root: Folder the cohort's table is relative to.
        key: Makes pseudonyms, the same as in the shards.
        needs_test: False lets the test split be empty.

    Raises:
        TaskError: A column or mask that is not there, other data than the card's, no subjects,
            labels that disagree within a subject or are not what the kind asks for, or too few of
            them to learn from.
    """
    card = load(path, TaskCard)
    cohort = load_cohort(card.cohort, data_root=data_root)
    _check_digest(card, cohort)
    rows = _by_sequence(card, _with_mask(card, cohort))
    for name in _columns_read(card):
        _require_column(rows[0], name, card)
    rows = sorted(
        (row for row in rows if _is_selected(row, card)), key=lambda row: (row.subject, row.scan)
    )
    _check_masks(card, rows)
    labelled = [row for row in rows if is_labelled(row, card)]
    if not labelled:
        raise TaskError(
            f"task {card.name}: no scan of cohort {cohort.config.name} has a label and fits "
            f"{card.where or 'the card'}; check where and label"
        )
    task = _by_subject(card, cohort, labelled, key=key, candidates=rows)
    check_enough(task, needs_test=needs_test)
    return task


def _check_digest(card: TaskCard, cohort: Cohort) -> None:
    if card.data_digest is not None and not cohort.digest.startswith(card.data_digest):
        raise TaskError(
            f"task {card.name}: cohort {cohort.config.name} has the digest {cohort.digest[:12]}, "
            f"the card asks for {card.data_digest[:12]}: its table or its recipe is another; mend "
            "the data, or set data_digest once the new one is meant"
        )


def _with_mask(card: TaskCard, cohort: Cohort) -> list[CohortRow]:
    """The cohort's rows; for a segmentation their mask is the one that is predicted."""
    rows, name = list(cohort.rows), card.label.mask
    if card.kind != "segmentation":
        return rows
    known = list(dict.fromkeys(mask for row in rows for mask in row.masks))
    if name is None and all(row.mask is None for row in rows):
        raise TaskError(
            f"task {card.name}: cohort {cohort.config.name} has no mask; give it one, or name one "
            f"of its masks as label.mask: {', '.join(known) or 'it has none'}"
        )
    if name is None:
        return rows
    if name not in known:
        raise TaskError(
            f"task {card.name}: cohort {cohort.config.name} has no mask {name!r}; "
            f"{_hint(name, known)}"
        )
    return [replace(row, mask=row.masks.get(name)) for row in rows]


def _check_masks(card: TaskCard, rows: Sequence[CohortRow]) -> None:
    lacking = [row.scan for row in rows if row.mask is None]
    if card.floors.uses_mask and lacking:
        raise TaskError(
            f"task {card.name}: floors read the mask, and {len(lacking)} of {len(rows)} scans have "
            f"none, such as {lacking[0]}; give them one, leave them out with where, or let floors "
            "read the foreground"
        )


def _by_sequence(card: TaskCard, rows: Sequence[CohortRow]) -> list[CohortRow]:
    """A visit of several sequences as a row of each, or of each that the card names."""
    known = list(dict.fromkeys(name for row in rows for name in row.sequences))
    for name in card.sequences:
        if name not in known:
            raise TaskError(
                f"task {card.name}: its cohort has no sequence {name!r}; {_hint(name, known)}"
            )
    return [
        replace(row, scan=scan, modality=row.modalities[name], sequences={}, modalities={})
        if row.sequences
        else row
        for row in rows
        for name, scan in (row.sequences or {"": row.scan}).items()
        if not card.sequences or name in card.sequences
    ]


def _columns_read(card: TaskCard) -> Sequence[str]:
    return (*card.where, *card.label.read_columns, *card.floors.clinical, *card.groups)


def _require_column(row: CohortRow, column: str, card: TaskCard) -> None:
    if column not in row.values:
        raise TaskError(
            f"task {card.name}: its cohort has no column {column!r}; "
            f"{_hint(column, list(row.values))}"
        )


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"


def _is_selected(row: CohortRow, card: TaskCard) -> bool:
    return all(row.values[column] in allowed for column, allowed in card.where.items())


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
    part_of = {name: _part_of(scans[0], card, cohort) for name, scans in members.items()}
    order = sorted(members, key=lambda name: ((*SPLITS, "cv").index(part_of[name]), name))
    split = np.array([part_of[name] for name in order], dtype=np.str_)
    labels, threshold = _thresholded(
        read_labels([members[name] for name in order], card), split, card
    )
    return Task(
        card=card,
        cohort=cohort,
        subjects=tuple(pseudonym(key, cohort.config.name, name) for name in order),
        label=labels.values,
        outputs=labels.outputs,
        classes=labels.classes,
        split=split,
        scans=tuple(tuple(members[name]) for name in order),
        candidates=tuple(candidates),
        threshold=threshold,
    )


def _part_of(row: CohortRow, card: TaskCard, cohort: Cohort) -> str:
    if card.protocol.repeated_cv is not None:
        return "cv"
    if row.split is None:
        raise TaskError(
            f"task {card.name}: protocol.split needs a split, cohort {cohort.config.name} has "
            "none; give it one or use protocol.repeated_cv"
        )
    return row.split


def _thresholded(
    labels: Labels, split: NDArray[np.str_], card: TaskCard
) -> tuple[Labels, float | None]:
    """Numbers cut at a quantile of the training split, where the card asks for it."""
    if card.label.at_most_quantile is None:
        return labels, None
    if "train" not in split:
        raise TaskError(f"task {card.name}: the train split has no subject")
    numbers = labels.values
    threshold = float(np.quantile(numbers[split == "train"], card.label.at_most_quantile))
    return labels._replace(values=(numbers <= threshold).astype(np.float64)), threshold
