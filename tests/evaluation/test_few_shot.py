from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.probing.few_shot import FewShotConfig, draw, score_draws, stored_draws, unsuitable
from evaluation.statistics.metrics import auroc

CONFIG = FewShotConfig(shots=(1, 2, 4, 16, 32), num_draws=12, C=0.5, seed=3)


def _features(task: Any) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(len(task.label), 5))
    values[:, 1] += task.label
    return values


def test_draws_are_nested_distinct_and_from_training(place: Any) -> None:
    task = place.task()
    draws = draw(task, CONFIG)
    assert draws.shots == (1, 2, 4, 16)
    assert draws.missing == {32: "the rarer class has 20 training subjects, fewer than 32"}
    assert draws.order.shape == (12, 2, 16)
    for classes in draws.order:
        for level, rows in enumerate(classes):
            assert set(task.label[rows]) == {float(level)}
            assert set(task.split[rows]) == {"train"}
            assert len(set(rows)) == 16
    assert len({tuple(classes.ravel()) for classes in draws.order}) == 12


def test_draws_depend_on_the_seed_and_on_no_model(place: Any) -> None:
    task = place.task()
    again = draw(place.task(), CONFIG)
    np.testing.assert_array_equal(draw(task, CONFIG).order, again.order)
    other = draw(task, CONFIG.model_copy(update={"seed": 4}))
    assert not np.array_equal(other.order, again.order)


def test_scores_equal_a_loop_over_scikit_learn(place: Any) -> None:
    task = place.task()
    values, draws = _features(task), draw(task, CONFIG)
    val = task.rows("val")
    for k, number, score in score_draws(task, values, draws, CONFIG, split="val"):
        rows = draws.order[number, :, :k].ravel()
        scaler = StandardScaler().fit(values[rows])
        model = LogisticRegression(C=0.5, tol=1e-9, max_iter=9999)
        model.fit(scaler.transform(values[rows]), task.label[rows])
        expected = auroc(task.label[val], model.decision_function(scaler.transform(values[val])))
        assert score == pytest.approx(expected, abs=0.02)  # one swapped pair of 64


def test_fitted_features_never_see_the_scored_split(place: Any) -> None:
    task, seen = place.task(), []

    def fit(rows: np.ndarray) -> np.ndarray:
        seen.extend(task.split[rows])
        return _features(task)

    score_draws(task, fit, draw(task, CONFIG), CONFIG, split="val")
    assert set(seen) == {"train"}


def test_stored_draws_are_pseudonyms_in_nested_order(place: Any) -> None:
    task = place.task()
    draws = draw(task, CONFIG)
    stored = stored_draws(task, draws, CONFIG)
    assert stored["missing"] == {"32": draws.missing[32]}
    first = [task.subjects[row] for row in draws.order[0, 1]]
    assert stored["draws"][0]["1"] == first


def test_unsuitable_tasks_say_why(place: Any) -> None:
    assert unsuitable(place.task()) is None
    regression = place.task(kind="regression", label={"column": "size"})
    assert "regression" in str(unsuitable(regression))
    assert "cross-validated" in str(unsuitable(place.task(protocol={"repeated_cv": {}})))
