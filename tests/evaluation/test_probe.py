"""The linear probe of each kind."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.probing.linear import ALPHAS, CS, linear_probe, strength_name
from evaluation.probing.logistic import sigmoid

KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression", "survival")


def _task(kind: str, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(n, 5))
    signal = features[:, 0] + 0.5 * rng.normal(size=n)
    labels = {
        "binary": (signal > 0.2) * 1.0,
        "multiclass": np.digitize(signal, [-0.5, 0.5]) * 1.0,
        "ordinal": np.digitize(signal, [-0.5, 0.5]) * 1.0,
        "multilabel": (signal[:, None] > np.array([-0.3, 0.4])) * 1.0,
        "regression": 20 + 3 * signal,
        "survival": np.stack([np.ceil(50 * np.exp(-signal)), rng.random(n) < 0.6], axis=1),
    }
    train = np.zeros((2, n), dtype=bool)
    train[0, :40] = True
    train[1, 10:50] = True
    return features, labels[kind], train


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_the_kinds_columns_and_follow_the_signal(kind: str) -> None:
    features, label, train = _task(kind)
    probe = linear_probe(kind)
    scores = probe.predict(features, label, train, [probe.settings[8]] * 2)
    columns = {"multiclass": 3, "ordinal": 3, "multilabel": 2}.get(kind, 1)
    assert scores.shape == (2, 60, columns)
    if kind in ("multiclass", "ordinal"):
        np.testing.assert_allclose(scores.sum(axis=2), 1.0)
        followed = scores @ np.arange(3)
    else:
        followed = scores.mean(axis=2)
    assert np.corrcoef(followed[0, 40:], features[40:, 0])[0, 1] > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_features_outside_training_change_nothing(kind: str) -> None:
    features, label, train = _task(kind)
    probe = linear_probe(kind)
    settings = [probe.settings[3], probe.settings[9]]
    scores = probe.predict(features, label, train, settings)
    spoiled_label, spoiled = label.copy(), features.copy()
    spoiled_label[50:] = label[:10]
    spoiled[50:55] = 1e9
    again = probe.predict(spoiled, spoiled_label, train, settings)
    np.testing.assert_allclose(again[:, :50], scores[:, :50], atol=1e-12)
    np.testing.assert_allclose(again[:, 55:], scores[:, 55:], atol=1e-12)


def test_twelve_settings_the_most_cautious_first() -> None:
    assert len(CS) == len(ALPHAS) == 12
    assert list(CS) == sorted(CS)
    assert list(ALPHAS) == sorted(ALPHAS, reverse=True)
    assert [strength_name(kind) for kind in KINDS] == ["C"] * 4 + ["alpha"] * 2
    with pytest.raises(ValueError, match="no linear probe for a retrieval task"):
        linear_probe("retrieval")


def test_a_missing_label_leaves_its_rows_out_of_its_own_problem() -> None:
    features, label, train = _task("multilabel")
    label[5:15, 1] = np.nan
    setting = {"C": 0.5}
    scores = linear_probe("multilabel").predict(features, label, train[:1], [setting])
    for column, rows in ((0, np.arange(40)), (1, np.r_[0:5, 15:40])):
        scaler = StandardScaler().fit(features[rows])
        model = LogisticRegression(C=0.5, tol=1e-9, max_iter=9999)
        model.fit(scaler.transform(features[rows]), label[rows, column])
        expected = sigmoid(model.decision_function(scaler.transform(features)))
        np.testing.assert_allclose(scores[0, :, column], expected, atol=1e-5)


def test_a_label_that_nobody_in_training_has_is_one_half() -> None:
    features, label, train = _task("multilabel")
    label[:40, 1] = np.nan
    scores = linear_probe("multilabel").predict(features, label, train[:1], [{"C": 0.5}])
    assert (scores[0, :, 1] == 0.5).all()
    assert np.ptp(scores[0, :, 0]) > 0.1
