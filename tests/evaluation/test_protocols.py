from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from evaluation.floors import floors
from evaluation.probing.knn import knn
from evaluation.probing.linear import CS, linear_probe, sigmoid
from evaluation.probing.protocols import Estimator, evaluate, stratified_folds
from evaluation.statistics.metrics import auroc, measure


def _features(task: Any, seed: int = 0, signal: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(task.label), 6))
    values[:, 0] += signal * task.label
    return values


def test_c_is_chosen_on_validation_and_refitted_for_test(place: Any) -> None:
    task = place.task()
    values = _features(task)
    train, val, test = (task.rows(split) for split in ("train", "val", "test"))
    outcome = evaluate(task, {"x": values}, linear_probe("binary"), open_test=True)

    def probability(c: float, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-9, max_iter=9999))
        return model.fit(values[rows], task.label[rows]).predict_proba(values[of])[:, 1]

    grid = [auroc(task.label[val], probability(c, train, val)) for c in CS]
    assert [cell["score"] for cell in outcome.grid] == pytest.approx(grid, abs=1e-9)
    best = CS[int(np.argmax(grid))]
    assert outcome.chosen == {"features": "x", "C": best}
    np.testing.assert_allclose(outcome.scores["val"], probability(best, train, val), atol=1e-4)
    both = np.concatenate([train, val])
    np.testing.assert_allclose(outcome.scores["test"], probability(best, both, test), atol=1e-4)


def test_a_closed_test_split_is_neither_scored_nor_used(place: Any) -> None:
    task = place.task()
    values = _features(task)
    outcome = evaluate(task, {"x": values}, linear_probe("binary"), open_test=False)
    assert set(outcome.scores) == {"val"}
    spoiled, label = values.copy(), task.label.copy()
    spoiled[task.rows("test")] = 1e9
    label[task.rows("test")] = 1 - label[task.rows("test")]
    object.__setattr__(task, "label", label)
    again = evaluate(task, {"x": spoiled}, linear_probe("binary"), open_test=False)
    np.testing.assert_array_equal(again.scores["val"], outcome.scores["val"])
    assert again.chosen == outcome.chosen


def test_the_best_features_are_chosen_and_a_tie_goes_to_the_first(place: Any) -> None:
    task = place.task()
    good, bad = task.label[:, None] + 0.0, _features(task, signal=0.0)
    outcome = evaluate(task, {"bad": bad, "good": good}, linear_probe("binary"), open_test=False)
    assert outcome.chosen == {"features": "good", "C": CS[0]}


def test_knn_equals_scikit_learn(place: Any) -> None:
    task = place.task(kind="regression", label={"column": "size"})
    values = _features(task)
    train, val = task.rows("train"), task.rows("val")
    outcome = evaluate(task, {"x": values}, knn("regression"), open_test=False)
    for cell in outcome.grid:
        model = KNeighborsRegressor(cell["k"]).fit(normalize(values[train]), task.label[train])
        expected = measure(task.label[val], model.predict(normalize(values[val])), "r2")
        assert cell["score"] == pytest.approx(expected)


def test_knn_weighs_by_temperature(place: Any) -> None:
    task = place.task()
    values = _features(task)
    train, val = task.rows("train"), task.rows("val")
    outcome = evaluate(task, {"x": values}, knn("binary"), open_test=False)
    similarity = normalize(values[val]) @ normalize(values[train]).T
    nearest = np.argsort(-similarity, axis=1)[:, : outcome.chosen["k"]]
    weight = np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07)
    expected = (weight * task.label[train][nearest]).sum(1) / weight.sum(1)
    np.testing.assert_allclose(outcome.scores["val"], expected)


def test_knn_never_counts_the_subject_itself(place: Any) -> None:
    task = place.task(protocol={"repeated_cv": {"folds": 3, "repeats": 2}})
    values = _features(task, signal=0.0)
    score = evaluate(task, {"x": values}, knn("binary"), open_test=False).scores["cv"]
    assert 0.2 < auroc(task.label, score) < 0.8


