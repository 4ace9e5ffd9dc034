"""What a sceptic asks of the statistics: no number may claim more than its subjects carry."""

import numpy as np
import pandas
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score

from evaluation.statistics.bootstrap import Draws, strata_of
from evaluation.statistics.delong import paired_test
from evaluation.statistics.few_shot import few_shot_curves
from evaluation.statistics.intervals import interval
from evaluation.statistics.paired import compare
from evaluation.statistics.summary import Settings, summarise_task
from evaluation.storing.rows import to_rows
from foundation.metrics import calibration

SETTINGS = Settings(num_bootstraps=60, seed=0, num_permutations=99)
COLUMNS = ("model", "protocol", "split", "subject", "output", "label", "event", "score")
LABEL = (np.arange(42) % 3 == 0).astype(float)


def _table(scores: dict[tuple[str, str], np.ndarray], *, split: str = "val") -> pandas.DataFrame:
    subjects = [f"{number:03d}" for number in range(len(LABEL))]
    rows = [
        (*key, split, *row)
        for key, score in scores.items()
        for row in to_rows(subjects, LABEL, score[:, None], kind="binary")
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _summary(*tables: pandas.DataFrame, split: str = "val") -> dict:
    table = pandas.concat(tables)
    kinds = {
        model: "backbone" if model in ("mae", "dino") else "floor" for model in table.model.unique()
    }
    task = {"name": "t", "kind": "binary", "metric": "auroc", "outputs": ["1"], "prevalence": 0.3}
    return summarise_task(table, task=task, kinds=kinds, split=split, settings=SETTINGS)


def _noisy(seed: int, signal: float = 0.5) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=len(LABEL))
    return 1 / (1 + np.exp(1 - 2 * signal * LABEL - noise))


def test_a_constant_score_has_no_coverage_and_is_exact() -> None:
    found = _summary(_table({("mae", "linear"): _noisy(0), ("majority", "constant"): 0 * LABEL}))
    by_model = {each["model"]: each["scores"]["auroc"] for each in found["models"]}
    assert by_model["mae"]["coverage"] > 0.9
    majority = by_model["majority"]
    assert (majority["low"], majority["high"]) == (0.5, 0.5)
    assert (majority["coverage"], majority["reason"]) == (None, None)


def test_scores_that_are_constant_in_each_column_are_exact_too() -> None:
    label = np.stack([LABEL, 1 - LABEL], axis=1)
    found = interval(label, np.tile([0.2, 0.7], (42, 1)), "macro_auroc", num_bootstraps=50)
    assert (found.value, found.low, found.high, found.reason) == (0.5, 0.5, 0.5, None)


def test_all_labels_are_one_draw_however_often_they_are_drawn() -> None:
    rows = [
        (model, "linear", x, "fraction", draw, 0.6 if x == 1 else 0.5 + 0.01 * draw)
        for model in ("mae", "volume")
        for x in (0.5, 1.0)
        for draw in range(4)
    ]
    columns = ["model", "protocol", "x", "unit", "draw", "score"]
    table = pandas.DataFrame(rows, columns=columns)
    found = few_shot_curves(table, kinds={"mae": "backbone", "volume": "floor"})
    half, whole = found["models"][0]["points"]
    assert (half["draws"], whole["draws"], whole["mean"]) == (4, 1, 0.6)
    nothing = ("sd", "low", "high", "difference_low", "difference_high")
    assert [whole[name] for name in nothing] == [None] * 5
    assert whole["difference"] == 0.0
    area = found["models"][0]
    assert area["area_low"] < area["area"] < area["area_high"]  # over all four draws still


