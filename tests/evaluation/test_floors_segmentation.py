"""Floors of a segmentation, the mean training mask and brightness alone, on hand-made masks."""

from typing import Any

import nibabel
import numpy as np
import pytest

from evaluation.floors.registry import floor_candidates, floor_extractors, floor_names
from evaluation.floors.segmentation import (
    CELLS,
    THRESHOLDS,
    MaskedVoxels,
    _between_cells,
    _class_shares,
    _on_voxels,
    atlas,
    intensity,
)
from evaluation.leakage.fitting import check_fitting
from evaluation.probing.protocols import evaluate
from foundation.tasks.masks import MaskedScans, MaskError
from tests.tiny_cohort import SHAPE, SPACING


def segmentation(place: Any, **label: Any) -> Any:
    return place.task(kind="segmentation", label={"classes": {"lesion": 1}, **label}, floors={})


def write(path: Any, array: Any) -> None:
    image = nibabel.nifti1.Nifti1Image(array, np.diag([*SPACING, 1.0]))
    nibabel.nifti1.save(image, path)


def masks_of(task: Any) -> MaskedVoxels:
    return MaskedVoxels(MaskedScans.of(task))


def train_mask(task: Any, *splits: str) -> Any:
    return np.isin(task.split, splits)[None]


def test_both_floors_stand_and_are_scored(place: Any) -> None:
    task = segmentation(place)
    assert floor_names(task) == ["atlas", "intensity"]
    assert floor_extractors(task) == []
    candidates = floor_candidates(task, {})
    for name in ("atlas", "intensity"):
        (scorer,) = candidates[name].scorers
        outcome = evaluate(task, scorer, open_test=False)
        assert outcome.scores["val"].shape == (16, 1)
        assert len(outcome.grid) == len(THRESHOLDS)
        if name == "atlas":  # the masks differ in their length along one axis alone
            assert np.nanmean(outcome.scores["val"]) > 0.7


def test_the_atlas_of_one_subject_is_its_mask(place: Any) -> None:
    task = segmentation(place)
    voxels = masks_of(task)
    train = np.zeros((1, 72), bool)
    train[0, 0] = True
    score = atlas().predict(voxels, task.label, train, [{"threshold": 0.5}])[0, :, 0]
    assert np.isnan(score[0])
    same = [
        row for row in range(1, 72)
        if np.array_equal(voxels.masks(row)[0], voxels.masks(0)[0])
    ]  # fmt: skip
    assert len(same) > 20
    assert (score[same] > 0.9).all()
    other = np.setdiff1d(np.arange(1, 72), same)
    assert (score[other] < 0.95).all()


def test_settings_and_training_sets_are_scored_as_if_alone(place: Any) -> None:
    task = segmentation(place)
    voxels = masks_of(task).take(np.arange(0, 72, 6))
    train = np.arange(12) % np.array([2, 3, 2, 3])[:, None] > 0
    settings = [{"threshold": each} for each in (0.5, 0.5, 0.1, 0.02)]
    for estimator in (atlas(), intensity()):
        together = estimator.predict(voxels, np.zeros(12), train, settings)
        for number, setting in enumerate(settings):
            alone = estimator.predict(voxels, np.zeros(12), train[number : number + 1], [setting])
            assert np.allclose(together[number], alone[0], equal_nan=True)


def test_brightness_alone_finds_what_is_bright(place: Any) -> None:
    for number in range(72):
        rng = np.random.default_rng(number)
        voxels = rng.normal(100, 5, SHAPE).astype(np.float32)
        mask = np.zeros(SHAPE, np.uint8)
        start = number % 5
        mask[start : start + 3, 2:6, 1 + number % 3 : 5] = 1
        voxels[mask == 1] += 200
        write(place.data / "scans" / f"{number:03d}_scan.nii", voxels)
        write(place.data / "scans" / f"{number:03d}_mask.nii", mask)
    task = segmentation(place)
    train = train_mask(task, "train")
    score = intensity().predict(masks_of(task), task.label, train, [{"threshold": 0.5}])
    assert np.nanmin(score[0]) > 0.95
    assert np.isnan(score[0, train[0]]).all()


def test_counts_add_up_to_the_voxels_of_each_class(place: Any) -> None:
    task = segmentation(place, classes={"lesion": 1, "nothing": 7})
    voxels = masks_of(task)
    counts = voxels.counts(3)
    mask = voxels.masks(3)[0]
    assert counts.sum() == np.prod(SHAPE)
    assert counts[:, 1].sum() == np.count_nonzero(mask == 1)
    assert counts[:, 2].sum() == 0


def test_masks_of_others_are_never_read(place: Any) -> None:
    task = segmentation(place)
    open_rows = task.rows("train", "val")
    for row in task.rows("test"):
        write(task.scans[row][0].mask, np.zeros((2, 3, 4), np.uint8))
    part = masks_of(task).take(open_rows)
    train = np.isin(task.split[open_rows], ["train"])[None]
    for estimator in (atlas(), intensity()):
        score = estimator.predict(part, np.zeros(56), train, [{"threshold": 0.5}])
        assert np.isfinite(score[0, ~train[0]]).all()


def test_masks_of_a_closed_test_split_are_never_read(place: Any) -> None:
    task = segmentation(place)
    for row in task.rows("test"):
        write(task.scans[row][0].mask, np.zeros((2, 3, 4), np.uint8))
    for candidate in floor_candidates(task, {}).values():
        assert evaluate(task, candidate.scorers[0], open_test=False).scores["val"].shape == (16, 1)


def test_the_canaries_pass(place: Any) -> None:
    task = segmentation(place)
    checks = check_fitting(task, floor_candidates(task, {}))
    assert {each.status for each in checks} == {"passed"}


def test_a_mask_of_another_shape_names_its_scan(place: Any) -> None:
    task = segmentation(place)
    write(task.scans[0][0].mask, np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(MaskError, match=r"scan\.nii: a mask of"):
        masks_of(task).counts(0)


def test_cells_and_voxels_are_on_one_grid() -> None:
    mask = np.zeros((7, 20, 45), np.uint8)
    mask[2:5, 3:9, 30:40] = 1
    shares = _class_shares(mask, 2)
    assert shares.shape == (2, CELLS, CELLS, CELLS)
    assert shares[1].max() == 0
    assert shares[0].mean() == pytest.approx((mask == 1).mean(), rel=1e-5)
    back = _on_voxels(shares.astype(float), mask.shape)
    assert back.shape == (2, *mask.shape)
    assert np.array_equal(back[0] >= 0.5, mask == 1)
    assert _between_cells(7).sum(axis=1) == pytest.approx(np.ones(7))
