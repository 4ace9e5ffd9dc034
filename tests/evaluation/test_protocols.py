"""Choosing on validation, nested cross-validation, and a test split that stays closed."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation.probing import resampled
from evaluation.probing.cross_validation import _kept, cross_validate
from evaluation.probing.estimator import Bags, Estimator, Fitted, Scorer
from evaluation.probing.knn import knn
from evaluation.probing.linear import CS, linear_probe
from evaluation.probing.logistic import sigmoid
from evaluation.probing.prevalence import at_prevalence, class_shares
from evaluation.probing.protocols import evaluate
from evaluation.probing.prototypes import prototypes
from evaluation.probing.resampled import bootstrap_counts
from evaluation.probing.subjects import take
from foundation.metrics.by_name import PRIMARY, auroc, measure
from foundation.metrics.quality import measures, qualities
from foundation.tasks.card import RepeatedCv
from foundation.tasks.folds import nested_folds, strata, stratified_folds
from tests.evaluation.made_tasks import Toy

N = 72
OUTPUTS = {"multiclass": 3, "ordinal": 3, "multilabel": 2}
SIGNAL = np.random.default_rng(1).normal(size=N)


def _label(kind: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    label = {
        "binary": np.arange(N) % 2 * 1.0,
        "multiclass": np.digitize(SIGNAL, [-0.5, 0.5]) * 1.0,
        "ordinal": np.digitize(SIGNAL, [-0.5, 0.5]) * 1.0,
        "multilabel": (SIGNAL[:, None] > np.array([-0.3, 0.4])) * 1.0,
        "regression": 20 + 3 * SIGNAL,
        "survival": np.stack([np.ceil(50 * np.exp(-SIGNAL)), rng.random(N) < 0.7], axis=1),
    }[kind]
    if kind == "multilabel":
        label[rng.random(label.shape) < 0.1] = np.nan
    return label


def _task(kind: str = "binary", *, cv: RepeatedCv | None = None, metric: str = "") -> Any:
    """36 subjects in training, 18 in validation and 18 in test."""
    protocol = SimpleNamespace(repeated_cv=cv)
    return Toy(
        card=SimpleNamespace(
            name="toy", kind=kind, metric=metric or PRIMARY[kind], protocol=protocol
        ),
        subjects=tuple(f"s{number}" for number in range(N)),
        label=_label(kind),
        outputs=tuple(str(number) for number in range(OUTPUTS.get(kind, 1))),
        split=np.array(["cv"] * N if cv else ["train"] * 36 + ["val"] * 18 + ["test"] * 18),
    )


def _signal(task: Any) -> np.ndarray:
    """Features that tell of every kind's label."""
    if task.card.kind == "binary":
        return _features(task, signal=2.0)
    rng = np.random.default_rng(3)
    return np.stack([SIGNAL, *rng.normal(size=(3, N))], axis=1) + 0.3 * rng.normal(size=(N, 4))


def _features(task: Any, seed: int = 0, signal: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(N, 6))
    values[:, 0] += signal * task.label
    return values


def _evaluate(task: Any, features: Any, estimator: Estimator, **how: Any) -> Any:
    named = features if isinstance(features, dict) else {"x": features}
    return evaluate(task, Scorer(named, estimator), **{"open_test": False, **how})


def test_c_is_chosen_on_validation_and_refitted_for_test() -> None:
    task = _task()
    values = _features(task)
    train, val, test = (task.rows(split) for split in ("train", "val", "test"))
    outcome = _evaluate(task, values, linear_probe("binary"), open_test=True)

    def probability(c: float, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-9, max_iter=9999))
        return model.fit(values[rows], task.label[rows]).predict_proba(values[of])[:, 1]

    grid = [auroc(task.label[val], probability(c, train, val)) for c in CS]
    assert [cell["score"] for cell in outcome.grid] == pytest.approx(grid, abs=1e-9)
    best = CS[int(np.argmax(np.round(grid, 12)))]
    assert outcome.chosen == {"features": "x", "C": best}
    assert outcome.folds is None
    assert outcome.spread is None
    expected = probability(best, train, val)
    np.testing.assert_allclose(outcome.scores["val"][:, 0], expected, atol=1e-4)
    both = np.concatenate([train, val])
    expected = probability(best, both, test)
    np.testing.assert_allclose(outcome.scores["test"][:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "ordinal", "survival"])
def test_a_closed_test_split_is_neither_scored_nor_read(kind: str) -> None:
    task = _task(kind)
    values = _signal(task)
    test = task.rows("test")
    label = task.label.copy()
    label[test] = np.nan
    spoiled = values.copy()
    spoiled[test] = np.nan
    for make in (linear_probe, knn):
        outcome = _evaluate(task, values, make(kind), spread=3)
        assert set(outcome.scores) == {"val"}
        again = _evaluate(replace(task, label=label), spoiled, make(kind), spread=3)
        np.testing.assert_array_equal(again.scores["val"], outcome.scores["val"])
        np.testing.assert_array_equal(again.spread, outcome.spread)
        assert again.chosen == outcome.chosen


