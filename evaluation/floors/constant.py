"""The majority class or the mean: the same score for every subject, whatever the kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Setting


def constant(kind: str, *, num_outputs: int) -> Estimator:
    """Shares of the classes or labels among the training rows, their mean, or no risk at all.

    Args:
        kind: Of the task.
        num_outputs: Columns of a score, as in ``Task.outputs``.
    """

    def predict(
        features: Any, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
    ) -> Floats:
        del features, settings
        columns = _columns(kind, label, num_outputs)
        known = np.isfinite(columns)
        weight = train.astype(np.float64)
        counts = weight @ known
        mean = (weight @ np.where(known, columns, 0.0)) / np.maximum(counts, 1.0)
        return np.repeat(mean[:, None, :], len(label), axis=1)

    return Estimator("constant", ({},), predict)


def _columns(kind: str, label: Floats, num_outputs: int) -> Floats:
    """What is averaged over training rows, (n, K); NaN where it is not known."""
    if kind in ("multiclass", "ordinal"):
        return (label[:, None] == np.arange(num_outputs)).astype(np.float64)
    if kind == "survival":
        return np.zeros((len(label), 1))
    return label if label.ndim == 2 else label[:, None]
