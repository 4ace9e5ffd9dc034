"""The k-NN of foundation/health.py as a protocol: the score that needs no training.

Printed beside the linear probe, which alone ranks backbones wrongly. Neighbours are the nearest by
cosine. For classes and labels they vote with the weight ``exp(cosine / temperature)``, a label only
among those who have it; for a value they count alike. For survival the score is the log of the
cumulative hazard among the neighbours (Nelson and Aalen), averaged over the times of all training
subjects, which is the mortality that a survival forest sums (Ishwaran et al. 2008).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Rows, Setting
from evaluation.probing.multinomial import one_hot
from foundation.health import TEMPERATURE

KS = (20, 10, 5)


class _Asked(NamedTuple):
    """The neighbours of every row in some problems.

    Attributes:
        problems: Positions.
        members: Training rows, nearest first, (n, k).
        cosine: With each of them, (n, k).
    """

    problems: Rows
    members: Rows
    cosine: Floats


def knn(kind: str) -> Estimator:
    """k-NN for a task's kind."""
    if kind not in _PREDICT:
        raise ValueError(f"no k-NN for a {kind} task; there is one for {sorted(_PREDICT)}")
    return Estimator("knn", tuple({"k": k} for k in KS), _PREDICT[kind])


def _neighbours(
    features: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Iterator[_Asked]:
    """Neighbours by distinct training set and k; a smaller training set answers as a whole."""
    exact = np.asarray(features, dtype=np.float64)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    order = np.argsort(-cosine, axis=1, kind="stable")
    asked: dict[tuple[bytes, int], list[int]] = {}
    for problem, (rows, setting) in enumerate(zip(train, settings, strict=True)):
        asked.setdefault((rows.tobytes(), int(setting["k"])), []).append(problem)
    sorted_of: tuple[bytes, Rows] = (b"", order)
    for (mask, k), problems in asked.items():
        if sorted_of[0] != mask:
            # Every line of the order holds each training row once.
            inside = train[problems[0]][order]
            sorted_of = (mask, order[inside].reshape(len(order), -1))
        members = sorted_of[1][:, :k]
        yield _Asked(np.array(problems), members, np.take_along_axis(cosine, members, axis=1))


def _vote(asked: _Asked, values: Floats, *, temperature: float) -> Floats:
    """Weighted mean of the neighbours' values, (n,) or (n, K)."""
    closeness = asked.cosine - asked.cosine[:, :1]
    weight = np.exp(closeness / temperature)
    weight = weight / weight.sum(axis=1, keepdims=True)
    votes: Floats = np.einsum("nk,nkv->nv", weight, values[asked.members])
    return votes


def _classes(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    columns = one_hot(label, int(label.max()) + 1)
    scores = np.empty((*train.shape, columns.shape[1]))
    for asked in _neighbours(features, train, settings):
        scores[asked.problems] = _vote(asked, columns, temperature=TEMPERATURE)
    return scores


def _column(
    features: Floats,
    label: Floats,
    train: NDArray[np.bool_],
    settings: Sequence[Setting],
    *,
    temperature: float,
) -> Floats:
    scores = np.empty((*train.shape, 1))
    for asked in _neighbours(features, train, settings):
        scores[asked.problems] = _vote(asked, label[:, None], temperature=temperature)
    return scores


def _multilabel(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    """Each label by those who have it; one half where nobody in training has."""
    scores = np.full((*train.shape, label.shape[1]), 0.5)
    for number, column in enumerate(label.T):
        known = train & np.isfinite(column)
        some = np.flatnonzero(known.any(axis=1))
        mine = [settings[problem] for problem in some.tolist()]
        for asked in _neighbours(features, known[some], mine):
            votes = _vote(asked, column[:, None], temperature=TEMPERATURE)
            scores[some[asked.problems], :, number] = votes[:, 0]
    return scores


def _survival(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    scores = np.empty((*train.shape, 1))
    for asked in _neighbours(features, train, settings):
        everyone = label[train[asked.problems[0]], 0]
        scores[asked.problems] = _log_mortality(label[asked.members], everyone)[:, None]
    return scores


def _log_mortality(neighbours: Floats, times: Floats) -> Floats:
    """(n, k, 2) times and events of neighbours, and all training times, to (n,)."""
    time, event = neighbours[..., 0], neighbours[..., 1]
    at_risk = (time[:, None, :] >= time[:, :, None]).sum(axis=2)
    reached = len(times) - np.searchsorted(np.sort(times), time)
    mortality = (event / at_risk * reached).sum(axis=1) / len(times)
    least = 0.5 / len(times)  # where no neighbour died
    logged: Floats = np.log(mortality + least)
    return logged


_PREDICT: dict[str, Callable[[Floats, Floats, NDArray[np.bool_], Sequence[Setting]], Floats]] = {
    "binary": partial(_column, temperature=TEMPERATURE),
    "multiclass": _classes,
    "ordinal": _classes,
    "multilabel": _multilabel,
    "regression": partial(_column, temperature=np.inf),
    "survival": _survival,
}
