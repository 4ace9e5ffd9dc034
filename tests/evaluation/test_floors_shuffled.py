"""Shuffled labels: chance for healthy data of every kind, and the leaks a shuffle can see."""

from typing import Any

import numpy as np
import pytest

from evaluation.floors import shuffled
from evaluation.floors.registry import floor_candidates
from evaluation.floors.shuffled import (
    NUM_CONFIRMING,
    NUM_SHUFFLES,
    ShuffleError,
    shuffled_check,
    shuffled_labels,
)
from evaluation.floors.voxels import pca_features
from evaluation.probing.estimator import Estimator, Scorer
from evaluation.probing.knn import knn
from evaluation.probing.linear import linear_probe
from tests.evaluation.made_tasks import made_task
from tests.evaluation.test_floors import LABELS, made_arrays


def signal(label: Any, rng: Any, *, width: int = 6, skewed: bool = False) -> Any:
    """Features that hold the label, some with a long tail."""
    values = rng.normal(size=(len(label), width))
    values[:, 0] += 2 * label
    return np.exp(2 * values) if skewed else values


def scorer(features: Any, estimator: Any = None) -> Scorer:
    return Scorer({"table": features}, estimator or linear_probe("binary"))


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("kind", ["binary", *LABELS])
def test_healthy_tasks_of_every_kind(kind: str, folds: bool) -> None:
    label = LABELS[kind].astype(float) if kind in LABELS else None
    task = made_task(kind, label=label, folds=folds)
    candidate = floor_candidates(task, made_arrays(72))["radiomics"]
    found = shuffled_check(task, candidate.scorers[0], model="radiomics", seed=3)
    if kind == "retrieval":
        assert found["passed"] is None
        assert found["mean"] is None
        assert "retrieval" in found["reason"]
        return
    assert found["passed"] is True
    assert found["num"] in (NUM_SHUFFLES, NUM_CONFIRMING)
    assert abs(found["mean"] - found["chance"]) <= 3 * found["se"]
    assert 0 < found["se"] < 0.1


def test_shuffled_labels_hold_as_many_of_each() -> None:
    rare = np.array([1.0] * 4 + [0.0] * 17)
    ones = [shuffled_labels("binary", rare, num_outputs=1, seed=seed).sum() for seed in range(40)]
    assert set(ones) == {10.0, 11.0}
    classes = shuffled_labels("multiclass", np.zeros(11), num_outputs=3, seed=0)
    assert sorted(np.bincount(classes.astype(int))) == [3, 4, 4]
    several = np.array([[1.0, np.nan]] * 6 + [[np.nan, 0.0]] * 4)
    labels = shuffled_labels("multilabel", several, num_outputs=2, seed=0)
    assert (np.isnan(labels) == np.isnan(several)).all()
    assert np.nansum(labels, axis=0).tolist() == [3.0, 2.0]
    skewed = np.exp(np.arange(9.0))
    values = shuffled_labels("regression", skewed, num_outputs=1, seed=0)
    assert np.sort(values - values.mean()) == pytest.approx(-np.sort(values.mean() - values)[::-1])
    assert values.mean() == pytest.approx(skewed.mean())
    lives = shuffled_labels("survival", np.ones((8, 2)) * [30, 1], num_outputs=1, seed=0)
    assert lives[:, 1].sum() == 4


def test_constant_scores_are_at_chance_without_a_spread() -> None:
    task = made_task()
    candidate = floor_candidates(task, made_arrays(72))["constant"]
    found = shuffled_check(task, candidate.scorers[0], model="constant")
    assert (found["mean"], found["se"], found["passed"]) == (0.5, 0.0, True)


def test_no_test_subject_is_read_while_it_is_closed() -> None:
    task = made_task()
    features = signal(task.label, np.random.default_rng(0))
    poisoned = features.copy()
    poisoned[task.rows("test")] = np.nan
    before = shuffled_check(task, scorer(features), model="mae")
    assert shuffled_check(task, scorer(poisoned), model="mae") == before
    opened = shuffled_check(task, scorer(features), model="mae", open_test=True)
    assert opened["passed"]
    assert opened["mean"] != before["mean"]


def test_the_same_seed_gives_the_same_shuffles() -> None:
    task = made_task()
    features = pca_features(signal(task.label, np.random.default_rng(0)), num_components=3)
    first = shuffled_check(task, scorer(features), model="mae", seed=1)
    assert shuffled_check(task, scorer(features), model="mae", seed=1) == first
    assert shuffled_check(task, scorer(features), model="mae", seed=2) != first


def test_one_class_held_out_is_a_reason_and_no_score() -> None:
    label = np.arange(72) % 2.0
    label[40:56] = 1.0
    task = made_task(label=label)
    found = shuffled_check(task, scorer(signal(label, np.random.default_rng(0))), model="mae")
    assert found["passed"] is None
    assert "both classes" in found["reason"]


