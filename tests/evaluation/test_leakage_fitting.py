"""Planted fits outside the training part are caught; honest features and estimators are not."""

from typing import Any

import numpy as np
import pytest

from evaluation.floors.clinical import table_features
from evaluation.floors.constant import constant
from evaluation.floors.registry import floor_candidates
from evaluation.floors.svm import rbf_svm
from evaluation.floors.voxels import fit_pca, pca_features
from evaluation.leakage.checks import Check
from evaluation.leakage.fitting import check_fitting
from evaluation.leakage.traces import depends_on_company, fitted_elsewhere, fitted_on_everybody
from evaluation.probing.estimator import Bags, Candidate, Estimator, Fitted, Scorer
from evaluation.probing.knn import knn
from evaluation.probing.linear import linear_probe
from evaluation.probing.retrieval import retrieval
from tests.evaluation.made_tasks import made_task
from tests.evaluation.test_floors import LABELS, made_arrays

TRAIN = np.arange(40)


def raw(width: int = 12, n: int = 72) -> Any:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n, width)) * np.linspace(1, 5, width) + 7
    values[:, 0] += 6 * (np.arange(n) % 2)
    return values


def one(features: Any, estimator: Estimator | None = None) -> dict[str, Candidate]:
    scorer = Scorer({"table": features}, estimator or linear_probe("binary"))
    return {"model": Candidate((scorer,), None)}


def failed(checks: list[Check]) -> list[str]:
    return [each.check for each in checks if each.status == "failed"]


ELSEWHERE = "features fitted outside training"


def standardised(values: Any) -> Any:
    return (values - values.mean(0)) / values.std(0)


def whitened(values: Any) -> Any:
    return fit_pca(values, num_components=6)(values)


def min_max(values: Any) -> Any:
    return (values - values.min(0)) / np.ptp(values, axis=0)


def uncentred_svd(values: Any) -> Any:
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :6] * singular[:6]


PLANTED = [standardised, whitened, min_max, uncentred_svd]


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("plant", PLANTED)
def test_tables_that_were_fitted_on_everybody(plant: Any, dtype: Any, folds: bool) -> None:
    values = plant(raw()).astype(dtype)
    assert failed(check_fitting(made_task(folds=folds), one(values))) == [ELSEWHERE]
    among = np.concatenate([values, raw(40)], axis=1)
    assert failed(check_fitting(made_task(folds=folds), one(among))) == [ELSEWHERE]


def test_the_same_on_training_rows_is_in_order() -> None:
    values = raw()
    mean, scale = values[TRAIN].mean(0), values[TRAIN].std(0)
    assert not fitted_on_everybody((values - mean) / scale, TRAIN)
    assert not fitted_on_everybody(fit_pca(values[TRAIN], num_components=6)(values), TRAIN)
    low, wide = values[TRAIN].min(0), np.ptp(values[TRAIN], axis=0)
    assert not fitted_on_everybody((values - low) / wide, TRAIN)


def test_tables_of_measurements_and_codes_are_in_order() -> None:
    hot = np.eye(4)[np.arange(72) % 4]
    quarters = np.arange(72)[:, None] % 5 / 4.0
    contrast = np.where(np.arange(72) % 2, 1.0, -1.0)[:, None]  # its mean is zero by coding
    shares = np.random.default_rng(1).dirichlet(np.ones(32) / 4, 72)
    sparse = np.where(shares > 0.05, shares, 0.0)  # many pairs share no subject
    constant_column = np.full((72, 1), 3.0)
    for values in (
        hot,
        quarters,
        contrast,
        shares,
        sparse,
        constant_column,
        raw(),
        np.zeros((72, 1)),
    ):
        assert not fitted_on_everybody(values, TRAIN)
        assert not fitted_on_everybody(values, None)


def test_healthy_columns_are_rarely_suspected() -> None:
    rng = np.random.default_rng(2)
    found = sum(bool(fitted_on_everybody(rng.normal(size=(72, 8)), TRAIN)) for _ in range(600))
    assert found <= 2


def test_a_pca_of_all_rows_behind_a_fit_that_ignores_its_rows() -> None:
    values = raw()
    ready = fit_pca(values, num_components=5)
    leak = Fitted(values, lambda _: ready)
    assert fitted_elsewhere(leak, TRAIN)
    assert failed(check_fitting(made_task(), one(leak))) == [ELSEWHERE]
    assert not fitted_elsewhere(pca_features(values, num_components=5), TRAIN)


def test_a_fit_on_rows_that_were_whitened_before() -> None:
    leak = Fitted(whitened(raw()), lambda rows: lambda others: others - rows.mean(axis=0))
    assert not fitted_elsewhere(leak, TRAIN)
    assert failed(check_fitting(made_task(), one(leak))) == [ELSEWHERE]


def test_a_transform_that_standardises_whatever_it_is_given() -> None:
    leak = Fitted(raw(), lambda _: standardised)
    assert depends_on_company(leak, TRAIN)
    assert failed(check_fitting(made_task(), one(leak))) == [ELSEWHERE]


