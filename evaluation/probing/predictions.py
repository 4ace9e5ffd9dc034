"""An estimator's scores with a column for every output of the task.

An estimator knows the classes of the subjects it is handed. A class that only others have gets
probability 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Setting


def predict(
    estimator: Estimator,
    features: Any,
    label: Floats,
    train: NDArray[np.bool_],
    settings: Sequence[Setting],
    *,
    num_outputs: int,
) -> Floats:
    """Scores (B, n, K); see ``Estimator.predict``."""
    return padded(estimator.predict(features, label, train, settings), num_outputs)


def padded(scores: Floats, num_outputs: int) -> Floats:
    """(B, n, K') to (B, n, K)."""
    missing = num_outputs - scores.shape[2]
    return np.pad(scores, ((0, 0), (0, 0), (0, missing))) if missing > 0 else scores
