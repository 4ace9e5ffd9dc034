"""Nested draws, the same for every model, and probes that spend no label beyond them."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from evaluation.probing import few_shot
from evaluation.probing.draws import (
    FRACTION,
    SHOTS,
    FewShotConfig,
    Point,
    draw,
    stored_draws,
    unsuitable,
)
from evaluation.probing.estimator import Fitted
from evaluation.probing.few_shot import score_draws, tuned
from evaluation.probing.linear import CS
from foundation.metrics.by_name import PRIMARY, auroc, measure
from tests.evaluation.made_tasks import Toy

N = 72
CONFIG = FewShotConfig(shots=(1, 2, 4, 16, 32), fractions=(0.01, 0.5, 1.0), num_draws=6, C=0.5)


def _task(kind: str = "binary", label: np.ndarray | None = None, **protocol: Any) -> Any:
    """40 subjects in training, 20 of each class, and 16 in validation and in test."""
    label = np.arange(N) % 2 * 1.0 if label is None else label
    outputs = {"multiclass": 3, "ordinal": 3, "multilabel": 2}.get(kind, 1)
    settings = SimpleNamespace(**{"repeated_cv": None, **protocol})
    return Toy(
        card=SimpleNamespace(name="toy", kind=kind, metric=PRIMARY[kind], protocol=settings),
        subjects=tuple(f"s{number:02d}" for number in range(N)),
        label=label,
        outputs=tuple(f"c{number}" for number in range(outputs)),
        split=np.array(["train"] * 40 + ["val"] * 16 + ["test"] * 16),
    )


def _features(task: Any) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(N, 5)) * [1, 20, 3, 0.1, 1]
    values[:, 1] += 20 * task.label.reshape(N, -1)[:, 0]
    return values


def test_draws_are_nested_distinct_and_from_training() -> None:
    task = _task()
    draws = draw(task, CONFIG)
    assert [str(point) for point in draws.points] == [
        "1 shots", "2 shots", "4 shots", "16 shots",
        "50% of the training subjects", "100% of the training subjects",
    ]  # fmt: skip
    assert {str(point): reason for point, reason in draws.missing.items()} == {
        "32 shots": "class 0 has 20 training subjects, fewer than 32",
        "1% of the training subjects": "1% of the training subjects leaves none of the 20 of "
        "class 0",
    }
    sets = [draws.sets(point) for point in draws.points]
    sizes = [2, 4, 8, 32, 20, 40]
    assert [each.shape for each in sets] == [(6, size) for size in sizes]
    by_size = [sets[order] for order in np.argsort(sizes)]
    for smaller, larger in itertools.pairwise(by_size):
        for few, many in zip(smaller, larger, strict=True):
            assert set(few) < set(many)
    for each in sets:
        for rows in each:
            assert set(task.split[rows]) == {"train"}
            assert len(set(rows)) == len(rows)
            assert task.label[rows].mean() == 0.5
    assert len({tuple(sorted(rows)) for rows in sets[2]}) == 6


def test_draws_depend_on_the_seed_and_on_no_label_outside_training() -> None:
    task = _task()
    point = Point(4.0, SHOTS)
    other = np.where(np.arange(N) < 40, task.label, 1 - task.label)
    first, again = draw(task, CONFIG), draw(_task(label=other), CONFIG)
    np.testing.assert_array_equal(first.sets(point), again.sets(point))
    seeded = draw(task, CONFIG.model_copy(update={"seed": 4}))
    assert not np.array_equal(first.sets(point), seeded.sets(point))


def _expected(task: Any, values: np.ndarray, rows: np.ndarray, c: float) -> np.ndarray:
    scaler = StandardScaler().fit(values[task.rows("train")])
    model = LogisticRegression(C=c, tol=1e-9, max_iter=9999)
    model.fit(scaler.transform(values[rows]), task.label[rows])
    return model.predict_proba(scaler.transform(values[task.rows("val")]))[:, 1]


@pytest.mark.parametrize("wide", [False, True])  # True: more features than training subjects
def test_scores_equal_a_loop_over_scikit_learn(wide: bool) -> None:
    task = _task()
    values, draws = _features(task), draw(task, CONFIG)
    if wide:
        values = np.hstack([values, np.random.default_rng(1).normal(size=(N, 60))])
    label = task.label[task.rows("val")]
    found = score_draws(task, values, draws, CONFIG, split="val")
    assert len(found) == 2 * 6 * len(draws.points)
    for protocol, x, unit, number, score in found:
        rows = draws.sets(Point(x, unit))[number]
        if protocol == "linear":
            expected = auroc(label, _expected(task, values, rows, 0.5))
            assert score == pytest.approx(expected, abs=0.02)  # one swapped pair of 64


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel", "regression", "survival"])
def test_every_kind_learns_more_from_more(kind: str) -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=N)
    label = {
        "multiclass": np.digitize(signal, [-0.4, 0.4]) * 1.0,
        "ordinal": np.digitize(signal, [-0.4, 0.4]) * 1.0,
        "multilabel": (signal[:, None] > np.array([-0.3, 0.4])) * 1.0,
        "regression": 20 + 3 * signal,
        "survival": np.stack([np.ceil(50 * np.exp(-signal)), rng.random(N) < 0.7], axis=1),
    }[kind]
    task = _task(kind, label)
    values = signal[:, None] + 0.5 * rng.normal(size=(N, 6))
    config = FewShotConfig(shots=(1, 2), fractions=(0.2, 1.0), num_draws=5, alpha=1.0)
    draws = draw(task, config)
    found = score_draws(task, values, draws, config, split="val")
    units = {unit for _, _, unit, _, _ in found}
    assert units == ({SHOTS, FRACTION} if kind == "multiclass" else {FRACTION})
    protocols = {protocol for protocol, *_ in found}
    few = kind in ("regression", "survival")
    assert protocols == ({"linear"} if few else {"linear", "prototypes"})
    for protocol in protocols:
        mean = [
            np.mean([s for p, x, unit, _, s in found if (p, x, unit) == (protocol, at, FRACTION)])
            for at in (0.2, 1.0)
        ]
        assert mean[1] > mean[0] - 0.02
        assert mean[1] > 0.5
    whole = [s for p, x, unit, _, s in found if (p, x, unit) == ("linear", 1.0, FRACTION)]
    assert len(whole) == 5
    assert len(set(whole)) == 1
    if kind == "regression":
        rows, val = task.rows("train"), task.rows("val")
        scaler = StandardScaler().fit(values[rows])
        model = Ridge(alpha=1.0).fit(scaler.transform(values[rows]), label[rows])
        expected = measure(label[val], model.predict(scaler.transform(values[val])), "r2")
        assert whole[0] == pytest.approx(expected)


def test_labels_outside_the_shots_change_nothing() -> None:
    """Tuning included: each draw's decisions are the same whatever the other labels are."""
    task = _task()
    values = _features(task)
    config = CONFIG.model_copy(update={"tune_from": 4, "shots": (4, 16), "fractions": (0.5,)})
    draws = draw(task, config)
    for point in draws.points:
        sets, sizes = draws.sets(point), list(draws.sizes(point).values())
        before = tuned("binary", values, task.label, sets, sizes)
        for number, rows in enumerate(sets):
            label = 1 - task.label
            label[rows] = task.label[rows]
            alone = draws._replace(
                order={k: order[number : number + 1] for k, order in draws.order.items()},
                points=(point,),
            )
            spoiled = replace(task, label=np.where(task.split == "val", task.label, label))
            after = tuned("binary", values, label, rows[None], sizes)
            assert after[0] == before[number]
            found = score_draws(spoiled, values, alone, config, split="val")
            expected = score_draws(task, values, alone, config, split="val")
            assert [row[-1] for row in found] == [row[-1] for row in expected]


