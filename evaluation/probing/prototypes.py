"""Nearest class mean, SimpleShot (Wang et al. 2019): nothing is trained, so one subject will do.

Features are centred on the mean of the training rows and brought to length 1; a class is the mean
of its rows, and a row's probabilities are the softmax of its cosines to the classes, divided by a
temperature. That sets how sure the scores are; the order of two classes it leaves as it is.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Setting
from evaluation.probing.logistic import sigmoid
from evaluation.probing.multinomial import one_hot, softmax

KINDS = ("binary", "multiclass", "multilabel", "ordinal")
TEMPERATURES = (1.0, 0.3, 0.1, 0.03)

_ENTRIES_AT_ONCE = 4_000_000


def prototypes(kind: str) -> Estimator:
    """Nearest class means for a task's kind; a label of many is two classes of its own."""
    if kind not in KINDS:
        raise ValueError(f"no class means for a {kind} task; there are for {', '.join(KINDS)}")

    def predict(
        features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
    ) -> Floats:
        columns = _classes(label, kind)
        cosine = prototype_cosines(features, columns, train)
        scaled = cosine / np.array([float(each["temperature"]) for each in settings])[:, None, None]
        if kind == "binary":
            return sigmoid(_against(scaled)[:, :, :1])
        return sigmoid(_against(scaled)) if kind == "multilabel" else softmax(scaled)

    settings = tuple({"temperature": temperature} for temperature in TEMPERATURES)
    return Estimator("prototypes", settings, predict)


def _classes(label: Floats, kind: str) -> Floats:
    """Which class each row is of, (n, K); of labels first those with, then those without."""
    if kind in ("multiclass", "ordinal"):
        return one_hot(label, int(label.max()) + 1)
    columns = label.reshape(len(label), -1)
    return np.concatenate([columns == 1, columns == 0], axis=1).astype(np.float64)


def _against(cosine: Floats) -> Floats:
    """Cosine with a label minus cosine without it; 0 where a side has no training row."""
    having, lacking = np.split(cosine, 2, axis=2)
    difference = having - lacking
    return np.where(np.isfinite(difference), difference, 0.0)


def prototype_cosines(features: Floats, classes: Floats, train: NDArray[np.bool_]) -> Floats:
    """Cosine of every row with each class mean, (B, n, K); minus infinity of an empty class.

    Args:
        features: (n, P).
        classes: 1 where a row is of a class, (n, K).
        train: Rows that classes are made of, (B, n).
    """
    # All distances come from one table of products. It is taken about a point inside the data, or
    # the differences would cancel.
    exact = np.asarray(features, dtype=np.float64)
    centred = exact - exact[train.any(axis=0)].mean(axis=0)
    gram = centred @ centred.T
    return np.concatenate(list(_by_parts(gram, classes, train)))


def _by_parts(gram: Floats, classes: Floats, train: NDArray[np.bool_]) -> Iterator[Floats]:
    step = max(1, _ENTRIES_AT_ONCE // classes.size)
    for start in range(0, len(train), step):
        yield _cosines(gram, classes, train[start : start + step].astype(np.float64))


def _cosines(gram: Floats, classes: Floats, train: Floats) -> Floats:
    """With x, y centred by the mean m: (x - m)(y - m) = xy - xm - ym + mm, all from the table."""
    share = train / train.sum(axis=1, keepdims=True)
    to_mean = share @ gram  # (B, n): product of each row with the mean
    mean = (share * to_mean).sum(axis=1)[:, None]
    length = np.sqrt(np.maximum(np.diagonal(gram) - 2 * to_mean + mean, 1e-24))
    members = train[:, :, None] * classes
    counts = members.sum(axis=1)
    part = members / np.maximum(counts, 1.0)[:, None, :] / length[:, :, None]
    sums = part.sum(axis=1)[:, None, :]
    products = (gram @ part) - to_mean[:, :, None] * sums
    products += mean[:, :, None] * sums - (to_mean[:, :, None] * part).sum(axis=1)[:, None, :]
    similar = products / length[:, :, None]
    # A class mean's own length: the mean of its products with the rows it is made of.
    square = (similar * members).sum(axis=1) / np.maximum(counts, 1.0)
    cosine = similar / np.sqrt(np.maximum(square, 1e-24))[:, None, :]
    return np.where(counts[:, None, :] > 0, cosine, -np.inf)
