"""The k-NN of foundation/health.py as a protocol: the score that needs no training.

Printed beside the linear probe, which alone ranks backbones wrongly.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.protocols import Estimator, Floats, Setting
from foundation.health import TEMPERATURE, knn_vote

KS = (20, 10, 5)


def knn(kind: str) -> Estimator:
    """k-NN for a task's kind; neighbours vote by similarity for a class, equally for a value."""
    predict = _predict_class if kind == "binary" else _predict_value
    return Estimator("knn", tuple({"k": k} for k in KS), predict)


def _predict_class(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    return knn_vote(features, label, train, ks=_ks(settings), temperature=TEMPERATURE)


def _predict_value(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    return knn_vote(features, label, train, ks=_ks(settings), temperature=np.inf)


def _ks(settings: Sequence[Setting]) -> list[int]:
    return [int(setting["k"]) for setting in settings]
