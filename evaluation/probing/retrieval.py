"""Retrieval: does a scan find scans of its own class? Cosine similarity, nothing is trained.

The gallery are the training rows, a query is every other row. Average precision takes tied
similarities as one threshold, as scikit-learn does; hit@k is the expected hit when ties are broken
at random. Neither depends on the order of the gallery.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Setting

HITS = (1, 5)
_DIGITS = 12  # what is equal but for rounding is a tie


def retrieval() -> Estimator:
    """Retrieval with features as they are, or less the mean of the gallery.

    Scores are (B, n, 3): average precision, hit@1 and hit@5 of each query. A query whose class the
    gallery does not hold is NaN, see :func:`unanswerable`.
    """
    return Estimator("retrieval", ({"centred": 0}, {"centred": 1}), _predict)


def unanswerable(label: Floats, gallery: NDArray[np.bool_]) -> str | None:
    """Why some queries have no score, or None.

    Args:
        label: Class index of each row, (n,); NaN where it is missing.
        gallery: Which rows are searched, (n,).
    """
    queries = label[~gallery]
    lacking = int((~np.isin(queries, label[gallery])).sum())
    if not lacking:
        return None
    return f"{lacking} of {len(queries)} queries have a class that the gallery does not hold"


def _predict(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    scores = np.full((len(settings), len(label), 1 + len(HITS)), np.nan)
    for score, rows, setting in zip(scores, train, settings, strict=True):
        gallery = np.flatnonzero(rows & ~np.isnan(label))
        queries = np.flatnonzero(~rows & np.isin(label, label[gallery]))
        if len(queries):
            near = _similarity(features, queries, gallery, is_centred=bool(setting["centred"]))
            relevant = label[queries, None] == label[gallery]
            score[queries] = retrieval_scores(near, relevant)
    return scores


def retrieval_scores(similarity: Floats, relevant: NDArray[np.bool_]) -> Floats:
    """Average precision, then hit@k for each k of ``HITS``, (Q, 3).

    Args:
        similarity: Of each query to each of the gallery, (Q, G).
        relevant: Which of the gallery are of the query's class, (Q, G); at least one of each query.
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    ranked = np.take_along_axis(similarity, order, axis=1)
    found = np.take_along_axis(relevant, order, axis=1)
    place = np.arange(ranked.shape[1])
    # First and last place of the tie that each place is in.
    is_first = np.diff(ranked, axis=1, prepend=np.inf) != 0
    first = np.maximum.accumulate(np.where(is_first, place, 0), axis=1)
    is_last = np.diff(ranked, axis=1, append=-np.inf) != 0
    last_back = np.where(is_last, place, len(place))[:, ::-1]
    last = np.minimum.accumulate(last_back, axis=1)[:, ::-1]
    hits: NDArray[np.int64] = np.cumsum(found, axis=1, dtype=np.int64)
    precision = np.take_along_axis(hits, last, axis=1) / (last + 1)
    average = (precision * found).sum(axis=1) / found.sum(axis=1)
    return np.stack([average, *(_hit(hits, first, last, k) for k in HITS)], axis=1)


def _hit(
    hits: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64], k: int
) -> Floats:
    """Chance that one of the first k is relevant when ties are broken at random, (Q,).

    The tie in which place k lies gives only some of its members; all of its irrelevant ones may be
    the ones given.
    """
    rows = np.arange(len(hits))
    cut = min(k, hits.shape[1]) - 1
    start, stop = first[rows, cut], last[rows, cut]
    above = np.where(start > 0, hits[rows, start - 1], 0)
    members, inside = stop - start + 1, hits[rows, stop] - above
    missed = np.ones(len(hits))
    for drawn in range(k):  # drawn without replacement: none of the relevant members
        drawing = drawn <= cut - start
        left = np.maximum(members - inside - drawn, 0) / np.maximum(members - drawn, 1)
        missed = np.where(drawing, missed * left, missed)
    return np.where(above > 0, 1.0, 1.0 - missed)


def _similarity(
    features: Floats, queries: NDArray[np.int64], gallery: NDArray[np.int64], *, is_centred: bool
) -> Floats:
    values = features - features[gallery].mean(axis=0) if is_centred else features
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1.0)
    near: Floats = np.round(unit[queries] @ unit[gallery].T, _DIGITS)
    return near
