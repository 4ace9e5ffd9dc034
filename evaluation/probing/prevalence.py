"""Probabilities of several folds as if all had been trained at one prevalence.

A fold that holds out a positive trains on one less, so its scores are lower: pooled as they are, a
constant would score far below one half. Shifting the log-odds by the prior takes that out and
leaves the order within a fold as it is.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Floats

_LEAST = 1e-9
_DECIMALS = 12  # what is equal but for rounding is a tie


def class_shares(label: Floats, train: NDArray[np.bool_], *, num_outputs: int, kind: str) -> Floats:
    """Share of each class or label among the training rows of B problems, (B, K)."""
    if kind == "binary":
        columns = label[:, None]
    elif kind == "multilabel":
        columns = label
    else:
        columns = (label[:, None] == np.arange(num_outputs)).astype(np.float64)
    known = np.isfinite(columns)
    weight = train.astype(np.float64)
    shares: Floats = (weight @ np.where(known, columns, 0.0)) / np.maximum(weight @ known, 1.0)
    return shares


def at_prevalence(score: Floats, *, trained: Floats, wanted: Floats, kind: str) -> Floats:
    """Shift probabilities from the prevalence they were trained at to another.

    Args:
        score: (B, n, K).
        trained: (B, K), see :func:`class_shares`.
        wanted: (B, K) or (K,).
        kind: Of the task; scores that are no probabilities stay as they are.
    """
    if kind in ("binary", "multilabel"):
        shift = _log_odds(wanted) - _log_odds(trained)
        moved = 1.0 / (1.0 + np.exp(-(_log_odds(score) + shift[:, None, :])))
    elif kind in ("multiclass", "ordinal"):
        ratio = np.clip(wanted, _LEAST, 1) / np.clip(trained, _LEAST, 1)
        moved = np.clip(score, _LEAST, 1) * ratio[:, None, :]
        moved = moved / moved.sum(axis=2, keepdims=True)
    else:
        return score
    rounded: Floats = np.round(moved, _DECIMALS)
    return rounded


def _log_odds(probability: Floats) -> Floats:
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds
