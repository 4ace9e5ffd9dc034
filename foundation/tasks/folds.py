"""Folds of subjects: disjoint, stratified by what a metric needs some of, and nested."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.tasks.card import RepeatedCv

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

INNER_FOLDS = 5

_MOST_LABELS = 3  # subjects with more positive labels are rare: they are one stratum


class Fold(NamedTuple):
    """An outer fold.

    Attributes:
        train: Everyone outside the fold.
        held_out: The fold.
        inner: Pairs (train, held out) that cut ``train`` again, to choose settings by.
    """

    train: Rows
    held_out: Rows
    inner: tuple[tuple[Rows, Rows], ...]


def strata(label: Floats, *, kind: str) -> Rows:
    """Which rows are alike, (n,): by class, by event, by number of positive labels, or all."""
    if kind in ("binary", "multiclass", "ordinal", "retrieval"):
        return label.astype(np.int64)
    if kind == "survival":
        return label[:, 1].astype(np.int64)
    if kind == "multilabel":
        return np.minimum(np.nansum(label, axis=1), _MOST_LABELS).astype(np.int64)
    return np.zeros(len(label), dtype=np.int64)


def stratified_folds(
    stratum: Rows, rows: Rows, *, num_folds: int, rng: np.random.Generator
) -> list[Rows]:
    """Cut rows into disjoint folds whose strata are within one subject of each other."""
    of_rows = stratum[rows]
    dealt = np.concatenate([rng.permutation(rows[of_rows == each]) for each in np.unique(of_rows)])
    return [np.sort(dealt[start::num_folds]) for start in range(num_folds)]


def nested_folds(label: Floats, *, kind: str, cv: RepeatedCv) -> list[Fold]:
    """Outer folds of all repeats, in order; they depend on the labels' strata and the seed."""
    rng = np.random.default_rng(cv.seed)
    stratum, everyone = strata(label, kind=kind), np.arange(len(label))
    outer = [pair for _ in range(cv.repeats) for pair in _pairs(stratum, everyone, cv.folds, rng)]
    return [
        Fold(train, held_out, tuple(_pairs(stratum, train, _num_inner(stratum, train, kind), rng)))
        for train, held_out in outer
    ]


def _num_inner(stratum: Rows, train: Rows, kind: str) -> int:
    """As many as the rarest class can be dealt to, from 2 to ``INNER_FOLDS``."""
    sizes = np.unique(stratum[train], return_counts=True)[1]
    rarest = len(train) if kind == "multilabel" else int(sizes.min())
    return max(2, min(INNER_FOLDS, rarest))


def _pairs(
    stratum: Rows, rows: Rows, num_folds: int, rng: np.random.Generator
) -> list[tuple[Rows, Rows]]:
    folds = stratified_folds(stratum, rows, num_folds=num_folds, rng=rng)
    return [(np.setdiff1d(rows, fold), fold) for fold in folds]
