"""Scores of held-out subjects: the table, and what it comes to."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from foundation.finetuning.parts import Part
from foundation.finetuning.predictions import Predicted, out_of_fold, summary, write_predictions
from tests.foundation.test_finetune_parts import task_of

CLASSES = {"head": 1, "tail": 2}


def part_of(tmp_path: Path, rows: list[int], *, fold: int | None = None) -> Part:
    task = task_of(tmp_path, kind="segmentation", label={"classes": CLASSES})
    held_out = np.array(rows, dtype=np.int64)
    nobody = held_out[:0]
    return Part("p", tmp_path / "p", task, 1.0, nobody, nobody, held_out, fold)


def predicted_of(rows: list[int], *, fold: int = 0) -> Predicted:
    """Of subject i the Dice i / 100 and i / 200, and distances i and 2 i, 10 i and 20 i."""
    of = np.array(rows, dtype=np.float64)
    scores = np.stack([of / 100, of / 200], axis=1)
    distances = np.stack([np.stack([of, 2 * of], 1), np.stack([10 * of, 20 * of], 1)], axis=1)
    return Predicted(np.array(rows), np.full(len(rows), fold), scores, distances, "cv")


def test_folds_are_put_together_as_they_were_written(tmp_path: Path) -> None:
    parts = []
    for fold, rows in enumerate([[5, 1, 9], [0, 7]]):
        part, path = part_of(tmp_path, rows, fold=fold), tmp_path / f"{fold}.csv"
        found = predicted_of(rows, fold=fold)
        if fold == 1:
            assert found.distances_mm is not None
            found.distances_mm[0, 0] = [math.nan, math.inf]
            found.scores[0, 0] = math.nan
        write_predictions(path, part, found)
        parts.append((part, path))
    with (tmp_path / "1.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert line["subject"] == parts[1][0].task.subjects[0]
    assert (line["score_0"], line["assd_mm_0"], line["assd_mm_1"]) == ("", "", "inf")
    joined = out_of_fold(parts)
    assert joined.rows.tolist() == [0, 1, 5, 7, 9]
    assert joined.folds.tolist() == [1, 0, 0, 1, 0]
    wanted = predicted_of([0, 1, 5, 7, 9])
    assert joined.distances_mm is not None
    assert wanted.distances_mm is not None
    np.testing.assert_array_equal(joined.scores[1:], wanted.scores[1:])
    np.testing.assert_array_equal(joined.distances_mm[1:], wanted.distances_mm[1:])
    np.testing.assert_array_equal(joined.distances_mm[0, 0], [math.nan, math.inf])


def test_distances_are_told_by_their_median_whatever_one_missed_class_costs(
    tmp_path: Path,
) -> None:
    rows = [2, 4, 6, 8, 10]
    found = predicted_of(rows)
    assert found.distances_mm is not None
    found.distances_mm[4, :, 1] = math.inf  # missed
    found.distances_mm[0, :, 0] = math.nan  # nothing to find
    told = summary(part_of(tmp_path, rows), found, seed=0)["scores"]
    # Means over classes: 4 (one class only), 6, 9, 12 and infinity.
    assert told["assd_mm"]["value"] == 9
    assert told["hd95_mm"]["value"] == 90
    assert 4 <= told["assd_mm"]["low"] <= 9 <= told["assd_mm"]["high"] <= 12
    assert told["dice"]["value"] == pytest.approx(0.045)
    found.distances_mm[1:, :, 1] = math.inf
    assert "assd_mm" not in summary(part_of(tmp_path, rows), found, seed=0)["scores"]