def test_the_tuned_strength_is_the_best_of_cross_validation_inside_the_shots() -> None:
    task = _task()
    values = StandardScaler().fit_transform(_features(task))
    draws = draw(task, CONFIG)
    point = Point(16.0, SHOTS)
    sets, sizes = draws.sets(point), list(draws.sizes(point).values())
    found = tuned("binary", values, task.label, sets, sizes)
    fold_of = np.tile(np.arange(16) % 5, 2)
    for rows, strength in zip(sets[:2], found[:2], strict=True):
        losses = []
        for c in CS:
            total = 0.0
            for fold in range(5):
                inside, outside = rows[fold_of != fold], rows[fold_of == fold]
                model = LogisticRegression(C=c, tol=1e-8, max_iter=9999)
                model.fit(values[inside], task.label[inside])
                chance = model.predict_proba(values[outside])
                total -= np.log(
                    chance[np.arange(len(outside)), task.label[outside].astype(int)]
                ).sum()
            losses.append(total)
        assert strength == CS[int(np.argmin(losses))]


def test_tuning_starts_where_every_class_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task()
    asked: list[int] = []

    def note(kind: str, values: Any, label: Any, sets: np.ndarray, sizes: list[int]) -> np.ndarray:
        del kind, values, label
        asked.append(sizes[0])
        return np.full(len(sets), 0.1)

    monkeypatch.setattr(few_shot, "tuned", note)
    config = CONFIG.model_copy(update={"tune_from": 4})
    score_draws(task, _features(task), draw(task, config), config, split="val")
    assert asked == [4, 16, 10, 20]


