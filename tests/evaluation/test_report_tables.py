"""The numbers of the report, on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest

from evaluation.reporting.tables import (
    Bootstrap,
    metrics_of,
    overview_column,
    score_of,
    task_table,
    training_prevalence,
)

FEW = Bootstrap(num_bootstraps=50, seed=3)
KINDS = {"floor_a": "floor", "mae": "backbone", "floor_b": "floor"}
BINARY = {
    "title": "Stroke",
    "kind": "binary",
    "metric": "auroc",
    "n": {"train": 10, "val": 4},
    "positives": {"train": 2, "val": 2},
}


def _rows(scores: dict[tuple[str, str, str], list[float]], label: list[float]) -> pd.DataFrame:
    """One row per subject of each (model, protocol, split)."""
    return pd.DataFrame(
        [
            (model, protocol, split, f"s{at}", label[at], score)
            for (model, protocol, split), values in scores.items()
            for at, score in enumerate(values)
        ],
        columns=["model", "protocol", "split", "subject", "label", "score"],
    )


def test_table_scores_the_shown_split_alone_and_puts_floors_last() -> None:
    rows = _rows(
        {
            ("floor_a", "linear", "val"): [0.1, 0.3, 0.2, 0.4],
            ("mae", "knn", "val"): [0.1, 0.2, 0.3, 0.4],
            ("mae", "linear", "val"): [0.1, 0.2, 0.3, 0.4],
            ("mae", "linear", "test"): [0.9, 0.2, 0.3, 0.1],
        },
        label=[0, 0, 1, 1],
    )
    table = task_table(rows, task=BINARY, kinds=KINDS, split="val", bootstrap=FEW)
    assert [(row.model, row.protocol) for row in table] == [
        ("mae", "linear"),
        ("mae", "knn"),
        ("floor_a", "linear"),
    ]
    assert [row.scores[0].value for row in table] == [1.0, 1.0, 0.75]
    assert all((score.n, score.positives) == (4, 2) for row in table for score in row.scores)
    assert [row.scores[0].is_best for row in table] == [True, True, False]


def test_order_of_rows_does_not_matter() -> None:
    label = [0.0, 1.0] * 10
    score = np.random.default_rng(0).random(20).tolist()
    rows = _rows({("mae", "linear", "val"): score}, label=label)
    shuffled = rows.sample(frac=1.0, random_state=1)
    tables = [
        task_table(one, task=BINARY, kinds=KINDS, split="val", bootstrap=FEW)
        for one in (rows, shuffled)
    ]
    assert tables[0] == tables[1]
    assert tables[0][0].scores[0].low < tables[0][0].scores[0].high


def test_balanced_accuracy_cuts_at_the_training_prevalence() -> None:
    assert training_prevalence(BINARY) == 0.2
    label, score = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.15, 0.2, 0.3])
    one = score_of(label, score, metric="balanced_accuracy", threshold=0.2, bootstrap=FEW)
    assert one.value == 1.0
    half = score_of(label, score, metric="balanced_accuracy", threshold=0.5, bootstrap=FEW)
    assert half.value == 0.5


def test_prevalence_of_all_subjects_without_a_split() -> None:
    task = BINARY | {"n": {"cv": 50}, "positives": {"cv": 20}}
    assert training_prevalence(task) == 0.4


def test_lower_error_and_higher_r2_are_best() -> None:
    task = BINARY | {"kind": "regression", "metric": "r2", "positives": None}
    rows = _rows(
        {
            ("mae", "linear", "val"): [1000.0, 2000.0, 3000.0, 4100.0],
            ("floor_a", "linear", "val"): [1000.0, 2000.0, 3000.0, 5000.0],
        },
        label=[1000, 2000, 3000, 4000],
    )
    table = task_table(rows, task=task, kinds=KINDS, split="val", bootstrap=FEW)
    assert [score.metric for score in table[0].scores] == ["r2", "mean_absolute_error"]
    assert [score.is_best for score in table[0].scores] == [True, True]
    assert [score.is_best for score in table[1].scores] == [False, False]
    assert table[0].scores[1].value == pytest.approx(25.0)
    assert table[0].scores[0].positives is None


def test_overview_takes_the_linear_probe_and_marks_the_best_anew() -> None:
    rows = _rows(
        {
            ("mae", "knn", "val"): [0.1, 0.2, 0.3, 0.4],
            ("mae", "linear", "val"): [0.1, 0.3, 0.2, 0.4],
            ("floor_a", "constant", "val"): [0.5, 0.5, 0.5, 0.5],
        },
        label=[0, 0, 1, 1],
    )
    table = task_table(rows, task=BINARY, kinds=KINDS, split="val", bootstrap=FEW)
    column = overview_column(table)
    assert {name: row.protocol for name, row in column.items()} == {
        "mae": "linear",
        "floor_a": "constant",
    }
    assert [row.scores[0].is_best for row in column.values()] == [True, False]
    assert [len(row.scores) for row in column.values()] == [1, 1]


def test_what_cannot_be_computed_is_none_with_the_reason() -> None:
    one_class = score_of(np.zeros(5), np.arange(5.0), metric="auroc", threshold=0.5, bootstrap=FEW)
    assert (one_class.value, one_class.low, one_class.n) == (None, None, 5)
    assert "both classes" in (one_class.reason or "")
    unscored = score_of(
        np.array([0.0, 1.0]), np.array([0.1, np.nan]), metric="auroc", threshold=0.5, bootstrap=FEW
    )
    assert unscored.value is None
    assert "finite" in (unscored.reason or "")


def test_interval_without_width_carries_a_warning_unless_the_score_is_constant() -> None:
    label = np.array([0.0, 0.0, 1.0, 1.0])
    perfect = score_of(label, label, metric="auroc", threshold=0.5, bootstrap=FEW)
    assert (perfect.low, perfect.high) == (1.0, 1.0)
    assert "narrower" in (perfect.reason or "")
    constant = score_of(label, np.full(4, 0.5), metric="auroc", threshold=0.5, bootstrap=FEW)
    assert (constant.value, constant.reason) == (0.5, None)


def test_kind_that_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="'survival'; the report knows binary, regression"):
        metrics_of(BINARY | {"kind": "survival"})