def test_cross_validation_is_nested(place: Any) -> None:
    """An estimator that notes what it trains on never sees the held-out fold."""
    task = place.task(protocol={"repeated_cv": {"folds": 4, "repeats": 3}})
    trained: list[np.ndarray] = []

    def predict(features: Any, _: Any, train: Any, settings: Any) -> np.ndarray:
        trained.extend(train)
        score = np.stack([sigmoid(setting["sign"] * features[:, 0]) for setting in settings])
        return np.broadcast_to(score, (len(train), len(features)))

    estimator = Estimator("noted", ({"sign": -1}, {"sign": 1}), predict)
    values = _features(task, signal=5.0)
    outcome = evaluate(task, {"x": values}, estimator, open_test=False)
    assert {int(mask.sum()) for mask in trained[-12:]} == {54}  # 12 refits on three quarters
    assert max(int(mask.sum()) for mask in trained[:-12]) < 54
    assert outcome.chosen == {"features": "x", "sign": 1, "times_chosen": 12, "num_fits": 12}
    # Half are positive in every fold, so nothing is shifted.
    np.testing.assert_allclose(outcome.scores["cv"], sigmoid(values[:, 0]), atol=1e-9)


def test_cross_validated_noise_is_not_better_than_chance(place: Any) -> None:
    task = place.task(protocol={"repeated_cv": {"folds": 5, "repeats": 4}})
    found = []
    for seed in range(10):
        pair = {str(twin): _features(task, 100 * twin + seed, signal=0.0) for twin in range(2)}
        score = evaluate(task, pair, linear_probe("binary"), open_test=False).scores["cv"]
        found.append(auroc(task.label, score))
    assert 0.4 < np.mean(found) < 0.6  # four standard errors of .068 / sqrt(10) and a little bias


def test_a_constant_is_at_chance_under_cross_validation(place: Any) -> None:
    task = place.task(protocol={"repeated_cv": {"folds": 5, "repeats": 3}})
    label = task.label.copy()
    label[:20] = 0  # folds cannot all have the same prevalence
    object.__setattr__(task, "label", label)
    outcome = evaluate(task, {"none": np.zeros((72, 1))}, floors.constant(), open_test=False)
    assert auroc(label, outcome.scores["cv"]) == 0.5
    np.testing.assert_allclose(outcome.scores["cv"], label.mean(), atol=1e-9)


def test_folds_are_stratified_and_cover_everyone() -> None:
    label = np.array([1.0] * 7 + [0.0] * 20)
    rng = np.random.default_rng(0)
    folds = stratified_folds(label, np.arange(27), num_folds=5, rng=rng, by_class=True)
    assert sorted(np.concatenate(folds).tolist()) == list(range(27))
    assert {int(label[fold].sum()) for fold in folds} <= {1, 2}


def test_pca_and_imputation_are_fitted_on_the_training_rows(place: Any) -> None:
    task = place.task()
    train = task.rows("train")
    others = np.setdiff1d(np.arange(len(task.label)), train)
    voxels = np.random.default_rng(0).normal(size=(72, 40)).astype(np.float32)
    before = floors.pca_features(voxels, num_components=4)(train)
    voxels[others] *= 1e3
    after = floors.pca_features(voxels, num_components=4)(train)
    np.testing.assert_array_equal(before[train], after[train])
    assert not np.allclose(before[others], after[others])

    clinical = floors.clinical_features(task, ["age", "sex"])
    ages = [scans[0].values["age"] for scans in task.scans]
    known = [ages[row] for row in train if ages[row] is not None]
    missing = [row for row, age in enumerate(ages) if age is None]
    found = clinical(train)
    assert found.shape == (72, 4)  # age, its flag, F, M
    assert set(found[missing, 0]) == {float(np.median(known))}
    assert found[missing, 1].tolist() == [1.0] * len(missing)


def test_a_category_outside_training_is_all_zero(place: Any) -> None:
    place.rewrite(lambda row: {**row, "sex": "X"} if row["subject"] == "patient008" else row)
    task = place.task()
    found = floors.clinical_features(task, ["sex"])(task.rows("train"))
    row = task.subjects.index(place.pseudonym("patient008"))
    assert task.split[row] == "val"
    assert found.shape[1] == 2
    assert found[row].tolist() == [0.0, 0.0]


def test_the_majority_knows_nothing(place: Any) -> None:
    task = place.task()
    outcome = evaluate(task, {"none": np.zeros((72, 1))}, floors.constant(), open_test=False)
    assert auroc(task.label[task.rows("val")], outcome.scores["val"]) == 0.5


def test_svm_finds_what_no_line_can(place: Any) -> None:
    task = place.task()
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 72)
    ring = (1 + 2 * task.label)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    outcome = evaluate(task, {"x": ring}, floors.rbf_svm(), open_test=False)
    assert auroc(task.label[task.rows("val")], outcome.scores["val"]) == 1.0