def test_the_best_features_are_chosen_and_a_tie_goes_to_the_first() -> None:
    task = _task()
    good, bad = task.label[:, None] + 0.0, _features(task, signal=0.0)
    outcome = _evaluate(task, {"bad": bad, "good": good}, linear_probe("binary"))
    assert outcome.chosen == {"features": "good", "C": CS[0]}
    assert len(outcome.grid) == 24


def test_a_metric_where_less_is_better_is_minimised() -> None:
    task = _task("regression", metric="mean_absolute_error")
    outcome = _evaluate(task, _signal(task), linear_probe("regression"))
    scores = [cell["score"] for cell in outcome.grid]
    assert min(scores) > 0
    chosen = next(cell for cell in outcome.grid if cell["alpha"] == outcome.chosen["alpha"])
    assert chosen["score"] == min(scores)


@pytest.mark.parametrize("kind", [*OUTPUTS, "binary", "regression", "survival"])
def test_every_kind_is_scored_on_a_split_and_by_cross_validation(kind: str) -> None:
    for cv in (None, RepeatedCv(folds=3, repeats=2)):
        task = _task(kind, cv=cv)
        values = _signal(task)
        makers = [linear_probe, knn]
        makers += [prototypes] if kind not in ("regression", "survival") else []
        for make in makers:
            outcome = _evaluate(task, values, make(kind), spread=4)
            ((split, scores),) = outcome.scores.items()
            rows = task.rows(split)
            assert scores.shape == (len(rows), len(task.outputs))
            value = measure(task.label[rows], scores, task.card.metric)
            assert value > {"regression": 0.1, "ordinal": 0.2}.get(kind, 0.6), (kind, make)
            if cv:
                assert outcome.spread is None
                assert outcome.folds.shape == (6,)
                assert np.nanmean(outcome.folds) == pytest.approx(value, abs=0.2)
            else:
                assert outcome.spread.shape == (4,)
                assert 0 < outcome.spread.std() < 0.3


def test_fitted_features_are_fitted_on_training_rows_alone() -> None:
    task = _task()
    seen: list[np.ndarray] = []

    def fit(inside: np.ndarray) -> Any:
        seen.append(inside[:, 0].astype(int))
        return lambda rows: rows[:, 1:] - inside[:, 1:].mean(axis=0)

    table = np.concatenate([np.arange(N)[:, None], _features(task)], axis=1)
    _evaluate(task, Fitted(table, fit), linear_probe("binary"), open_test=True, spread=2)
    allowed = set(task.rows("train", "val").tolist())
    assert all(set(rows.tolist()) <= allowed for rows in seen)
    assert set(seen[0].tolist()) == set(task.rows("train").tolist())
    seen.clear()
    cv = _task(cv=RepeatedCv(folds=4, repeats=2))
    _evaluate(cv, Fitted(table, fit), linear_probe("binary"))
    folds = nested_folds(cv.label, kind="binary", cv=RepeatedCv(folds=4, repeats=2))
    assert [rows.tolist() for rows in seen] == [fold.train.tolist() for fold in folds]


def test_cross_validation_is_nested() -> None:
    """An estimator that notes what it trains on: inner parts lie inside their outer part."""
    task = _task(cv=RepeatedCv(folds=4, repeats=3))
    trained: list[np.ndarray] = []

    def predict(features: Any, _: Any, train: Any, settings: Sequence[Any]) -> np.ndarray:
        trained.extend(train)
        score = np.stack([sigmoid(setting["sign"] * features[:, 0]) for setting in settings])
        return np.broadcast_to(score, (len(train), len(features)))[:, :, None]

    estimator = Estimator("noted", ({"sign": -1}, {"sign": 1}), predict)
    values = _features(task, signal=5.0)
    outcome = _evaluate(task, values, estimator)
    per_fold = np.array(trained).reshape(12, 6, 2, N)  # five inner parts and the outer one
    assert (per_fold[:, :5].sum(axis=1) == 4 * per_fold[:, 5]).all()
    assert (per_fold[:, 5].sum(axis=2) == 54).all()
    assert outcome.chosen == {"features": "x", "sign": 1, "times_chosen": 12, "num_fits": 12}
    # Half are positive in every fold, so nothing is shifted.
    np.testing.assert_allclose(outcome.scores["cv"][:, 0], sigmoid(values[:, 0]), atol=1e-9)
    assert (outcome.folds > 0.95).all()


