"""Predictions between matrices, one row a subject, and the long table that a store keeps."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]

PER_OUTPUT = "multilabel"
"""The kind whose label is another one in each column of a score."""


class Predicted(NamedTuple):
    """One model by one protocol on one split.

    Attributes:
        subjects: n pseudonyms, sorted.
        label: (n,), (n, L) for a multilabel task, (n, 2) of time and event for survival.
        score: (n, K).
    """

    subjects: tuple[str, ...]
    label: Floats
    score: Floats


def to_rows(
    subjects: Sequence[str], label: Floats, score: Floats, *, kind: str
) -> Iterator[tuple[str, int, float, float, float]]:
    """``(subject, output, label, event, score)`` for the columns of the store.

    Args:
        subjects: n pseudonyms.
        label: As ``Task.label``.
        score: (n, K).
        kind: Of the task.
    """
    for subject, truth, values in zip(subjects, label, score, strict=True):
        for output, value in enumerate(values):
            if kind == PER_OUTPUT:
                yield subject, output, float(truth[output]), np.nan, float(value)
            elif kind == "survival":
                yield subject, output, float(truth[0]), float(truth[1]), float(value)
            else:
                yield subject, output, float(truth), np.nan, float(value)


def matrices(rows: "pandas.DataFrame", *, kind: str) -> Predicted:
    """The matrices again, of the rows of one model, protocol and split.

    Raises:
        ValueError: A subject lacks one of the outputs.
    """
    ordered: Any = rows.sort_values(["subject", "output"], kind="stable")
    num_outputs = int(ordered["output"].max()) + 1
    subjects = ordered["subject"].to_numpy(str)
    outputs = ordered["output"].to_numpy()
    n = len(ordered) // num_outputs
    whole = n * num_outputs == len(ordered) and (outputs == np.tile(range(num_outputs), n)).all()
    if not whole or (subjects.reshape(n, -1) != subjects[::num_outputs, None]).any():
        raise ValueError(f"predictions: not all of {num_outputs} outputs of each subject are there")
    label, event, score = (
        ordered[name].to_numpy(np.float64).reshape(n, num_outputs)
        for name in ("label", "event", "score")
    )
    if kind == "survival":
        label = np.stack([label[:, 0], event[:, 0]], axis=1)
    elif kind != PER_OUTPUT:
        label = label[:, 0]
    return Predicted(tuple(subjects[::num_outputs]), label, score)
