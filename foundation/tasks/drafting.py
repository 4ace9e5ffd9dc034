"""A cohort, a task card and a recipe for a folder of scans and a table of labels, as files.

They are what a person would have written, so that the person can go on from them.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from foundation.tasks.guesses import Guess
from foundation.tasks.labels import TaskError
from foundation.tasks.matching import Match
from shards.sources.cohort import SPLITS

Value = str | int | float | None

SMALL = 150
"""Subjects below which a split leaves too few to score: cross-validation tests each of them."""

REPEATS = 5
"""Of the cross-validation: enough for a first look; the card may say more."""

_OURS = ("scanfm_subject", "scanfm_scan", "scanfm_split")
_SPLIT_WORDS = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


class Draft(NamedTuple):
    """What goes into the files.

    Attributes:
        name: Of the cohort, the task and the store.
        columns: The user's table.
        matches: Its scans.
        subject: The column of subjects.
        guess: Kind and label.
        keep: Further columns that go into the table.
        split: A column of the split, or None.
    """

    name: str
    columns: Mapping[str, Sequence[Value]]
    matches: Sequence[Match]
    subject: str
    guess: Guess
    keep: Sequence[str]
    split: str | None


def slug(text: str) -> str:
    """Small letters, digits and _, as names in recipes are."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "task"


def write_table(path: Path, draft: Draft) -> int:
    """The cohort's table, one row per scan; returns the number of subjects."""
    label = draft.guess.label
    used = [label.get("column"), label.get("time_days"), label.get("event")]
    names = [name for name in (*used, *label.get("columns", ()), *draft.keep) if name is not None]
    names = list(dict.fromkeys(names))
    ours = _OURS if draft.split is not None else _OURS[:2]
    subjects = set()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*ours, *names])
        for match in draft.matches:
            subject = draft.columns[draft.subject][match.row]
            cells = [subject, match.scan.resolve()]
            if draft.split is not None:
                cells.append(_split_word(draft.columns[draft.split][match.row], draft.split))
            writer.writerow([*cells, *(draft.columns[name][match.row] for name in names)])
            subjects.add(subject)
    return len(subjects)


def cohort_recipe(draft: Draft, *, table: str, modality: str | None, small: bool) -> dict[str, Any]:
    """Of the cohort; ``source`` and ``licence`` are for its owner to fill in."""
    recipe: dict[str, Any] = {
        "name": draft.name,
        "table": table,
        "subject": f"{{{_OURS[0]}}}",
        "scan": f"{{{_OURS[1]}}}",
    }
    if modality is not None:
        recipe["modality"] = modality
    if draft.split is not None:
        recipe["split"] = {"column": _OURS[2]}
    elif not small:
        recipe["split"] = {"train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
    return {**recipe, "licence": "not stated", "source": "not stated"}


def task_card(
    draft: Draft,
    *,
    cohort: Path,
    small: bool,
    folds: int,
    clinical: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Of the task; what a machine cannot know is left for its owner to fill in."""
    label = draft.guess.label
    what = label.get("column") or label.get("event") or ", ".join(label["columns"])
    protocol: dict[str, Any] = {"split": "cohort"}
    if small:
        protocol = {"repeated_cv": {"folds": folds, "repeats": REPEATS, "seed": 0}}
    drawn = "drawn from a seeded hash of the subject" if draft.split is None else "of the table"
    return {
        "name": draft.name,
        "title": what,
        "disease": what,
        "cohort": str(cohort),
        "kind": draft.guess.kind,
        "label": label,
        "split_provenance": "" if small else drawn,
        "protocol": protocol,
        "floors": {"clinical": list(clinical)},
        "groups": list(groups),
        "known_floors": "",
        "known_leaks": "not looked into",
    }


def write_yaml(path: Path, tree: Mapping[str, Any], *, says: str) -> None:
    """A recipe with a comment above it."""
    text = yaml.safe_dump(dict(tree), sort_keys=False, width=100, allow_unicode=True)
    path.write_text(f"# {says}\n{text}", encoding="utf-8")


def num_folds(draft: Draft, *, most: int = 5) -> int:
    """Folds that the rarest class, or those with an event, fill; ``most`` where there is neither.

    Raises:
        TaskError: They are fewer than two.
    """
    column = draft.guess.label.get("column") or draft.guess.label.get("event")
    if draft.guess.kind not in ("binary", "multiclass", "ordinal", "survival") or column is None:
        return most
    of_subject = {
        draft.columns[draft.subject][match.row]: draft.columns[column][match.row]
        for match in draft.matches
    }
    cells = [cell for cell in of_subject.values() if cell is not None]
    asked = [draft.guess.label.get("positive", 1)] if draft.guess.kind == "survival" else cells
    rarest = min(asked, key=lambda cell: (cells.count(cell), str(cell)))
    count = cells.count(rarest)
    if count < 2:
        raise TaskError(
            f"{column!r} is {rarest!r} in {count} subjects, cross-validation takes two at the "
            "least; leave it out or merge classes"
        )
    return min(most, count)


def _split_word(cell: Value, column: str) -> str:
    word = str(cell).strip().lower()
    word = _SPLIT_WORDS.get(word, word)
    if word not in SPLITS:
        raise TaskError(f"{column!r} holds {cell!r}; a split is one of {', '.join(SPLITS)}")
    return word