def test_a_fold_has_no_say_in_what_is_chosen_for_it() -> None:
    task = _task(cv=RepeatedCv(folds=4, repeats=1))
    cv = RepeatedCv(folds=4, repeats=1)
    pair = {"a": _features(task, 1), "b": _features(task, 2)}
    fold = nested_folds(task.label, kind="binary", cv=cv)[0]
    before = cross_validate(task, Scorer(pair, linear_probe("binary")), cv).scores[fold.held_out]
    # Other labels of the same strata in the same places, but only inside the fold: swapped pairs
    # would move the folds, so features are spoiled for all but one of the fold's subjects instead.
    kept, rest = fold.held_out[0], fold.held_out[1:]
    for values in pair.values():
        values[rest] = 1e6
    after = cross_validate(task, Scorer(pair, linear_probe("binary")), cv).scores[kept]
    np.testing.assert_allclose(after, before[0], atol=1e-9)


def test_cross_validated_noise_is_at_chance() -> None:
    """A feature without meaning, weighed by how far training classes lie apart on it."""
    n, cv = 24, RepeatedCv(folds=5, repeats=10)
    label = np.arange(n) % 2 * 1.0

    def predict(features: Any, label: Any, train: Any, _: Any) -> np.ndarray:
        means = [(side @ features) / side.sum(axis=1, keepdims=True)
                 for side in (train * (label == 1), train * (label == 0))]  # fmt: skip
        apart = means[0] - means[1]
        return sigmoid(apart * (features[:, 0] - (means[0] + means[1]) / 2))[:, :, None]

    task = replace(_task(cv=cv), label=label, split=np.array(["cv"] * n))
    rng = np.random.default_rng(0)
    found, folds = [], []
    for _ in range(60):
        scorer = Scorer({"x": rng.normal(size=(n, 1))}, Estimator("apart", ({},), predict))
        outcome = cross_validate(task, scorer, cv)
        found.append(auroc(label, outcome.scores))
        folds.append(outcome.folds.mean())
    assert np.mean(found) == pytest.approx(0.5, abs=3 * np.std(found) / np.sqrt(60))
    np.testing.assert_allclose(found, folds, atol=0.1)  # of a mean over repeats, 5 of 60 are not


@pytest.mark.parametrize(("metric", "place"), [("auroc", 2), ("brier", 1)])
def test_the_repeat_that_is_kept_stands_for_all(metric: str, place: int) -> None:
    """Nearest to the mean over folds of a metric of pairs, the middle one of any other."""
    label, folds = np.array([0.0, 0, 1, 1]), np.array([1.0, 0.9, np.nan])
    repeats = np.array([[0.1, 0.9, 0.2, 0.3], [0.1, 0.3, 0.2, 0.4], [0.1, 0.2, 0.6, 0.7]])
    assert measures(label, repeats[:, :, None], "auroc").tolist() == [0.5, 0.75, 1.0]
    task: Any = SimpleNamespace(card=SimpleNamespace(kind="binary", metric=metric), label=label)
    kept = _kept(task, repeats[:, :, None], folds)
    np.testing.assert_array_equal(kept[:, 0], repeats[place])


def test_scores_of_one_subject_alone_are_averaged_over_repeats() -> None:
    card = SimpleNamespace(kind="segmentation", metric="dice")
    task: Any = SimpleNamespace(card=card, label=np.zeros(3))
    repeats = np.array([[[0.2], [np.nan], [np.nan]], [[0.4], [0.6], [np.nan]]])
    kept = _kept(task, repeats, np.zeros(4))
    np.testing.assert_allclose(kept[:, 0], [0.3, 0.6, np.nan])


def test_a_constant_is_at_chance_under_cross_validation() -> None:
    task = _task(cv=RepeatedCv(folds=5, repeats=3))
    label = task.label.copy()
    label[:20] = 0  # folds cannot all have the same prevalence

    def predict(features: Any, label: Any, train: Any, settings: Any) -> np.ndarray:
        del settings
        rate = (train @ label) / train.sum(axis=1)
        return np.repeat(rate[:, None], len(features), axis=1)[:, :, None]

    outcome = _evaluate(
        replace(task, label=label), np.zeros((N, 1)), Estimator("constant", ({},), predict)
    )
    assert auroc(label, outcome.scores["cv"]) == 0.5
    np.testing.assert_allclose(outcome.scores["cv"], label.mean(), atol=1e-9)


def test_prevalence_is_shifted_by_bayes_rule() -> None:
    label = np.array([0.0, 1, 2, 1, 0, 0])
    train = np.array([[True, True, True, True, False, False]])
    shares = class_shares(label, train, num_outputs=3, kind="multiclass")
    np.testing.assert_allclose(shares, [[0.25, 0.5, 0.25]])
    score = np.array([[[0.2, 0.6, 0.2]]])
    wanted = np.array([0.5, 0.25, 0.25])
    moved = at_prevalence(score, trained=shares, wanted=wanted, kind="multiclass")
    np.testing.assert_allclose(moved[0, 0], np.array([0.4, 0.3, 0.2]) / 0.9)
    binary = at_prevalence(
        np.array([[[0.5]]]), trained=np.array([[0.5]]), wanted=np.array([0.2]), kind="binary"
    )
    assert binary[0, 0, 0] == pytest.approx(0.2)
    risk = np.array([[[3.0]]])
    assert at_prevalence(risk, trained=shares, wanted=wanted, kind="survival") is risk


