from dataclasses import replace
from typing import Any

import pytest

from evaluation.leakage import gate as leakage
from evaluation.leakage.gate import Check, LeakageError

CLEAN = {"subjects": [], "source_digests": []}


def _digests(task: Any) -> list[list[str]]:
    return [[f"{number:064x}"] for number in range(len(task.subjects))]


def _failed(checks: list[Check]) -> list[tuple[str, str | None, int]]:
    return [(each.check, each.model, each.count) for each in checks if not each.passed]


def test_a_clean_task_passes(place: Any) -> None:
    task = place.task()
    checks = leakage.check_task(task, _digests(task), {"mae": CLEAN})
    assert not _failed(checks)
    leakage.require_clean(checks)
    assert leakage.as_stored(checks)["passed"] is True


def test_a_subject_in_two_splits(place: Any) -> None:
    task = place.task()
    subjects = list(task.subjects)
    subjects[task.rows("val")[0]] = subjects[task.rows("train")[0]]
    checks = leakage.check_task(replace(task, subjects=tuple(subjects)), _digests(task), {})
    assert _failed(checks) == [("subject in two splits", None, 1)]


def test_a_scan_under_two_names(place: Any) -> None:
    task = place.task()
    digests = _digests(task)
    digests[task.rows("train")[0]] = digests[task.rows("train")[1]]
    assert not _failed(leakage.check_task(task, digests, {}))  # within one split
    digests[task.rows("test")[0]] = digests[task.rows("train")[0]]
    assert _failed(leakage.check_task(task, digests, {})) == [("duplicate scan", None, 1)]


def test_a_scan_under_two_names_where_folds_are_drawn(place: Any) -> None:
    task = place.task(protocol={"repeated_cv": {}})
    digests = _digests(task)
    digests[5] = digests[6]
    assert _failed(leakage.check_task(task, digests, {})) == [("duplicate scan", None, 1)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_scored_subject_in_pretraining(place: Any, split: str) -> None:
    task = place.task()
    seen = {**CLEAN, "subjects": [task.subjects[task.rows(split)[0]]]}
    checks = leakage.check_task(task, _digests(task), {"mae": seen, "dino": CLEAN})
    assert _failed(checks) == [("scored subject in pretraining", "mae", 1)]
    with pytest.raises(LeakageError, match=r"backbone mae: .* in the pretraining shards"):
        leakage.require_clean(checks)


def test_every_subject_of_cross_validation_is_scored(place: Any) -> None:
    task = place.task(protocol={"repeated_cv": {}})
    seen = {**CLEAN, "subjects": list(task.subjects[:2])}
    checks = leakage.check_task(task, _digests(task), {"mae": seen})
    assert _failed(checks) == [("scored subject in pretraining", "mae", 2)]


def test_a_scored_scan_in_pretraining_under_another_name(place: Any) -> None:
    task = place.task()
    digests = _digests(task)
    seen = {**CLEAN, "source_digests": digests[task.rows("test")[0]]}
    checks = leakage.check_task(task, digests, {"mae": seen})
    assert _failed(checks) == [("scored scan in pretraining", "mae", 1)]


def test_training_subjects_may_be_in_pretraining_and_are_counted(place: Any) -> None:
    task = place.task()
    seen = {**CLEAN, "subjects": [task.subjects[row] for row in task.rows("train")[:3]]}
    checks = leakage.check_task(task, _digests(task), {"mae": seen})
    assert not _failed(checks)
    counted = {each.check: each.count for each in checks}
    assert counted["training subject in pretraining"] == 3