def test_what_no_draw_moves_has_neither_an_interval_nor_a_detectable_difference() -> None:
    draws = Draws(strata_of(LABEL, "binary"), num=50, seed=0)
    found = compare(LABEL, _noisy(0), _noisy(0), "auroc", draws=draws, num_permutations=50)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert np.isnan([found.low, found.high, found.detectable]).all()
    perfect = paired_test(LABEL, LABEL, 0 * LABEL)
    assert perfect.difference == 0.5
    assert np.isnan(perfect.p)  # no spread to measure it by, which is no proof
    alike = {("mae", "linear"): LABEL, ("dino", "linear"): 0 * LABEL}
    (pair,) = _summary(_table(alike))["comparisons"]
    assert pair["difference"] == 0.5
    assert [pair[name] for name in ("low", "high", "detectable", "p_delong")] == [None] * 4
    assert "no draw" in pair["reason"]


def test_a_floor_s_own_protocol_may_be_the_best_floor() -> None:
    table = _table(
        {
            ("mae", "linear"): _noisy(0),
            ("mae", "knn"): _noisy(1),
            ("voxels", "linear"): _noisy(2, 0.0),
            ("voxels", "svm"): _noisy(3, 2.0),
            ("random", "linear"): _noisy(4, 0.2),
            ("random", "knn"): LABEL,  # a protocol of backbones: compared by the main one
        }
    )
    (pair,) = _summary(table)["comparisons"]
    assert (pair["a"], pair["b"], pair["protocol"], pair["b_protocol"]) == (
        "mae", "voxels", "linear", "svm",
    )  # fmt: skip


def test_prototypes_decide_for_the_nearer_one_whatever_the_shares() -> None:
    score = 0.5 + 0.02 * (_noisy(0) - 0.4)  # all above the training share of 0.3
    found = _summary(_table({("mae", "linear"): score, ("mae", "prototypes"): score}))
    by_protocol = {each["protocol"]: each["scores"] for each in found["models"]}
    assert by_protocol["linear"]["balanced_accuracy"]["value"] == 0.5
    assert by_protocol["prototypes"]["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(LABEL, score >= 0.5)
    )


def test_the_specificity_that_a_threshold_reached_stands_beside_its_sensitivity() -> None:
    held = _table({("mae", "linear"): _noisy(0)})
    shown = _table({("mae", "linear"): _noisy(1)}, split="test")
    score = _summary(held, shown, split="test")["models"][0]["scores"]
    found = score["sensitivity_at_90_specificity"]
    negatives = np.sort(_noisy(0)[LABEL == 0])
    calls = _noisy(1) > negatives[len(negatives) - len(negatives) // 10 - 1]
    assert found["specificity"] == pytest.approx(recall_score(1 - LABEL, ~calls))
    assert found["value"] == pytest.approx(recall_score(LABEL, calls))


def test_calibrated_scores_have_the_error_that_chance_gives_them() -> None:
    rng = np.random.default_rng(0)
    errors, by_chance = [], []
    for _ in range(60):
        score = rng.beta(2, 2, 40)
        found = calibration.calibration_of((rng.random(40) < score).astype(float), score)
        errors.append(found.ece)
        by_chance.append(found.ece_by_chance)
    assert np.mean(errors) > 0.15  # 15 bins of 40 subjects: far from 0 for all its calibration
    assert np.mean(by_chance) == pytest.approx(np.mean(errors), abs=0.02)
    sure = calibration.calibration_of(LABEL, LABEL)
    assert sure.ece_by_chance == 0.0


def test_each_label_says_how_many_have_it() -> None:
    label = np.stack([LABEL, np.where(np.arange(42) < 6, np.nan, LABEL)], axis=1)
    subjects = [f"{number:03d}" for number in range(42)]
    score = np.stack([_noisy(0), _noisy(1)], axis=1)
    rows = [
        ("mae", "linear", "val", *row) for row in to_rows(subjects, label, score, kind="multilabel")
    ]
    task = {"name": "t", "kind": "multilabel", "metric": "macro_auroc", "outputs": ["a", "b"]}
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    found = summarise_task(
        table, task=task, kinds={"mae": "backbone"}, split="val", settings=SETTINGS
    )
    by_output = found["models"][0]["by_output"]
    assert [(each["n"], each["positives"]) for each in by_output.values()] == [(42, 14), (36, 12)]
    assert {each["method"] for each in by_output.values()} == {"logit DeLong"}
