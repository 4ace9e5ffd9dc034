"""Tasks that are made, not read: a card, labels and a split, without a cohort or a scan."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.tasks.card import TaskCard
from foundation.tasks.task import Task
from recipes.load import parse
from shards.sources.cohort import CohortRow

_LABELS: dict[str, dict[str, Any]] = {
    "binary": {"column": "label"},
    "multiclass": {"column": "label", "classes": ["a", "b", "c"]},
    "ordinal": {"column": "label", "levels": ["low", "middle", "high"]},
    "multilabel": {"columns": ["first", "second"]},
    "regression": {"column": "label"},
    "survival": {"time_days": "time", "event": "event"},
    "retrieval": {"column": "label", "classes": ["a", "b", "c"]},
}
_OUTPUTS = {
    "multiclass": ("a", "b", "c"),
    "ordinal": ("low", "middle", "high"),
    "multilabel": ("first", "second"),
    "retrieval": ("average_precision", "hit_at_1", "hit_at_5"),
}


@dataclass(frozen=True)
class Toy:
    """What the probes read of a ``Task``."""

    card: Any
    subjects: tuple[str, ...]
    label: np.ndarray
    outputs: tuple[str, ...]
    split: np.ndarray

    def rows(self, *splits: str) -> np.ndarray:
        return np.flatnonzero(np.isin(self.split, splits))


def made_task(
    kind: str = "binary", *, label: Any = None, sizes: tuple[int, int, int] = (40, 16, 16),
    folds: bool = False, **card: Any,
) -> Task:  # fmt: skip
    """A task of subjects ``s000`` and so on with one scan each.

    Args:
        kind: Of the task.
        label: As ``Task.label``; alternating 0 and 1 by default.
        sizes: Of training, validation and test; their sum is n.
        folds: Cross-validated, without a split.
        card: Further keys of the card.
    """
    n = sum(sizes)
    tree: dict[str, Any] = {"name": "made", "title": "Made", "disease": "none", "cohort": "none"}
    protocol: dict[str, Any] = {"repeated_cv": {}} if folds else {"split": "cohort"}
    tree |= {"kind": kind, "label": _LABELS[kind], "protocol": protocol, **card}
    subjects = tuple(f"s{number:03d}" for number in range(n))
    rows = tuple(CohortRow(name, f"{name}.nii", None, None, "MR", {}) for name in subjects)
    cohort: Any = None
    values: Any = np.arange(n) % 2.0 if label is None else np.asarray(label, dtype=np.float64)
    return Task(
        card=parse(tree, TaskCard, where="card"),
        cohort=cohort,
        subjects=subjects,
        label=values,
        outputs=_OUTPUTS.get(kind, ("1",)),
        classes=(),
        split=np.repeat(["cv"] * 3 if folds else ["train", "val", "test"], sizes),
        scans=tuple((row,) for row in rows),
        candidates=rows,
        threshold=None,
    )
