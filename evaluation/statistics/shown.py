"""Predictions of a store as the rows that statistics are computed on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from evaluation.statistics.reliability import Shown
from evaluation.storing.rows import Predicted, matrices
from foundation.metrics.rows import as_columns

if TYPE_CHECKING:
    import pandas

Key = tuple[str, str]
"""Model and protocol."""


def all_shown(
    predictions: "pandas.DataFrame", split: str, kind: str, *, seed: int
) -> dict[Key, Shown]:
    """Every model and protocol on the shown split, with validation where that is another one.

    Args:
        predictions: ``PREDICTION_COLUMNS``, all splits that are stored.
        split: The shown one.
        kind: Of the task.
        seed: Of the folds that temperatures and thresholds are fitted on.
    """
    held: Mapping[Key, Predicted] = {} if split == "val" else _by_key(predictions, "val", kind)
    found = {}
    for key, one in _by_key(predictions, split, kind).items():
        validation = as_columns(held[key].label, held[key].score) if key in held else None
        label, score = as_columns(one.label, one.score)
        found[key] = Shown(kind, label, score, one.subjects, validation, seed, key[1])
    return found


def _by_key(predictions: "pandas.DataFrame", split: str, kind: str) -> dict[Key, Predicted]:
    rows = predictions[predictions["split"] == split]
    parts = rows.groupby(["model", "protocol"], sort=True, observed=True)
    return {(str(key[0]), str(key[1])): matrices(part, kind=kind) for key, part in parts}
