"""k-nearest neighbours by cosine similarity, weighted by temperature as in DINO (Caron et al. 2021,
appendix F), for the score that needs no training.

Printed beside the linear probe, which alone ranks backbones wrongly.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.protocols import Estimator, Floats, Setting

KS = (20, 10, 5)
_TEMPERATURE = 0.07
_ENTRIES_AT_ONCE = 8_000_000


def knn(kind: str) -> Estimator:
    """k-NN for a task's kind; neighbours vote by similarity for a class, equally for a value."""
    predict = _predict_class if kind == "binary" else _predict_value
    return Estimator("knn", tuple({"k": k} for k in KS), predict)


def _predict_class(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    return _vote(features, label, train, settings, temperature=_TEMPERATURE)


def _predict_value(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    return _vote(features, label, train, settings, temperature=np.inf)


def _vote(
    features: Floats,
    label: Floats,
    train: NDArray[np.bool_],
    settings: Sequence[Setting],
    *,
    temperature: float,
) -> Floats:
    """Weighted mean of the labels of each row's nearest training rows, never itself: (B, n)."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    scores = np.empty(train.shape)
    step = max(1, _ENTRIES_AT_ONCE // similarity.size)
    for start in range(0, len(train), step):
        some = slice(start, start + step)
        masked = np.where(train[some, None, :], similarity, -np.inf)  # (b, n, n)
        nearest = np.argsort(-masked, axis=2, kind="stable")[:, :, : max(KS)]
        closeness = np.take_along_axis(masked, nearest, axis=2)
        ks = np.array([setting["k"] for setting in settings[some]])[:, None, None]
        counted = (np.arange(nearest.shape[2]) < ks) & np.isfinite(closeness)
        with np.errstate(invalid="ignore"):
            weight = np.exp((closeness - closeness[:, :, :1]) / temperature)
        weight = np.where(counted, weight, 0.0)
        scores[some] = (weight * label[nearest]).sum(2) / weight.sum(2)
    return scores