@pytest.mark.parametrize(
    "cells",
    [
        [[50.0 + number % 20] for number in range(72)],
        [["MF"[number % 2]] for number in range(72)],
        [[float(number % 2)] for number in range(72)],
        [[None if number % 9 else 1.0, "x"] for number in range(72)],
        [[7.0] for _ in range(72)],
    ],
)
def test_clinical_tables_of_few_values_are_in_order(cells: list[list[Any]]) -> None:
    table = np.empty((72, len(cells[0])), dtype=object)
    table[:] = cells
    assert not failed(check_fitting(made_task(), one(table_features(table))))


def _scaled_over_everybody(features: Any, label: Any, train: Any, settings: Any) -> Any:
    # The linear probe would undo a scaling by one of its own; k-NN does not.
    return knn("binary").predict(standardised(features), label, train, settings)


def _reads_held_out_labels(features: Any, label: Any, train: Any, settings: Any) -> Any:
    score = linear_probe("binary").predict(features, label, train, settings)
    return 0.9 * score + 0.1 * label[None, :, None]


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize(
    ("predict", "question"),
    [
        (_scaled_over_everybody, "held-out features reach the fit"),
        (_reads_held_out_labels, "held-out labels reach the fit"),
    ],
)
def test_an_estimator_that_looks_at_held_out_subjects(
    predict: Any, question: str, folds: bool
) -> None:
    settings = knn("binary").settings if predict is _scaled_over_everybody else [{"C": 0.1}]
    leak = Estimator("leaky", tuple(settings), predict)
    checks = check_fitting(made_task(folds=folds), one(raw(), leak))
    assert failed(checks) == [question]
    assert [each.count for each in checks if each.check == question] == [1]


def _estimators(kind: str, num_outputs: int) -> list[Estimator]:
    if kind == "retrieval":
        return [retrieval()]
    machines = [rbf_svm(kind, num_outputs=num_outputs)] if kind != "survival" else []
    return [linear_probe(kind), knn(kind), constant(kind, num_outputs=num_outputs), *machines]


@pytest.mark.parametrize("kind", ["binary", *LABELS])
def test_our_own_estimators_and_floors_pass(kind: str) -> None:
    label = LABELS[kind].astype(float) if kind in LABELS else None
    task = made_task(kind, label=label, floors={"mask_intensity": True})
    scorers = tuple(Scorer({"raw": raw()}, each) for each in _estimators(kind, len(task.outputs)))
    models = {"model": Candidate(scorers, None), **floor_candidates(task, made_arrays(72))}
    checks = check_fitting(task, models)
    assert {each.status for each in checks} == {"passed"}
    assert len(checks) == 3 * len(models)


def _mean_over_tokens(features: Any, label: Any, train: Any, settings: Any) -> Any:
    pooled = np.array([features[row].mean(axis=0) for row in range(len(features))])
    return knn("binary").predict(pooled.astype(float), label, train, settings)


def _mean_over_standardised_tokens(features: Any, label: Any, train: Any, settings: Any) -> Any:
    bags = Bags(standardised(features.tokens), features.starts)
    return _mean_over_tokens(bags, label, train, settings)


@pytest.mark.parametrize(
    ("predict", "expected"),
    [
        (_mean_over_tokens, []),
        (_mean_over_standardised_tokens, ["held-out features reach the fit"]),
    ],
)
def test_bags_of_tokens_are_altered_too(predict: Any, expected: list[str]) -> None:
    lengths = 1 + np.arange(72) % 4
    bags = Bags(raw(n=int(lengths.sum())).astype(np.float32), np.append(0, np.cumsum(lengths)))
    estimator = Estimator("attentive", knn("binary").settings, predict)
    assert failed(check_fitting(made_task(), one(bags, estimator))) == expected


def test_features_that_cannot_be_altered_are_unknown() -> None:
    class Opaque:
        def __len__(self) -> int:
            return 72

    checks = check_fitting(made_task(), one(Opaque()))
    assert [each.status for each in checks] == ["passed", "unknown", "unknown"]
    assert "linear" in checks[1].reason


class Files:
    """Features and labels by subject that are read when they are needed, as a segmentation's."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def take(self, rows: Any) -> "Files":
        return Files(self.values[rows])


def _by_training_rows(features: Any, label: Any, train: Any, settings: Any) -> Any:
    del label, settings
    return np.abs(features.values[None] - features.values[train[0]].mean(axis=0))


def _by_all_rows(features: Any, label: Any, train: Any, settings: Any) -> Any:
    del label, settings, train
    return np.abs(features.values[None] - features.values.mean(axis=0))


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize(
    ("predict", "expected"),
    [(_by_training_rows, []), (_by_all_rows, ["held-out features reach the fit"])],
)
def test_features_in_files_are_scored_without_the_others(
    predict: Any, expected: list[str], folds: bool
) -> None:
    estimator = Estimator("linear", ({},), predict)
    checks = check_fitting(made_task(folds=folds), one(Files(raw()), estimator))
    assert failed(checks) == expected
    assert not [each for each in checks if each.status == "unknown"]
