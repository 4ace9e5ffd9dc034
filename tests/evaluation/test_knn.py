"""k-NN and class means, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import normalize

from evaluation.probing.knn import KS, knn
from evaluation.probing.prototypes import TEMPERATURES, prototypes
from foundation.health import TEMPERATURE, knn_vote


def _rows(n: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(1.0, 2.0, size=(n, 6))
    train = rng.random((3, n)) < 0.7
    return features, rng.integers(0, 3, n).astype(float), train


def test_votes_are_those_of_the_health_check() -> None:
    features, label, train = _rows()
    positive = (label == 1) * 1.0
    settings = [{"k": 20}, {"k": 5}, {"k": 400}]
    ours = knn("binary").predict(features, positive, train, settings)[:, :, 0]
    theirs = knn_vote(features, positive, train, ks=[20, 5, 400], temperature=TEMPERATURE)
    np.testing.assert_allclose(ours[~train], theirs[~train])
    classes = knn("multiclass").predict(features, label, train, settings)
    np.testing.assert_allclose(classes.sum(axis=2), 1.0)
    np.testing.assert_allclose(classes[..., 1][~train], ours[~train])


def test_values_are_means_of_the_nearest_as_in_scikit_learn() -> None:
    features, label, train = _rows()
    scores = knn("regression").predict(features, label, train, [{"k": k} for k in KS])
    for rows, score, k in zip(train, scores, KS, strict=True):
        model = KNeighborsRegressor(k).fit(normalize(features[rows]), label[rows])
        np.testing.assert_allclose(score[~rows, 0], model.predict(normalize(features[~rows])))


def test_a_label_is_voted_on_by_those_who_have_it() -> None:
    features, _, train = _rows()
    label = np.random.default_rng(1).integers(0, 2, (48, 2)).astype(float)
    label[::3, 1] = np.nan
    scores = knn("multilabel").predict(features, label, train, [{"k": 5}] * 3)
    known = train & np.isfinite(label[:, 1])
    binary = knn("binary")
    alone = binary.predict(features, np.nan_to_num(label[:, 1]), known, [{"k": 5}] * 3)
    np.testing.assert_allclose(scores[..., 1], alone[..., 0])
    label[:, 1] = np.nan
    assert (knn("multilabel").predict(features, label, train, [{"k": 5}] * 3)[..., 1] == 0.5).all()


def test_survival_is_the_mean_hazard_of_the_neighbours_by_hand() -> None:
    # The query's two nearest died on day 2 and were censored on day 5. One half of those at risk
    # dies on day 2, which 3 of the 4 training subjects reach: 1/2 * 3/4, and the least is 1/8.
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.05]])
    label = np.array([[2.0, 1], [5.0, 0], [1.0, 1], [9.0, 0], [3.0, 1]])
    train = np.array([[True, True, True, True, False]])
    score = knn("survival").predict(features, label, train, [{"k": 2}])
    assert score[0, 4, 0] == pytest.approx(np.log(0.5 * 3 / 4 + 1 / 8))


def test_early_deaths_nearby_are_a_higher_risk() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=120)
    features = np.stack([signal, np.ones(120)], axis=1)
    label = np.stack([np.exp(-2 * signal + 0.1 * rng.normal(size=120)), np.ones(120)], axis=1)
    train = np.arange(120)[None] < 90
    score = knn("survival").predict(features, label, train, [{"k": 10}])[0, 90:, 0]
    assert np.corrcoef(score, signal[90:])[0, 1] > 0.7


def test_class_means_by_hand() -> None:
    features, label, train = _rows()
    cosines = []
    for rows in train:
        unit = normalize(features - features[rows].mean(axis=0))
        means = [unit[rows & (label == level)].mean(axis=0) for level in range(3)]
        cosines.append(unit @ normalize(means).T)
    scaled = np.array(cosines) / 0.3
    expected = np.exp(scaled) / np.exp(scaled).sum(axis=2, keepdims=True)
    settings = [{"temperature": 0.3}] * 3
    scores = prototypes("multiclass").predict(features + 1e3, label, train, settings)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    twofold = (label == 1) * 1.0
    binary = prototypes("binary").predict(features, twofold, train, settings)[..., 0]
    labels = prototypes("multilabel").predict(features, twofold[:, None], train, settings)[..., 0]
    both = prototypes("multiclass").predict(features, twofold, train, settings)[..., 1]
    np.testing.assert_allclose(binary, both, atol=1e-12)
    np.testing.assert_allclose(labels, both, atol=1e-12)


def test_a_class_without_a_training_row_has_no_chance() -> None:
    features, label, train = _rows()
    train &= label != 2
    scores = prototypes("multiclass").predict(features, label, train, [{"temperature": 0.1}] * 3)
    assert (scores[..., 2] == 0).all()
    missing = np.stack([label == 0, label == 3], axis=1) * 1.0
    scores = prototypes("multilabel").predict(features, missing, train, [{"temperature": 0.1}] * 3)
    assert (scores[..., 1] == 0.5).all()


def test_held_out_rows_do_not_touch_each_other() -> None:
    features, label, train = _rows()
    train[:] = np.arange(48) < 30
    spoiled = features.copy()
    spoiled[40:] = 1e9
    for estimator in (knn("multiclass"), prototypes("multiclass")):
        settings = list(estimator.settings[:3])
        scores = estimator.predict(features, label, train, settings)
        again = estimator.predict(spoiled, label, train, settings)
        np.testing.assert_allclose(again[:, 30:40], scores[:, 30:40], atol=1e-9)


def test_kinds_without_neighbours_or_means_are_refused() -> None:
    assert TEMPERATURES[0] == max(TEMPERATURES)
    with pytest.raises(ValueError, match="no k-NN for a segmentation"):
        knn("segmentation")
    with pytest.raises(ValueError, match="no class means for a survival"):
        prototypes("survival")
