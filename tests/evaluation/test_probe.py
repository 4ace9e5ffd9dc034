import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from evaluation.probing import linear as probe


def _rows(n: int = 90, p: int = 37, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, p)) * rng.uniform(0.01, 30, p) + rng.normal(size=p) * 100
    features[:, 3] = 7.0  # a feature that never varies
    standard = (features - features.mean(0)) / features.std(0).clip(1e-9)
    label = (standard[:, :4].sum(1) + rng.normal(size=n) > 0.5).astype(float)
    return features, label


def _reference(features: np.ndarray, label: np.ndarray, c: float) -> np.ndarray:
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=20000)
    model.fit(scaler.transform(features), label)
    return model.decision_function(scaler.transform(features)), model.coef_[0], scaler


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 30.0])
def test_logistic_equals_scikit_learn(c: float) -> None:
    features, label = _rows()
    ours = probe.fit_logistic(features, label, np.ones((1, 90)), [c], tolerance=1e-9)
    decision, coefficient, scaler = _reference(features, label, c)
    np.testing.assert_allclose(ours.coefficient[0] * scaler.scale_, coefficient, atol=1e-4)
    np.testing.assert_allclose(ours.decision(features)[0], decision, atol=1e-3)


def test_each_problem_uses_its_own_rows_only() -> None:
    features, label = _rows()
    weight = np.zeros((2, 90))
    weight[0, :50] = 1
    weight[1, 30:] = 1
    ours = probe.fit_logistic(features, label, weight, [0.1, 3.0], tolerance=1e-9)
    spoiled = features.copy()
    spoiled[50:] = 1e6 * np.random.default_rng(0).normal(size=spoiled[50:].shape)
    again = probe.fit_logistic(spoiled, label, weight, [0.1, 3.0], tolerance=1e-7)
    for number, (rows, c) in enumerate([(slice(0, 50), 0.1), (slice(30, 90), 3.0)]):
        _, coefficient, scaler = _reference(features[rows], label[rows], c)
        np.testing.assert_allclose(ours.coefficient[number] * scaler.scale_, coefficient, atol=1e-4)
    np.testing.assert_allclose(again.coefficient[0], ours.coefficient[0], atol=1e-3, rtol=1e-2)


def test_problems_with_their_own_features_equal_shared_ones() -> None:
    features, label = _rows()
    rows = np.stack([np.arange(0, 60), np.arange(30, 90)])
    own = probe.fit_logistic(features[rows], label[rows], np.ones((2, 60)), [1.0, 1.0])
    weight = np.zeros((2, 90))
    np.put_along_axis(weight, rows, 1.0, axis=1)
    shared = probe.fit_logistic(features, label, weight, [1.0, 1.0])
    np.testing.assert_allclose(own.coefficient, shared.coefficient, atol=1e-4)


def test_separable_rows_end() -> None:
    features = np.array([[0.0], [1.0], [2.0], [3.0]])
    model = probe.fit_logistic(features, [0, 0, 1, 1], np.ones((1, 4)), [1e6])
    assert np.isfinite(model.coefficient).all()
    assert (model.decision(features)[0] > 0).tolist() == [False, False, True, True]


def test_ridge_equals_scikit_learn() -> None:
    features, _ = _rows()
    value = features[:, 0] * 5 + np.random.default_rng(1).normal(3000, 5, 90)
    weight = np.ones((2, 90))
    weight[1, 70:] = 0
    for number, alpha in enumerate([0.5, 100.0]):
        rows = weight[number] > 0
        scaler = StandardScaler().fit(features[rows])
        reference = Ridge(alpha=alpha).fit(scaler.transform(features[rows]), value[rows])
        model = probe.fit_ridge(features, value, weight, [0.5, 100.0])
        np.testing.assert_allclose(
            model.decision(features)[number],
            reference.predict(scaler.transform(features)),
            rtol=1e-6,
        )


def test_sigmoid_does_not_overflow() -> None:
    assert probe.sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
