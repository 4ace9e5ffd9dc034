"""Batched solvers against scikit-learn, lifelines, and Newton's method written out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from evaluation.probing.axes import principal_axes
from evaluation.probing.cox import CoxLoss, fit_cox
from evaluation.probing.heads import SquaredLoss
from evaluation.probing.logistic import BinaryLoss, fit_logistic, sigmoid
from evaluation.probing.multinomial import SoftmaxLoss, fit_multinomial, one_hot, softmax
from evaluation.probing.ordinal import class_probabilities, reached
from evaluation.probing.ridge import fit_ridge
from evaluation.probing.row_sets import chunks
from evaluation.probing.solver import LinearModels

TIGHT = 1e-9


def _rows(n: int = 90, p: int = 37, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, p)) * rng.uniform(0.01, 30, p) + rng.normal(size=p) * 100
    features[:, 3] = 7.0  # a feature that never varies
    standard = (features - features.mean(0)) / features.std(0).clip(1e-9)
    label = (standard[:, :4].sum(1) + rng.normal(size=n) > 0.5).astype(float)
    return features, label


def _classes(features: np.ndarray) -> np.ndarray:
    standard = (features - features.mean(0)) / features.std(0).clip(1e-9)
    noise = np.random.default_rng(9).normal(size=len(features))
    return np.digitize(standard[:, :4].sum(1) + noise, [-1, 1]).astype(float)


def _reference(features: np.ndarray, label: np.ndarray, c: float) -> tuple:
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=20000)
    model.fit(scaler.transform(features), label)
    return model, scaler


@pytest.mark.parametrize("p", [37, 300])  # fewer features than rows, and more
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 30.0])
def test_logistic_equals_scikit_learn(c: float, p: int) -> None:
    features, label = _rows(p=p)
    ours = fit_logistic(features, label, np.ones((1, 90)), [c], tolerance=TIGHT)
    model, scaler = _reference(features, label, c)
    np.testing.assert_allclose(ours.coefficient[0, 0] * scaler.scale_, model.coef_[0], atol=2e-5)
    decision = model.decision_function(scaler.transform(features))
    np.testing.assert_allclose(ours.decision(features)[0, :, 0], decision, atol=1e-3)


@pytest.mark.parametrize("p", [37, 300])
@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
def test_softmax_equals_scikit_learn(c: float, p: int) -> None:
    features, _ = _rows(p=p)
    label = _classes(features)
    ours = fit_multinomial(features, one_hot(label, 4), np.ones((1, 90)), [c], tolerance=TIGHT)
    model, scaler = _reference(features, label, c)
    np.testing.assert_allclose(ours.coefficient[0, :3] * scaler.scale_, model.coef_, atol=2e-5)
    probability = softmax(ours.decision(features)[0])
    expected = model.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(probability[:, :3], expected, atol=1e-5)
    assert (probability[:, 3] == 0).all()  # a class that training does not have


def test_softmax_of_shares_equals_rows_that_stand_for_them() -> None:
    features, _ = _rows(n=40, p=6)
    shares = np.random.default_rng(1).dirichlet((1, 1, 1), size=40)
    ours = fit_multinomial(features, shares, np.ones((1, 40)), [1.0], tolerance=TIGHT)
    repeated = np.repeat(features, 3, axis=0)
    target = np.tile(np.eye(3), (40, 1))
    again = fit_multinomial(repeated, target, shares.reshape(1, -1), [1.0], tolerance=TIGHT)
    np.testing.assert_allclose(ours.coefficient, again.coefficient, rtol=1e-5, atol=1e-9)


def test_each_problem_uses_its_own_rows_only() -> None:
    features, label = _rows()
    weight = np.zeros((2, 90))
    weight[0, :50] = 1
    weight[1, 30:] = 1
    ours = fit_logistic(features, label, weight, [0.1, 3.0], tolerance=TIGHT)
    spoiled = features.copy()
    spoiled[50:] = 1e6 * np.random.default_rng(0).normal(size=spoiled[50:].shape)
    again = fit_logistic(spoiled, label, weight, [0.1, 3.0], tolerance=1e-7)
    for number, (rows, c) in enumerate([(slice(0, 50), 0.1), (slice(30, 90), 3.0)]):
        model, scaler = _reference(features[rows], label[rows], c)
        scaled = ours.coefficient[number, 0] * scaler.scale_
        np.testing.assert_allclose(scaled, model.coef_[0], atol=2e-5)
    np.testing.assert_allclose(again.coefficient[0], ours.coefficient[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [8, 300])
def test_weights_are_repetitions(p: int) -> None:
    features, label = _rows(n=40, p=p)
    times = np.random.default_rng(0).integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), times)
    value = features[:, 0] + label
    for fit, target, strength in ((fit_logistic, label, 0.5), (fit_ridge, value, 5.0)):
        ours = fit(features, target, times[None].astype(float), [strength])
        again = fit(features[repeated], target[repeated], np.ones((1, len(repeated))), [strength])
        np.testing.assert_allclose(ours.decision(features), again.decision(features), atol=1e-4)


def test_features_that_are_scaled_already_are_only_centred() -> None:
    features, label = _rows(p=12)
    scaled = (features - features.mean(0)) / features.std(0).clip(1e-9) + 5.0
    weight = np.zeros((1, 90))
    weight[0, :60] = 1
    ours = fit_logistic(scaled, label, weight, [1.0], scales=False, tolerance=TIGHT)
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=9999).fit(scaled[:60], label[:60])
    np.testing.assert_allclose(ours.coefficient[0, 0], model.coef_[0], atol=2e-5)


@pytest.mark.parametrize("p", [37, 300])
def test_ridge_equals_scikit_learn(p: int) -> None:
    features, _ = _rows(p=p)
    value = features[:, 0] * 5 + np.random.default_rng(1).normal(3000, 5, 90)
    weight = np.ones((2, 90))
    weight[1, 70:] = 0
    model = fit_ridge(features, value, weight, [0.5, 100.0])
    for number, alpha in enumerate([0.5, 100.0]):
        rows = weight[number] > 0
        scaler = StandardScaler().fit(features[rows])
        reference = Ridge(alpha=alpha).fit(scaler.transform(features[rows]), value[rows])
        expected = reference.predict(scaler.transform(features))
        np.testing.assert_allclose(model.decision(features)[number, :, 0], expected, rtol=1e-6)


def _survival(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, p))
    time = np.ceil(rng.exponential(np.exp(-features[:, 0])) * 6)  # whole days: many ties
    return features, np.stack([time, rng.random(n) < 0.7], axis=1).astype(float)


def test_cox_without_a_penalty_equals_lifelines() -> None:
    import lifelines
    import pandas

    features, survival = _survival(80, 4)
    table = pandas.DataFrame(features).assign(time=survival[:, 0], event=survival[:, 1])
    reference = lifelines.CoxPHFitter().fit(
        table, "time", "event", fit_options={"precision": 1e-12}
    )
    ours = fit_cox(features, survival, np.ones((1, 80)), [1e-9], tolerance=TIGHT)
    np.testing.assert_allclose(ours.coefficient[0, 0], reference.params_, atol=1e-6)
    risk = torch.from_numpy(features @ reference.params_.to_numpy())[None, None]
    columns = torch.from_numpy(survival.T.copy())[:, None]
    loss = CoxLoss(columns[0], columns[1], torch.ones(1, 1, 80, dtype=torch.float64))
    assert float(loss.value(risk)) == pytest.approx(-reference.log_likelihood_, abs=1e-9)


def _newton_cox(standard: np.ndarray, survival: np.ndarray, alpha: float) -> np.ndarray:
    """Penalised Cox regression death by death, as in Efron (1977), in steps of at most 1."""
    beta = np.zeros(standard.shape[1])
    for _ in range(40):
        hazard = np.exp(standard @ beta)
        gradient, bend = -alpha * beta, alpha * np.eye(len(beta))
        for day in np.unique(survival[survival[:, 1] == 1, 0]):
            at_risk = survival[:, 0] >= day
            dead = (survival[:, 0] == day) & (survival[:, 1] == 1)
            gradient = gradient + standard[dead].sum(0)
            for share in np.arange(dead.sum()) / dead.sum():
                weight = hazard * (at_risk - share * dead)
                mean = weight @ standard / weight.sum()
                gradient = gradient - mean
                second = (standard * weight[:, None]).T @ standard / weight.sum()
                bend = bend + second - np.outer(mean, mean)
        step = np.linalg.solve(bend, gradient)
        beta = beta + step / max(1.0, np.linalg.norm(step))
    return beta


@pytest.mark.parametrize("p", [5, 70])
def test_penalised_cox_equals_newtons_method(p: int) -> None:
    features, survival = _survival(60, p)
    features[:, 1] = 40 + 12 * features[:, 1]
    weight = np.ones((2, 60))
    weight[1, 45:] = 0
    ours = fit_cox(features, survival, weight, [2.0, 20.0], tolerance=TIGHT)
    for number, alpha in enumerate([2.0, 20.0]):
        rows = weight[number] > 0
        scaler = StandardScaler().fit(features[rows])
        expected = _newton_cox(scaler.transform(features[rows]), survival[rows], alpha)
        scaled = ours.coefficient[number, 0] * scaler.scale_
        np.testing.assert_allclose(scaled, expected, atol=1e-6)
        assert ours.decision(features)[number, rows, 0].mean() == pytest.approx(0, abs=1e-9)


def test_slopes_are_the_derivatives_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(3, 1, 20, dtype=torch.float64)
    weight[1, 0, 4:9] = 0
    time = torch.randint(1, 6, (3, 20), generator=generator).double()
    event = torch.randint(0, 2, (3, 20), generator=generator).double()
    shares = torch.softmax(torch.randn(3, 4, 20, generator=generator).double(), 1)
    losses = (
        (BinaryLoss(shares, weight), 4),
        (SoftmaxLoss(shares, weight), 4),
        (CoxLoss(time, event, weight), 1),
        (SquaredLoss(shares[:, :1], weight), 1),
    )
    for loss, outputs in losses:
        logits = torch.randn(3, outputs, 20, generator=generator).double().requires_grad_()
        loss.value(logits).sum().backward()
        assert logits.grad is not None
        torch.testing.assert_close(loss.slope(logits), logits.grad, rtol=0, atol=1e-10)


def test_separable_rows_end_and_a_single_class_is_told_at_once() -> None:
    features = np.array([[0.0], [1.0], [2.0], [3.0]])
    model = fit_logistic(features, [0, 0, 1, 1], np.ones((1, 4)), [1e6])
    assert np.isfinite(model.coefficient).all()
    assert (model.decision(features)[0, :, 0] > 0).tolist() == [False, False, True, True]
    alone = fit_logistic(features, [0, 0, 1, 1], np.array([[1.0, 1, 0, 0]]), [1e6])
    assert (sigmoid(alone.decision(features)) < 1e-5).all()
    assert (alone.coefficient == 0).all()


def test_axes_rebuild_the_standardised_rows() -> None:
    for p in (5, 50):
        features = torch.from_numpy(np.random.default_rng(p).normal(3, 2, size=(2, 12, p)))
        weight = torch.ones(2, 12, dtype=torch.float64)
        weight[0, 9:] = 0
        axes = principal_axes(features, weight=weight)
        coefficient = torch.randn(2, 1, axes.inside.shape[2], dtype=torch.float64)
        raw, offset = axes.raw_models(coefficient, torch.zeros(2, 1, dtype=torch.float64))
        expected = (coefficient @ axes.inside.mT)[:, 0]
        found = (raw @ features.mT)[:, 0] + offset
        torch.testing.assert_close(found[0, :9], expected[0, :9])
        torch.testing.assert_close(found[1], expected[1])


def test_chunks_hold_every_problem_and_only_rows_with_weight() -> None:
    rng = np.random.default_rng(0)
    sets = (rng.random((5, 30)) < rng.uniform(0.2, 0.9, (5, 1))).astype(float)
    weight = sets[rng.integers(0, 5, 40)]
    seen = []
    for chunk in chunks(weight, num_features=100_000, num_outputs=2):
        for rows, each, problems in zip(chunk.rows, chunk.weight, chunk.problems, strict=True):
            for problem in set(problems.tolist()):
                found = np.zeros(30)
                np.add.at(found, rows, each)
                np.testing.assert_array_equal(found, weight[problem])
                seen.append(problem)
    assert sorted(seen) == list(range(40))


def test_ordinal_probabilities_by_hand() -> None:
    assert reached(np.array([0.0, 2.0, 1.0]), 3).tolist() == [[0, 0], [1, 1], [1, 0]]
    falling = class_probabilities(np.array([0.7, 0.2]))
    np.testing.assert_allclose(falling, [0.3, 0.5, 0.2])
    crossed = class_probabilities(np.array([0.4, 0.6]))  # both become .5
    np.testing.assert_allclose(crossed, [0.5, 0.0, 0.5])


def test_decisions_are_linear_in_raw_features() -> None:
    models = LinearModels(np.array([[[1.0, 2.0], [0.0, 1.0]]]), np.array([[3.0, -1.0]]))
    assert models.decision([[1.0, 1.0]]).tolist() == [[[6.0, 0.0]]]


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
