"""Retrieval against scikit-learn and against orders worked out by hand."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from evaluation.probing.retrieval import retrieval, retrieval_scores, unanswerable


def test_a_ranking_worked_by_hand() -> None:
    """Relevant at ranks 2, 3 and 6: (1/2 + 2/3 + 3/6) / 3, no hit at 1, a hit at 5."""
    similarity = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    relevant = np.array([[0, 1, 1, 0, 0, 1]], dtype=bool)
    expected = [(1 / 2 + 2 / 3 + 3 / 6) / 3, 0, 1]
    np.testing.assert_allclose(retrieval_scores(similarity, relevant)[0], expected)


@pytest.mark.parametrize("decimals", [1, 6])
def test_average_precision_is_scikit_learns_with_ties_and_without(decimals: int) -> None:
    rng = np.random.default_rng(0)
    similarity = np.round(rng.random((40, 25)), decimals)
    relevant = rng.random((40, 25)) < 0.3
    relevant[:, 0] = True
    found = retrieval_scores(similarity, relevant)[:, 0]
    pairs = zip(relevant, similarity, strict=True)
    np.testing.assert_allclose(found, [average_precision_score(*pair) for pair in pairs])


def test_a_hit_among_ties_is_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        similarity = np.round(rng.random(6) * 2) / 2
        relevant = rng.random(6) < 0.35
        relevant[rng.integers(6)] = True
        hits = []
        for order in permutations(range(6)):
            ranked = sorted(order, key=lambda each: -similarity[each])
            hits.append([relevant[ranked[:k]].any() for k in (1, 5)])
        found = retrieval_scores(similarity[None], relevant[None])[0, 1:]
        np.testing.assert_allclose(found, np.mean(hits, axis=0), atol=1e-12)


def test_a_gallery_smaller_than_k_is_seen_whole() -> None:
    found = retrieval_scores(np.array([[0.9, 0.1, 0.1]]), np.array([[False, True, False]]))
    np.testing.assert_allclose(found, [[0.5 * 2 / 3, 0, 1]])


def planted(num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    label = np.arange(num) % 3
    features = 0.5 * rng.normal(size=(num, 5)) + [400.0, 0, 0, 0, 0]
    features[np.arange(num), label] += 3.0
    return features, label.astype(float)


def test_centring_by_the_gallery_finds_what_a_common_offset_hides() -> None:
    features, label = planted()
    train = np.arange(60) < 40
    estimator = retrieval()
    scores = estimator.predict(features, label, np.stack([train, train]), estimator.settings)
    assert scores.shape == (2, 60, 3)
    assert np.isnan(scores[:, train]).all()
    plain, centred = scores[:, ~train, 0].mean(axis=1)
    assert centred > 0.99
    assert plain < centred - 0.01
    away = features[train].mean(axis=0)
    again = estimator.predict(features - away, label, train[None], [{"centred": 0}])
    np.testing.assert_allclose(again[0], scores[1])


def test_queries_are_no_part_of_the_gallery_or_of_its_mean() -> None:
    features, label = planted()
    train = np.arange(60) < 40
    before = retrieval().predict(features, label, train[None], [{"centred": 1}])[0]
    changed = features.copy()
    changed[50:] = np.random.default_rng(3).normal(size=(10, 5)) * 1e3
    after = retrieval().predict(changed, label, train[None], [{"centred": 1}])[0]
    np.testing.assert_array_equal(before[40:50], after[40:50])


def test_equal_features_tie_whatever_their_place() -> None:
    """The same row times over, of two classes: one threshold, the share of the class."""
    row = np.random.default_rng(4).normal(size=33)
    features = np.tile(row, (31, 1)) * np.linspace(1, 2, 31)[:, None]
    label = (np.arange(31) % 3 == 0).astype(float)
    train = np.arange(31) < 30
    found = retrieval().predict(features, label, train[None], [{"centred": 0}])[0, 30]
    np.testing.assert_allclose(found[:2], [1 / 3, 1 / 3])


def test_a_class_that_the_gallery_lacks_is_nan_with_a_reason() -> None:
    features, label = planted()
    train = np.arange(60) < 40
    label[[41, 44]] = 7.0
    label[3] = np.nan
    found = retrieval().predict(features, label, train[None], [{"centred": 0}])[0]
    assert set(np.flatnonzero(np.isnan(found).all(axis=1))) == {*range(40), 41, 44}
    told = unanswerable(label, train)
    assert told == "2 of 20 queries have a class that the gallery does not hold"
    assert unanswerable(np.arange(60) % 3, train) is None


def test_a_row_without_features_is_like_none() -> None:
    features, label = planted()
    train = np.arange(60) < 40
    features[45] = 0.0
    found = retrieval().predict(features, label, train[None], [{"centred": 0}])[0, 45]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], (label[:40] == label[45]).mean())
