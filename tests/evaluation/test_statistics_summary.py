"""Everything that is said of a task, from predictions that are drawn here."""

import json
import time
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from evaluation.statistics.delong import paired_test
from evaluation.statistics.summary import Settings, summarise_task
from evaluation.storing.rows import to_rows
from foundation.metrics.binary import threshold_at_specificity
from foundation.metrics.by_name import KINDS, METRICS_OF, PRIMARY, measure
from foundation.metrics.rows import StatisticsError

FEW = Settings(num_bootstraps=60, seed=0, num_permutations=99)
MODELS = {"mae": "backbone", "dino": "backbone", "volume": "floor", "majority": "floor"}
COLUMNS = ("model", "protocol", "split", "subject", "output", "label", "event", "score")
OUTPUTS = {"multiclass": 3, "ordinal": 3, "multilabel": 2, "segmentation": 2, "retrieval": 3}


def _label(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "binary":
        return (np.arange(n) % 3 == 0).astype(float)
    if kind in ("multiclass", "ordinal"):
        return (np.arange(n) % 3).astype(float)
    if kind == "multilabel":
        label = (rng.random((n, 2)) < 0.4).astype(float)
        return np.where(rng.random((n, 2)) < 0.1, np.nan, label)
    if kind == "survival":
        times = np.ceil(300 * rng.exponential(1, n))
        return np.stack([times, rng.random(n) < 0.6], axis=1).astype(float)
    return rng.normal(0, 1, n) if kind == "regression" else np.zeros(n)


def _score(kind: str, label: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    n = len(label)
    if kind == "binary":
        return 1 / (1 + np.exp(1 - 2 * label - noise * rng.normal(size=n)))[:, None]
    if kind in ("multiclass", "ordinal"):
        score = noise * rng.random((n, 3)) + 0.01
        score[np.arange(n), label.astype(int)] += 0.5
        return score / score.sum(axis=1, keepdims=True)
    if kind == "survival":
        return (-label[:, 0] / 300 + noise * rng.normal(size=n))[:, None]
    if kind == "regression":
        return (label + noise * rng.normal(size=n))[:, None]
    score = rng.random((n, OUTPUTS[kind]))
    return (
        np.where(rng.random(score.shape) < 0.1, np.nan, score) if kind == "segmentation" else score
    )


def _predictions(kind: str, *, n: int = 42, splits: tuple[str, ...] = ("val",)) -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for split in splits:
        subjects = [f"{split}-{number:03d}" for number in range(n)]
        label = _label(kind, n, rng)
        for place, model in enumerate(MODELS):
            for protocol in ("linear", "knn") if model != "majority" else ("constant",):
                score = _score(kind, label, rng, 0.6 + 0.3 * place)
                found = to_rows(subjects, label, score, kind=kind)
                rows += [(model, protocol, split, *row) for row in found]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _task(kind: str, **more: Any) -> dict[str, Any]:
    outputs = [f"output {k}" for k in range(OUTPUTS.get(kind, 1))]
    return {"name": "t", "kind": kind, "metric": PRIMARY[kind], "outputs": outputs} | more


def _of(summary: dict[str, Any], model: str, protocol: str = "linear") -> dict[str, Any]:
    (found,) = [
        each for each in summary["models"] if (each["model"], each["protocol"]) == (model, protocol)
    ]
    return found


def _summary(kind: str, **words: Any) -> dict[str, Any]:
    words = {"kinds": MODELS, "split": "val", "settings": FEW, "task": _task(kind)} | words
    table = words.pop("predictions", None)
    return summarise_task(_predictions(kind) if table is None else table, **words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_summarised_to_json(kind: str) -> None:
    found = _summary(kind)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["metrics"] == list(METRICS_OF[kind])
    assert found["n"] == 42
    assert [(each["model"], each["protocol"]) for each in found["models"]] == [
        ("mae", "linear"), ("mae", "knn"), ("dino", "linear"), ("dino", "knn"),
        ("volume", "linear"), ("volume", "knn"), ("majority", "constant"),
    ]  # fmt: skip
    for each in found["models"]:
        for metric, score in each["scores"].items():
            assert score["value"] is not None, (metric, score)
            assert score["low"] <= score["value"] <= score["high"], (metric, score)
            assert score["method"]
    assert (found["models"][0]["by_output"] is not None) == (
        kind in ("multiclass", "multilabel", "segmentation")
    )
    assert (found["models"][0]["calibration"] is not None) == (kind in ("binary", "multiclass"))
    assert (found["models"][0]["conformal"] is not None) == (
        kind in ("binary", "multiclass", "ordinal", "regression")
    )
    assert len(found["comparisons"]) == 3
    assert _summary(kind) == found


def test_binary_scores_are_those_of_scikit_learn_at_the_training_share() -> None:
    table = _predictions("binary")
    rows = table.query("model == 'mae' and protocol == 'linear'").sort_values("subject")
    label, score = rows.label.to_numpy(), rows.score.to_numpy()
    found = _summary("binary", task=_task("binary", prevalence=0.3))
    scores = _of(found, "mae")["scores"]
    assert scores["auroc"]["value"] == pytest.approx(roc_auc_score(label, score))
    assert scores["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(label, score >= 0.3)
    )
    assert (found["positives"], _of(found, "mae")["positives"]) == (14, 14)
    assert _of(found, "mae")["delong"]["low"] < scores["auroc"]["value"]
    assert _of(found, "mae")["bootstrap"]["low"] < scores["auroc"]["value"]


def test_on_test_everything_is_fitted_on_validation() -> None:
    table = _predictions("binary", splits=("val", "test"))
    found = _of(_summary("binary", predictions=table, split="test"), "mae")
    parts = {
        split: rows.sort_values("subject")
        for split, rows in table.query("model == 'mae' and protocol == 'linear'").groupby("split")
    }
    val, test = ((rows.label.to_numpy(), rows.score.to_numpy()) for rows in
                 (parts["val"], parts["test"]))  # fmt: skip
    limit = threshold_at_specificity(*val)
    sensitivity = (test[1][test[0] == 1] >= limit).mean()
    score = found["scores"]["sensitivity_at_90_specificity"]
    assert score["value"] == pytest.approx(sensitivity)
    assert score["threshold_on"] == "validation"
    assert found["calibration"]["fitted_on"] == found["conformal"]["calibrated_on"] == "validation"
    shown = _of(_summary("binary", predictions=table), "mae")
    assert shown["scores"]["sensitivity_at_90_specificity"]["threshold_on"] == "cross-fitted"
    assert shown["calibration"]["fitted_on"] == "cross-fitted"


def test_comparisons_are_of_backbones_and_with_the_best_floor() -> None:
    table = _predictions("binary")
    found = _summary("binary", predictions=table)
    pairs = [(each["a"], each["b"], each["b_protocol"]) for each in found["comparisons"]]
    floors = {
        (model, protocol): _of(found, model, protocol)["scores"]["auroc"]["value"]
        for model, protocol in (("volume", "linear"), ("majority", "constant"))
    }
    best = max(floors, key=lambda key: floors[key])
    assert pairs == [("mae", "dino", "linear"), ("mae", *best), ("dino", *best)]
    first = found["comparisons"][0]
    by_model = {
        model: table.query(f"model == '{model}' and protocol == 'linear'").sort_values("subject")
        for model in ("mae", "dino")
    }
    label = by_model["mae"].label.to_numpy()
    test = paired_test(label, *(rows.score.to_numpy() for rows in by_model.values()))
    assert first["difference"] == pytest.approx(test.difference)
    assert first["p_delong"] == pytest.approx(test.p)
    assert first["low"] < first["difference"] < first["high"]
    assert 0 < first["p"] <= 1
    assert first["detectable"] > 0


def test_together_with_clinical_columns_is_judged_against_these_alone() -> None:
    table = _predictions("binary")
    clinical = table[(table.model == "volume") & (table.protocol == "linear")]
    fused = table[(table.model == "mae") & (table.protocol == "knn")]
    more = [clinical.assign(model="clinical"), fused.assign(protocol="linear_clinical")]
    found = summarise_task(
        pandas.concat([table, *more]),
        task=_task("binary"),
        kinds={**MODELS, "clinical": "floor"},
        split="val",
        settings=FEW,
    )
    last = found["comparisons"][-1]
    assert (last["a"], last["protocol"], last["b"], last["b_protocol"]) == (
        "mae", "linear_clinical", "clinical", "linear",
    )  # fmt: skip
    ours, alone = (
        _of(found, *key)["scores"]["auroc"]["value"]
        for key in (("mae", "linear_clinical"), ("clinical", "linear"))
    )
    assert last["difference"] == pytest.approx(ours - alone)
    assert [each["a"] for each in found["comparisons"]].count("dino") == 1, "it was not fused"


def test_models_on_other_subjects_are_not_compared() -> None:
    table = _predictions("binary")
    kept = table[(table.model != "dino") | (table.subject != "val-007")]
    found = _summary("binary", predictions=kept)["comparisons"]
    assert [each["reason"] for each in found] == [
        "scored on other subjects", None, "scored on other subjects",
    ]  # fmt: skip
    assert (found[0]["difference"], found[0]["p"]) == (None, None)
    assert found[1]["difference"] is not None


def test_one_class_is_null_with_a_reason_and_never_0() -> None:
    table = _predictions("binary").assign(label=0.0)
    found = _summary("binary", predictions=table)
    for each in found["models"]:
        score = each["scores"]["auroc"]
        assert (score["value"], score["low"], score["method"]) == (None, None, None)
        assert score["reason"] == "auroc needs subjects of both classes, all 42 are 0"
        assert each["delong"] is None
        assert each["calibration"] is None
    assert found["comparisons"] == []
    json.dumps(found, allow_nan=False)


def test_a_label_that_is_missing_is_null_by_output() -> None:
    table = _predictions("multilabel")
    table.loc[table.output == 1, "label"] = np.nan
    found = _of(_summary("multilabel", predictions=table), "mae")
    missing = found["by_output"]["output 1"]
    assert (missing["value"], missing["n"]) == (None, 0)
    assert missing["reason"]
    rows = table.query("model == 'mae' and protocol == 'linear' and output == 0").dropna(
        subset="label"
    )
    expected = measure(rows.label, rows.score, "auroc")
    assert found["scores"]["macro_auroc"]["value"] == pytest.approx(expected)
    assert found["by_output"]["output 0"]["value"] == pytest.approx(expected)
    assert found["by_output"]["output 0"]["n"] == len(rows)


def test_folds_spread_and_few_shot_are_passed_through_their_statistics() -> None:
    key = ("mae", "linear")
    few_shot = pandas.DataFrame(
        [(model, 1.0, "shots", draw, 0.5 + 0.1 * draw) for model in MODELS for draw in range(3)],
        columns=["model", "x", "unit", "draw", "score"],
    )
    found = _summary(
        "binary",
        settings=FEW._replace(cv_folds=5),
        folds={key: np.full(10, 0.7)},
        training_spread={key: [0.6, 0.8]},
        few_shot=few_shot,
        shuffled={"mean": 0.5},
    )
    assert _of(found, "mae")["folds"]["mean"] == pytest.approx(0.7)
    assert _of(found, "mae")["training_spread"]["mean"] == pytest.approx(0.7)
    assert _of(found, "dino")["folds"] is None
    assert found["few_shot"]["models"][0]["points"][0]["mean"] == pytest.approx(0.6)
    assert found["shuffled"] == {"mean": 0.5}
    with pytest.raises(ValueError, match="cv_folds"):
        _summary("binary", folds={key: np.full(10, 0.7)})
    by_repeat = _summary("binary", folds={key: np.full((2, 5), 0.7)})
    assert _of(by_repeat, "mae")["folds"]["num"] == 10


def test_groups_and_an_empty_split() -> None:
    groups = {"site": {f"val-{number:03d}": number % 2 for number in range(42)}}
    found = _of(_summary("binary", groups=groups), "mae")["conformal"]["by_group"]["site"]
    assert {name: each["n"] for name, each in found.items()} == {"0": 21, "1": 21}
    closed = _summary("binary", split="test")
    assert (closed["models"], closed["comparisons"], closed["n"]) == ([], [], 0)


def test_a_metric_of_another_kind_is_refused() -> None:
    with pytest.raises(StatisticsError, match="'r2' does not score a task of kind 'binary'; take"):
        _summary("binary", task=_task("binary", metric="r2"))


def test_another_metric_of_the_kind_may_come_first() -> None:
    found = _summary("binary", task=_task("binary", metric="brier"))
    assert found["metrics"][0] == "brier"
    best = min(("volume", "linear"), ("majority", "constant"),
               key=lambda key: _of(found, *key)["scores"]["brier"]["value"])  # fmt: skip
    assert found["comparisons"][1]["b"] == best[0]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "sensitivity_at_90_specificity"])
def test_decisions_are_compared_as_they_are_scored(metric: str) -> None:
    found = _summary("binary", task=_task("binary", metric=metric, prevalence=0.3))
    values = [_of(found, model)["scores"][metric]["value"] for model in ("mae", "dino")]
    assert found["comparisons"][0]["difference"] == pytest.approx(values[0] - values[1])


def test_a_task_of_the_quick_tier_takes_seconds() -> None:
    table = _predictions("binary")
    start = time.process_time()
    _summary("binary", predictions=table, settings=Settings(500, 0, 2000))
    assert time.process_time() - start < 2