def test_losses_by_hand() -> None:
    scores = np.array([[[0.2], [0.5]]])
    found = few_shot.losses("binary", np.array([1.0, 0.0]), scores)
    assert found == pytest.approx([-np.log(0.2) - np.log(0.5)])
    labels = few_shot.losses("multilabel", np.array([[1.0], [np.nan]]), scores)
    assert labels == pytest.approx([-np.log(0.2)])
    classes = few_shot.losses("multiclass", np.array([1.0]), np.array([[[0.3, 0.7]]]))
    assert classes == pytest.approx([-np.log(0.7)])
    values = few_shot.losses("regression", np.array([1.0, 2.0]), scores)
    assert values == pytest.approx([0.8**2 + 1.5**2])


def test_the_other_split_is_not_read_and_fits_see_training_alone() -> None:
    task, seen = _task(), []

    def fit(inside: np.ndarray) -> Any:
        seen.append(len(inside))
        return lambda rows: rows - inside.mean(axis=0)

    values = _features(task)
    values[task.rows("test")] = np.nan
    label = np.where(task.split == "test", np.nan, task.label)
    draws = draw(task, CONFIG)
    spoiled = replace(task, label=label)
    found = score_draws(spoiled, Fitted(values, fit), draws, CONFIG, split="val")
    assert seen == [40]
    assert np.isfinite([row[-1] for row in found]).all()


def test_stored_draws_repeat_every_set() -> None:
    task = _task()
    draws = draw(task, CONFIG)
    stored = stored_draws(task, draws, CONFIG)
    assert stored["points"][0] == {"x": 1.0, "unit": "shots"}
    assert stored["missing"][0]["reason"] == draws.missing[Point(32.0, SHOTS)]
    assert stored["C"] == 0.5
    rows = draws.sets(Point(16.0, SHOTS))[3]
    named = [stored["subjects"][at] for level in "01" for at in stored["orders"][level][3][:16]]
    assert named == [task.subjects[row] for row in rows]


def test_unsuitable_tasks_say_why() -> None:
    assert unsuitable(_task()) is None
    assert unsuitable(_task("regression")) is None
    assert "cross-validated" in str(unsuitable(_task(repeated_cv=object())))
    assert "segmentation" in str(unsuitable(_task("segmentation")))
