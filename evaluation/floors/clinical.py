"""Metadata without an image: columns of the cohort's table as features, fitted on training rows.

A number becomes its distance from the training median, which also stands in where it is missing; a
column that misses some in training has a flag beside it. Text becomes one column for each value the
training rows hold; any other value is all zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Fitted, Floats
from foundation.tasks.task import Task

Cells = NDArray[np.object_]
Encoder = Callable[[Cells], Floats]


def clinical_table(task: Task, columns: Sequence[str]) -> Cells:
    """Cells of the subjects' first rows, (n, columns); None where one is empty."""
    table = np.empty((len(task.scans), len(columns)), dtype=object)
    for row, scans in enumerate(task.scans):
        table[row] = [scans[0].values[column] for column in columns]
    return table


def table_features(table: Cells) -> Fitted:
    """Features of a table of cells; whatever they are fitted on is training rows."""
    return Fitted(table, fit_table)


def beside(table: Cells, numbers: NDArray[Any]) -> Cells:
    """The table with (n, M) columns of numbers to its right."""
    return np.concatenate([table, numbers.astype(np.float64).astype(object)], axis=1)


def fit_table(rows: Cells) -> Encoder:
    """From training rows, (n, columns): what encodes any rows as (m, P).

    Numbers come first, then flags of the columns that miss some in training, then text.
    """
    is_text = _are_text(rows).any(axis=0)
    numbers = _numbers(rows[:, ~is_text])
    is_flagged = np.isnan(numbers).any(axis=0)
    numbers[:, np.isnan(numbers).all(axis=0)] = 0.0
    medians = np.nanmedian(numbers, axis=0) if numbers.size else np.zeros(numbers.shape[1])
    levels = [_levels(cells) for cells in rows[:, is_text].T]

    def encode(others: Cells) -> Floats:
        values = _numbers(others[:, ~is_text])
        is_missing = np.isnan(values)
        distance = np.where(is_missing, 0.0, values - medians)
        flags = is_missing[:, is_flagged].astype(np.float64)
        text = others[:, is_text].T
        hot = [_one_hot(cells, of) for cells, of in zip(text, levels, strict=True)]
        return np.concatenate([distance, flags, *hot], axis=1)

    return encode


def _numbers(cells: Cells) -> Floats:
    """As float64; NaN for an empty cell, and for text: a value the training rows never had."""
    kept = cells.copy()
    kept[_are_text(cells)] = None
    return kept.astype(np.float64)


def _are_text(cells: Cells) -> NDArray[np.bool_]:
    answers = np.frompyfunc(lambda cell: isinstance(cell, str), 1, 1)(cells)
    return np.asarray(answers, dtype=np.bool_).reshape(cells.shape)


def _levels(cells: Cells) -> list[str]:
    return sorted({str(cell) for cell in cells if cell is not None})


def _one_hot(cells: Cells, levels: Sequence[str]) -> Floats:
    hot = [[float(cell is not None and str(cell) == level) for level in levels] for cell in cells]
    return np.array(hot, dtype=np.float64).reshape(len(cells), len(levels))
