"""The gate: planted leaks between splits and with pretraining, and what a recipe may override."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from evaluation.extraction.features import extract_all
from evaluation.leakage.checks import Check
from evaluation.leakage.gate import (
    AllowedLeak,
    LeakageError,
    as_stored,
    check_task,
    require_clean,
    unused,
)
from evaluation.leakage.marks import DIGEST, HASH, ScanMarks, mark_extractors, marks_by_subject
from recipes.load import RecipeError, parse
from shards.codec import source_digest
from shards.measure.similar import perceptual_hash
from shards.scan import read_scan
from tests.evaluation.made_tasks import made_task

CLEAN: dict[str, list[str]] = {"subjects": [], "source_digests": [], "perceptual_hashes": []}


class Entry(NamedTuple):
    seen: Any
    kind: str = "backbone"


@functools.cache
def anatomy(seed: int) -> Any:
    """Smooth structure, as a scan has; never a cube."""
    noise = np.random.default_rng(seed).normal(size=(30, 44, 36))
    return ndimage.gaussian_filter(noise, (3, 4, 3.5)) * 4000


@functools.cache
def hash_of(seed: int) -> str:
    return perceptual_hash(anatomy(seed))


def marks_of(task: Any) -> Any:
    """Every subject has a scan of its own."""
    rows = range(len(task.subjects))
    return ScanMarks([[f"{row:064x}"] for row in rows], [[hash_of(row)] for row in rows])


def hit(checks: list[Check], status: str = "failed") -> list[tuple[str, str | None, int]]:
    return [(each.check, each.model, each.count) for each in checks if each.status == status]


@pytest.fixture
def task() -> Any:
    return made_task()


def test_a_clean_task_passes(task: Any) -> None:
    checks = check_task(task, marks_of(task), {"mae": Entry(CLEAN)})
    assert {check.status for check in checks} == {"passed"}
    assert require_clean(checks) == checks
    assert as_stored(checks)["passed"] is True
    assert len(checks) == 3 + 4


def test_a_subject_in_two_splits(task: Any) -> None:
    subjects = list(task.subjects)
    subjects[task.rows("val")[0]] = subjects[task.rows("train")[0]]
    checks = check_task(replace(task, subjects=tuple(subjects)), marks_of(task), {})
    assert hit(checks) == [("subject in two splits", None, 1)]


def test_a_scan_under_two_names(task: Any) -> None:
    marks = marks_of(task)
    first, second = task.rows("train")[:2]
    marks.digests[first], marks.hashes[first] = marks.digests[second], marks.hashes[second]
    assert not hit(check_task(task, marks, {}))  # within one split
    test = task.rows("test")[0]
    marks.digests[test], marks.hashes[test] = marks.digests[first], marks.hashes[first]
    assert hit(check_task(task, marks, {})) == [("duplicate scan", None, 1)]


CHANGES = {
    "noise": lambda scan: scan + np.random.default_rng(9).normal(0, 0.05 * scan.std(), scan.shape),
    "a crop by a voxel": lambda scan: scan[1:, :-1, :],
    "another scale": lambda scan: np.round(scan * 0.37 + 90),
    "resampled": lambda scan: ndimage.zoom(scan, (0.8, 0.7, 0.9), order=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_in_another_split(task: Any, change: Any) -> None:
    marks = marks_of(task)
    train, val = task.rows("train")[3], task.rows("val")[2]
    marks.hashes[val] = [perceptual_hash(change(anatomy(int(train))))]
    checks = check_task(task, marks, {})
    assert hit(checks) == [("near-duplicate scan", None, 1)]
    with pytest.raises(LeakageError, match="near_duplicates: allowed in a card of look-alikes"):
        require_clean(checks)
    detail = checks[2].detail
    assert task.subjects[train] in detail
    assert task.subjects[val] in detail


def test_where_folds_are_drawn_every_subject_is_a_side() -> None:
    task = made_task(folds=True)
    marks = marks_of(task)
    marks.digests[5], marks.hashes[5] = marks.digests[6], marks.hashes[6]
    marks.hashes[8] = [perceptual_hash(anatomy(9)[1:])]
    assert hit(check_task(task, marks, {})) == [
        ("duplicate scan", None, 1),
        ("near-duplicate scan", None, 1),
    ]


def test_scans_of_one_subject_may_be_alike() -> None:
    task = made_task(folds=True, sizes=(9, 0, 0))
    hashes = [[hash_of(row), perceptual_hash(anatomy(row)[1:])] for row in range(9)]
    digests = [[f"{row:063x}0", f"{row:063x}1"] for row in range(9)]
    assert not hit(check_task(task, ScanMarks(digests, hashes), {}))


def test_scans_without_contrast_are_like_nothing(task: Any) -> None:
    marks = marks_of(task)
    blank = ScanMarks(marks.digests, [[""] for _ in task.subjects])
    seen = {**CLEAN, "perceptual_hashes": ["", marks.hashes[0][0]]}
    assert not hit(check_task(task, blank, {"mae": Entry(seen)}))


def test_a_card_may_allow_near_duplicates_and_it_shows() -> None:
    task = made_task(near_duplicates="allowed", near_duplicates_reason="binary shapes")
    marks = marks_of(task)
    marks.hashes[task.rows("val")[0]] = marks.hashes[0]
    seen = {**CLEAN, "perceptual_hashes": marks.hashes[int(task.rows("test")[0])]}
    checks = require_clean(check_task(task, marks, {"mae": Entry(seen)}))
    assert hit(checks, "overridden") == [
        ("near-duplicate scan", None, 1),
        ("near-duplicate scan in pretraining", "mae", 1),
    ]
    assert {check.reason for check in checks if check.reason} == {"binary shapes"}
    assert as_stored(checks)["passed"] is False


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_scored_subject_in_pretraining(task: Any, split: str) -> None:
    seen = {**CLEAN, "subjects": [task.subjects[task.rows(split)[0]]]}
    entries = {"mae": Entry(seen), "dino": Entry(CLEAN)}
    checks = check_task(task, marks_of(task), entries)
    assert hit(checks) == [("scored subject in pretraining", "mae", 1)]
    with pytest.raises(LeakageError, match=r"model mae, scored subject in pretraining: 1 of 32"):
        require_clean(checks)


def test_every_subject_of_cross_validation_is_scored() -> None:
    task = made_task(folds=True)
    seen = {**CLEAN, "subjects": list(task.subjects[:2])}
    checks = check_task(task, marks_of(task), {"mae": Entry(seen)})
    assert hit(checks) == [("scored subject in pretraining", "mae", 2)]


def test_a_scored_scan_in_pretraining_under_another_name(task: Any) -> None:
    marks = marks_of(task)
    row = task.rows("test")[0]
    seen = {**CLEAN, "source_digests": marks.digests[row], "perceptual_hashes": marks.hashes[row]}
    checks = check_task(task, marks, {"mae": Entry(seen)})
    assert hit(checks) == [("scored scan in pretraining", "mae", 1)]  # once, not as near too


def test_a_changed_copy_of_a_scored_scan_in_pretraining(task: Any) -> None:
    row = int(task.rows("val")[1])
    seen = {**CLEAN, "perceptual_hashes": [perceptual_hash(anatomy(row)[:, :-1])]}
    checks = check_task(task, marks_of(task), {"mae": Entry(seen)})
    assert hit(checks) == [("near-duplicate scan in pretraining", "mae", 1)]


def test_training_subjects_may_be_in_pretraining_and_are_counted(task: Any) -> None:
    seen = {**CLEAN, "subjects": [task.subjects[row] for row in task.rows("train")[:3]]}
    checks = check_task(task, marks_of(task), {"mae": Entry(seen)})
    assert not hit(checks)
    counted = {each.check: each.count for each in checks}
    assert counted["training subject in pretraining"] == 3


def test_what_a_backbone_does_not_disclose_is_unknown(task: Any) -> None:
    without = {key: CLEAN[key] for key in ("subjects", "source_digests")}
    entries = {"foreign": Entry(None), "older": Entry(without)}
    checks = require_clean(check_task(task, marks_of(task), entries))
    unknown = [(each.check, each.model) for each in checks if each.status == "unknown"]
    assert unknown == [
        ("scored subject in pretraining", "foreign"),
        ("scored scan in pretraining", "foreign"),
        ("near-duplicate scan in pretraining", "foreign"),
        ("training subject in pretraining", "foreign"),
        ("near-duplicate scan in pretraining", "older"),
    ]
    assert not any(each.passed for each in checks if each.status == "unknown")
    assert all("does not disclose" in each.reason for each in checks if each.status == "unknown")


def test_a_floor_has_never_seen_anything(task: Any) -> None:
    assert len(check_task(task, marks_of(task), {"random": Entry(CLEAN, "floor")})) == 3


def _allowed(**changes: Any) -> AllowedLeak:
    tree = {"check": "scored subject in pretraining", "task": "made", "model": "mae",
            "reason": "two seeds share one cohort"}  # fmt: skip
    return parse({**tree, **changes}, AllowedLeak, where="recipe")


def test_an_override_lets_one_check_pass_and_marks_it(task: Any) -> None:
    seen = {**CLEAN, "subjects": [task.subjects[-1]]}
    entries = {"mae": Entry(seen), "dino": Entry(seen)}
    checks = check_task(task, marks_of(task), entries)
    with pytest.raises(LeakageError, match=r"leakage: 1 of 11 checks failed.* model dino"):
        require_clean(checks, [_allowed()])
    known = require_clean(checks, [_allowed(model=None)])
    assert len(hit(known, "overridden")) == 2
    stored = as_stored(known)
    assert stored["passed"] is False
    marked = [each for each in stored["checks"] if each["status"] == "overridden"]
    assert {each["reason"] for each in marked} == {"two seeds share one cohort"}
    assert not any(each["passed"] for each in marked)


def test_an_override_that_excuses_nothing_is_told(task: Any) -> None:
    seen = {**CLEAN, "subjects": [task.subjects[-1]]}
    checks = check_task(task, marks_of(task), {"mae": Entry(seen)})
    overrides = [_allowed(), _allowed(task="other"), _allowed(check="duplicate scan")]
    assert unused(checks, overrides) == overrides[1:]
    assert unused(require_clean(checks, overrides), overrides) == overrides[1:]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"check": "scored subjects"}, "check"), ({"reason": "ok"}, "reason"), ({"why": 1}, "why")],
)
def test_a_bad_override_is_one_clear_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _allowed(**changes)


def test_marks_are_those_of_the_shards(place: Any, tmp_path: Any) -> None:
    place.rewrite(lambda row: {**row, "subject": f"p{int(row['subject'][-3:]) // 2}"})
    task = place.task()
    found = extract_all(task.candidates, mark_extractors(), folder=tmp_path, title="marks")
    digests: Any = found[DIGEST][DIGEST]
    hashes: Any = found[HASH][HASH]
    marks = marks_by_subject(task, digests=digests, hashes=hashes)
    row = task.scans[3][1]
    scan = read_scan(row.scan, modality=row.modality)
    assert marks.digests[3][1] == source_digest(scan)
    assert marks.hashes[3][1] == perceptual_hash(scan.voxels)
