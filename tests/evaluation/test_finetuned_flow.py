"""From cards to a report: fine-tuned from a backbone and from scratch, then scored by two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.report import main as report
from evaluation.storing import store
from tests.foundation.finetune_runs import card, recipe, run, with_columns
from tests.tiny_cohort import Place

FOLDS = {"protocol": {"repeated_cv": {"folds": 3, "repeats": 1}}}
SHARES = [1.0, 0.2]


@pytest.mark.slow
def test_from_a_fine_tuning_to_a_report(place: Place, project: Path) -> None:
    with_columns(place)
    cards = [card(place, "binary"), card(place, "masks"), card(place, "sizes", **FOLDS)]
    # Each recipe publishes another backbone, so the one that counts comes last.
    for name, begin in (("scratch", "scratch"), ("tuned", "pretrained")):
        run(recipe(place, *cards, name=name, begin=begin, fractions=SHARES), project)
    where = _evaluated(place, project, cards)
    bright, masks, sizes = (store.read_statistics(where, name) for name in _names(cards))
    for each, split in ((bright, "val"), (masks, "val"), (sizes, "cv")):
        assert each["split"] == split
        trained = {one["model"]: one["scores"][each["metric"]] for one in each["models"]
                   if one["kind"] == "trained"}  # fmt: skip
        assert set(trained) == {"tuned", "scratch"}
        for line in each["fractions"]["lines"]:
            assert [point["fraction"] for point in line["points"]] == sorted(SHARES)
            assert line["points"][-1]["value"] == trained[line["model"]]["value"]
        assert {one["b"] for one in each["fractions"]["comparisons"]} == {"scratch"}
    _told_as_training_did(place, where, "binary", tolerance=2e-4)
    # One voxel at a border between classes, of the hundred that a small mask has.
    _told_as_training_did(place, where, "masks", tolerance=1e-2)
    models = store.read_run(where)["models"]
    assert [models[name]["title"] for name in ("tuned", "scratch")] == [
        "fine-tuned mae", "supervised from scratch"
    ]  # fmt: skip
    checks = store.read_leakage(where)["checks"]
    about = [one for one in checks if one["model"] in ("tuned", "scratch")]
    assert {one["status"] for one in about if "hash" not in one["reason"]} == {"passed"}
    assert {one["check"] for one in about} >= {
        "scored subject in fine-tuning", "scored subject in pretraining"
    }  # fmt: skip
    report([str(where), "--out", str(place.root / "benchmark")])
    text = (place.root / "benchmark.md").read_text()
    assert "Best backbone less supervised ceiling" in text
    assert str(place.root) not in text


def _names(cards: list[Path]) -> list[str]:
    return [path.stem for path in cards]


def _evaluated(place: Place, project: Path, cards: list[Path]) -> Path:
    runs = place.root / "runs"
    tree: dict[str, Any] = {
        "name": "flow",
        "title": "Flow",
        "data_root": str(place.data),
        "out": str(place.root / "stores"),
        "pseudonym_key": str(place.key_path),
        "backbones": {"mae": str(runs / "mae" / "backbone")},
        "finetuned": {name: str(runs / name) for name in ("tuned", "scratch")},
        "random_init": {"seeds": []},
        "tasks": [str(path) for path in cards],
        "few_shot": None,
        "num_bootstraps": 40,
        "num_permutations": 40,
        "spread": 0,
        "protocols": ["linear"],
        "device": "cpu",
    }
    path = place.write("evaluation", tree)
    words = [sys.executable, "-m", "foundation.launch", "2", "evaluation.run", str(path)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=project, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stored in" in done.stdout
    return place.root / "stores" / "flow"


def _told_as_training_did(place: Place, where: Path, task: str, *, tolerance: float) -> None:
    """The published network, applied to raw scans, scores as it did at the end of training."""
    rows = store.read_predictions(where, task)
    for name in ("tuned", "scratch"):
        mine = rows[rows["model"] == name].sort_values("subject")
        part = place.root / "runs" / name / task
        header, *lines = (part / "predictions.csv").read_text().splitlines()
        assert header.startswith("subject,split,fold,score_0")
        told = {line.split(",")[0]: line.split(",")[3] for line in lines}
        expected = [float(told[subject] or "nan") for subject in mine["subject"]]
        np.testing.assert_allclose(mine["score"], expected, atol=tolerance, rtol=0)
        assert json.loads((part / "part.json").read_text())["num_val"] == len(mine)
