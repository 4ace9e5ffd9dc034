"""Floors on real scans, on validation only: a test split is never read here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.extraction.features import extract_all, pool_by_subject
from evaluation.floors.registry import floor_candidates, floor_extractors
from evaluation.probing.estimator import Candidate
from evaluation.probing.protocols import evaluate
from foundation.metrics.by_name import measure
from foundation.tasks.task import Task, load_task

pytestmark = pytest.mark.real


def _candidates(task: Task, folder: Path) -> dict[str, Candidate]:
    found = extract_all(
        task.candidates, floor_extractors(task), folder=folder, title=task.card.name
    )
    arrays: dict[str, dict[str, Any]] = {
        name: {key: pool_by_subject(task, task.candidates, values) for key, values in each.items()}
        for name, each in found.items()
    }
    return floor_candidates(task, arrays)


def _score(task: Task, candidate: Candidate, protocol: int = 0) -> float:
    outcome = evaluate(task, candidate.scorers[protocol], open_test=False)
    ((split, score),) = outcome.scores.items()
    assert split in ("val", "cv")
    return measure(task.label[task.rows(split)], score, task.card.metric)


@pytest.fixture
def real_task(real_data: Path, project: Path, monkeypatch: Any) -> Any:
    monkeypatch.chdir(project)
    return lambda name: load_task(f"recipes/tasks/{name}.yaml", data_root=real_data, key=b"k" * 32)


def test_adrenal_28(real_task: Any, tmp_path: Path) -> None:
    task = real_task("adrenal_28")
    floors = _candidates(task, tmp_path)
    assert [len(task.rows(split)) for split in ("train", "val", "test")] == [1188, 98, 298]
    assert 0.55 < _score(task, floors["volume"]) < 0.85
    assert 0.75 < _score(task, floors["voxels"]) < 0.95
    assert 0.75 < _score(task, floors["voxels"], protocol=1) < 0.95
    assert 0.65 < _score(task, floors["radiomics"]) < 0.95


def test_hippocampus_volume(real_task: Any, tmp_path: Path) -> None:
    task = real_task("hippocampus_volume")
    floors = _candidates(task, tmp_path)
    assert len(np.unique(task.subjects)) == 260
    assert 0.2 < _score(task, floors["voxels"]) < 0.9


def test_sarcoma_metastasis(real_task: Any, tmp_path: Path) -> None:
    task = real_task("sarcoma_metastasis")
    floors = _candidates(task, tmp_path)
    assert (len(task.label), task.label.sum()) == (51, 19)
    assert 0.5 < _score(task, floors["clinical"]) < 0.9
    assert 0.6 < _score(task, floors["mask"]) < 0.95
    assert 0.6 < _score(task, floors["clinical_mask"]) < 0.95
