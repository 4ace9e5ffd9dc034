"""Traces in features of having been fitted on more than the training rows.

Features that are fitted on training rows must change when those rows do, and must not depend on the
rows they are computed beside. Ready-made features whose columns are centred, scaled to [0, 1] or
uncorrelated to rounding over all subjects, which no measurement is by chance, were fitted on all of
them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Fitted, Floats, Rows

_ROUNDING = 1e-6  # of a column's spread: what means, ends and correlations are off by in float32
_CODES = 8  # a column of so few values may be centred, or reach from 0 to 1, by its coding
_LEAST_SHARE = 0.05  # of the columns of a table: one among many is centred by chance
_PAIRS = 12  # of training rows that a canary fits on
_MOST_COLUMNS = 2048  # of a table that are looked at, evenly spread


def fitted_elsewhere(features: Fitted, train: Rows) -> bool:
    """Whether the features are the same whichever training rows they are fitted on."""
    values = features.values[train]
    whole = features.fit(values)(values)
    if len(train) < 2 or not _varies(whole).any():
        return False
    rng = np.random.default_rng(0)
    pairs = [np.sort(rng.choice(len(train), 2, replace=False)) for _ in range(_PAIRS)]
    return all(_same(whole, features.fit(values[pair])(values)) for pair in pairs)


def depends_on_company(features: Fitted, train: Rows) -> bool:
    """Whether a subject's features change with the subjects they are computed beside."""
    transform = features.fit(features.values[train])
    some = np.arange(0, len(features.values), 2)
    return not _same(transform(features.values)[some], transform(features.values[some]))


def fitted_on_everybody(values: NDArray[Any], train: Rows | None) -> str:
    """What makes ready-made features (n, P) look fitted on all n rows; empty when nothing does.

    Args:
        values: Of every subject.
        train: Rows where the same pattern would be in order; None where folds are drawn.
    """
    values = np.asarray(values[:, :: 1 + values.shape[1] // _MOST_COLUMNS], dtype=np.float64)
    columns = _telling_columns(values)
    if not columns.shape[1]:
        return ""
    for words, pattern in (
        ("centred", _centred), ("scaled to [0, 1]", _min_max), ("uncorrelated", _uncorrelated)
    ):  # fmt: skip
        found = pattern(columns)
        if train is not None and len(train) > 1:
            found &= ~pattern(columns[train])
        if found.any() and found.sum() >= _LEAST_SHARE * values.shape[1]:
            return f"{found.sum()} columns are {words} over all subjects"
    return ""


def _same(first: Floats, second: Floats) -> bool:
    if first.shape != second.shape:
        return False
    spread = max(float(np.nanstd(first)), float(np.finfo(np.float64).tiny))
    return bool(np.allclose(first, second, rtol=0.0, atol=_ROUNDING * spread, equal_nan=True))


def _varies(values: Floats) -> NDArray[np.bool_]:
    spread: NDArray[np.bool_] = np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(initial=1e-300)
    return spread


def _telling_columns(values: Floats) -> Floats:
    varying = values[:, _varies(values)]
    if not varying.shape[1]:
        return varying
    ordered = np.sort(varying, axis=0)
    return varying[:, (np.diff(ordered, axis=0) > 0).sum(axis=0) >= _CODES]


def _centred(columns: Floats) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(columns.mean(axis=0)) < _ROUNDING * columns.std(axis=0)
    return found


def _min_max(columns: Floats) -> NDArray[np.bool_]:
    low, high = np.abs(columns.min(axis=0)), np.abs(columns.max(axis=0) - 1.0)
    found: NDArray[np.bool_] = (low < _ROUNDING) & (high < _ROUNDING)
    return found


def _uncorrelated(columns: Floats) -> NDArray[np.bool_]:
    """Columns whose product with two or more others is zero, raw or about their means."""
    found = np.zeros(columns.shape[1], dtype=np.bool_)
    # Columns that are mostly zero may be so in different subjects: no wonder then.
    some = np.flatnonzero((columns != 0).mean(axis=0) > 0.5)
    for each in (columns[:, some], columns[:, some] - columns[:, some].mean(axis=0)):
        length = np.maximum(np.linalg.norm(each, axis=0), 1e-300)
        cosine = np.abs((each / length).T @ (each / length))
        found[some] |= (cosine < _ROUNDING).sum(axis=0) >= 2
    return found