def test_folds_are_stratified_and_cover_everyone() -> None:
    label = np.array([1.0] * 7 + [0.0] * 20)
    rng = np.random.default_rng(0)
    stratum = strata(label, kind="binary")
    folds = stratified_folds(stratum, np.arange(27), num_folds=5, rng=rng)
    assert sorted(np.concatenate(folds).tolist()) == list(range(27))
    assert {int(label[fold].sum()) for fold in folds} <= {1, 2}
    for fold in nested_folds(label, kind="binary", cv=RepeatedCv(folds=5, repeats=2)):
        assert not set(fold.train) & set(fold.held_out)
        held = np.concatenate([rows for _, rows in fold.inner])
        assert sorted(held.tolist()) == fold.train.tolist()
        assert all(not set(train) & set(rows) for train, rows in fold.inner)
        assert all(label[rows].any() for _, rows in fold.inner)


def test_strata_of_each_kind() -> None:
    survival = np.array([[5.0, 1], [6.0, 0]])
    assert strata(survival, kind="survival").tolist() == [1, 0]
    labels = np.array([[1.0, np.nan], [0, 0], [1, 1]])
    assert strata(labels, kind="multilabel").tolist() == [1, 0, 2]
    assert strata(np.array([3.5, 9.0]), kind="regression").tolist() == [0, 0]


def test_metrics_of_many_candidates_equal_those_of_each() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((5, 40, 3)), 1)
    classes = rng.integers(0, 2, 40).astype(float)  # class 2 is not there: left out
    labels = rng.integers(0, 2, (40, 3)).astype(float)
    labels[::4, 1], labels[:, 2] = np.nan, 1.0
    for label, given, metric in (
        (classes, scores[:, :, :1], "auroc"),
        (classes, scores, "macro_auroc"),
        (labels, scores, "macro_auroc"),
        (classes, scores[:, :, :1], "brier"),
    ):
        expected = [measure(label, score, metric) for score in given]
        np.testing.assert_allclose(measures(label, given, metric), expected, atol=1e-12)
    undefined = np.ones(40)
    assert np.isnan(measures(undefined, scores[:, :, :1], "auroc")).all()
    assert (qualities(undefined, scores[:, :, :1], "auroc") == -np.inf).all()
    scores[1, 3, 0] = np.nan
    for metric, given in (("auroc", scores[:, :, :1]), ("macro_auroc", scores)):
        assert np.isnan(measures(classes, given, metric)).tolist() == [False, True] + [False] * 3
    assert (qualities(classes, scores[2:, :, :1], "brier") < 0).all()


@pytest.mark.parametrize("rows_at_once", [10, 1000])  # one refit at a time, and all in one call
def test_resampled_training_sets_are_bootstraps_within_classes(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampled, "_ROWS_AT_ONCE", rows_at_once)
    stratum = np.array([0] * 9 + [1] * 4)
    counts = bootstrap_counts(stratum, num=50, seed=0)
    assert (counts[:, :9].sum(axis=1) == 9).all()
    assert (counts[:, 9:].sum(axis=1) == 4).all()
    assert counts.max() > 2
    task = _task()
    values = _features(task)
    outcome = _evaluate(task, values, linear_probe("binary"), spread=3, seed=5)
    train, val = task.rows("train"), task.rows("val")
    drawn = bootstrap_counts(strata(task.label[train], kind="binary"), num=3, seed=5)
    for value, times in zip(outcome.spread, drawn, strict=True):
        rows = np.repeat(train, times)
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=outcome.chosen["C"], tol=1e-9, max_iter=9999)
        ).fit(values[rows], task.label[rows])
        expected = auroc(task.label[val], model.decision_function(values[val]))
        assert value == pytest.approx(expected, abs=1e-9)


def test_subjects_are_taken_from_every_class_of_features() -> None:
    tokens = np.arange(12, dtype=np.float32).reshape(6, 2)
    bags = take(Bags(tokens, np.array([0, 1, 4, 6])), np.array([2, 0]))
    assert isinstance(bags, Bags)
    assert bags.starts.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(bags.tokens, tokens[[4, 5, 0]])
    fitted = take(Fitted(tokens, lambda _: lambda rows: rows), np.array([1]))
    assert isinstance(fitted, Fitted)
    assert fitted.values.tolist() == [[2.0, 3.0]]
    assert take(object(), np.array([0])) is None