def test_a_first_failure_by_chance_is_confirmed_away() -> None:
    task = made_task(sizes=(40, 200, 0))
    features = signal(task.label, np.random.default_rng(0))
    calls = []

    def unlucky(values: Any, label: Any, train: Any, settings: Any) -> Any:
        calls.append(1)
        score = linear_probe("binary").predict(values, label, train, settings)
        if len(calls) <= NUM_SHUFFLES:  # the first ones happen to be right
            score = 0.9 * values[None, :, :1] + 0.1 * score
        return score

    estimator = Estimator("linear", ({"C": 0.1},), unlucky)
    found = shuffled_check(task, scorer(features, estimator), model="mae")
    assert found["passed"] is True
    assert found["num"] == NUM_CONFIRMING
    assert "the first 20 had a mean of 0.9" in found["reason"]


def _peeks(features: Any, label: Any, train: Any, settings: Any) -> Any:
    score = linear_probe("binary").predict(features, label, train, settings)
    return score + 0.02 * label[None, :, None]


def test_held_out_labels_that_reach_the_score() -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(240) % 2.0)
    task = made_task(label=label, sizes=(80, 160, 0))
    features = rng.normal(size=(240, 6))
    leak = Estimator("linear", ({"C": 0.001},), _peeks)
    words = r"task made, model mae, linear: trained on shuffled labels, the mean auroc of 200"
    with pytest.raises(ShuffleError, match=words):
        shuffled_check(task, scorer(features, leak), model="mae")


def test_a_model_that_was_kept_from_an_earlier_fit() -> None:
    task = made_task()
    features = signal(task.label, np.random.default_rng(0))
    mask = np.zeros((1, 72), bool)
    mask[0, :40] = True
    kept = linear_probe("binary").predict(features, task.label, mask, [{"C": 0.1}])

    def stale(values: Any, label: Any, train: Any, settings: Any) -> Any:
        del label, settings
        return np.repeat(kept[:, : len(values)], len(train), axis=0)

    with pytest.raises(ShuffleError):
        shuffled_check(task, scorer(features, Estimator("linear", ({},), stale)), model="mae")


def test_what_a_shuffle_cannot_see() -> None:
    """Labels inside the features, and features selected by all labels, look healthy."""
    rng = np.random.default_rng(4)
    label = rng.permutation(np.arange(120) % 2.0)
    task = made_task(label=label, sizes=(40, 80, 0))
    noise = rng.normal(size=(120, 3000))
    gap = np.abs(noise[label == 1].mean(0) - noise[label == 0].mean(0))
    selected = noise[:, np.argsort(gap)[-10:]]
    inside = np.concatenate([noise[:, :5], label[:, None]], axis=1)
    for features in (selected, inside):
        for estimator in (linear_probe("binary"), knn("binary")):
            assert shuffled_check(task, scorer(features, estimator), model="mae")["passed"]


def _skewed(seed: int, *, share: float) -> tuple[Any, Scorer]:
    """One telling feature with a long tail, and unequal classes."""
    rng = np.random.default_rng(seed)
    label = (rng.permutation(180) < 180 * share).astype(float)
    features = np.exp(1.5 * rng.normal(size=(180, 1)) + 3 * label[:, None])
    return made_task(label=label, sizes=(80, 100, 0)), scorer(features)


def _permuting(truth: Any) -> Estimator:
    """The probe with training labels permuted as they are, not as many of each."""
    rng, probe = np.random.default_rng(0), linear_probe("binary")

    def predict(features: Any, label: Any, train: Any, settings: Any) -> Any:
        label, rows = label.copy(), np.flatnonzero(train[0])
        label[rows] = rng.permutation(truth[rows])
        return probe.predict(features, label, train, settings)

    return Estimator("linear", probe.settings, predict)


@pytest.mark.slow
def test_how_often_healthy_data_fails() -> None:
    """The first look fails in 0.7% (Student's t with 19 degrees of freedom), the second never."""
    counts = []
    for seed in range(150):
        task, skewed = _skewed(seed, share=0.2)
        counts.append(shuffled_check(task, skewed, model="m", seed=seed)["num"])
    assert counts.count(NUM_CONFIRMING) <= 6


@pytest.mark.slow
def test_labels_permuted_as_they_are_convict_healthy_data(monkeypatch: Any) -> None:
    """Why there are as many of each: the mean of literal permutations is near .3 here."""
    monkeypatch.setattr(shuffled, "NUM_SHUFFLES", 200)
    task, skewed = _skewed(5, share=0.12)
    assert shuffled_check(task, skewed, model="m")["num"] == NUM_CONFIRMING
    literal = Scorer(skewed.features, _permuting(task.label))
    with pytest.raises(ShuffleError, match=r"200 shuffles is 0\.[23]"):
        shuffled_check(task, literal, model="m")
