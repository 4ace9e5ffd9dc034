"""A visit as one sample: what its record says, what is not written, and what is not selected."""

import datetime
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from shards.building.convert import Converted, Task, convert
from shards.codec import checksums, read_crop
from shards.measure.intensity import IntensityStatistics
from shards.measure.quality import quality_score
from shards.measure.similar import perceptual_hash
from shards.sources.inputs import Input
from shards.sources.source import SourceConfig
from shards.sources.visit import Part
from shards.write import PackedSample

SHAPE = (9, 10, 12)  # (D, H, W)
ABOUT = {"dicom": "x", "name": "toy", "licence": "CC0", "source": "written by a test"}


def _save(path: Path, voxels: np.ndarray, shift_mm: float = 0.0) -> None:
    """(D, H, W) voxels as an RAS file of 3 x 2 x 1 mm."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[1, 3] = shift_mm
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0)[::-1, ::-1], affine), path)


def _volume(seed: int) -> np.ndarray:
    voxels = np.random.default_rng(seed).normal(20, 3, SHAPE).astype(np.float32)
    voxels[2:7, 3:8, 2:9] += 200
    return voxels


def _task(root: Path, item: dict[str, Any] | None = None, **config: Any) -> Task:
    about = {
        "sequences": (Part("volume", "t1w.nii", "MR", ("t1w.nii",)),),
        "root": str(root),
        **(item or {}),
    }
    return Task(Input(0, "Jane", **about), SourceConfig(**{**ABOUT, **config}), "toy", "ab" * 8)


def _sample(found: list[Converted]) -> PackedSample:
    (one,) = found
    assert one.status == "accepted", one.reason
    assert one.sample is not None
    return one.sample


def _voxels(sample: PackedSample, member: str) -> np.ndarray:
    frame = sample.members[member]
    stop = sample.record["shape"]
    return read_crop(frame, start=(0, 0, 0), stop=stop, expected=checksums(frame))


@pytest.fixture
def visit(tmp_path: Path) -> dict[str, Any]:
    _save(tmp_path / "t1w.nii", _volume(1))
    _save(tmp_path / "pet.nii", _volume(2) / 50)
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:5, 4:6, 5:8] = 3
    _save(tmp_path / "lesion.nii", labels)
    return {
        "sequences": (
            Part("t1w", "t1w.nii", "MR", ("t1w.nii",)),
            Part("pet", "pet.nii", "PT", ("pet.nii",)),
        ),
        "masks": (Part("lesion", "lesion.nii", None, ("lesion.nii",)),),
        "values": {"age": 61.5, "sex": None},
        "split": "val",
        "visit": 12,
    }


def test_a_visit_is_one_sample(tmp_path: Path, visit: dict[str, Any]) -> None:
    sample = _sample(convert(_task(tmp_path, visit)))
    assert list(sample.members) == ["t1w.b2nd", "pet.b2nd", "lesion.mask.b2nd", "scan.json"]
    record = json.loads(sample.members["scan.json"])
    assert record == sample.record
    assert record["masks"] == ["lesion"]
    assert record["values"] == {"age": 61.5, "sex": None}
    assert (record["split"], record["visit_day"], record["subject"]) == ("val", 12, "ab" * 8)
    assert record["foreground_box"] == [[2, 7], [3, 8], [2, 9]]
    assert [one["name"] for one in record["sequences"]] == ["t1w", "pet"]
    assert [one["modality"] for one in record["sequences"]] == ["MR", "PT"]
    for one, expected in zip(record["sequences"], (_volume(1), _volume(2) / 50), strict=True):
        physical = _voxels(sample, f"{one['name']}.b2nd") * one["slope"] + one["intercept"]
        np.testing.assert_allclose(physical, expected, atol=one["slope"])
        assert one["statistics"]["maximum"] == pytest.approx(expected.max())
        assert one["quality"] == quality_score(
            expected,
            modality=one["modality"],
            statistics=IntensityStatistics(**one["statistics"]),
            box=record["foreground_box"],
        )
        assert one["perceptual_hash"] == perceptual_hash(expected)
    mask = _voxels(sample, "lesion.mask.b2nd")
    assert mask.dtype == np.uint8
    assert np.argwhere(mask == 3).min(axis=0).tolist() == [3, 4, 5]


def test_a_sample_is_the_same_wherever_its_files_lie(tmp_path: Path, visit: dict[str, Any]) -> None:
    one = convert(_task(tmp_path, visit))
    for name in ("t1w.nii", "pet.nii", "lesion.nii"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_bytes((tmp_path / name).read_bytes())
    task = pickle.loads(pickle.dumps(_task(tmp_path / "other", visit)))
    assert convert(task) == one
    alone = _sample(convert(_task(tmp_path, {**visit, "sequences": visit["sequences"][:1]})))
    assert alone.key != _sample(one).key


def test_what_does_not_fit_is_rejected(tmp_path: Path, visit: dict[str, Any]) -> None:
    _save(tmp_path / "pet.nii", _volume(2), shift_mm=4)
    task = _task(tmp_path, visit)
    (one,) = convert(task)
    assert (one.status, one.sample, task.item.num_files) == ("rejected", None, 3)
    assert one.reason is not None
    assert one.reason.startswith("pet: not registered: 4.00 mm")
    assert str(tmp_path) not in one.reason


def test_a_limit_of_anisotropy_holds_for_all_of_a_visit(
    tmp_path: Path, visit: dict[str, Any]
) -> None:
    sample = _sample(convert(_task(tmp_path, visit, max_anisotropy=1.5)))
    assert sample.record["spacing_mm"] == [3.0, 2.0, 2.0]
    assert sample.record["shape"] == [9, 10, 6]
    for member in ("t1w.b2nd", "pet.b2nd", "lesion.mask.b2nd"):
        assert _voxels(sample, member).shape == (9, 10, 6)
    native = _sample(convert(_task(tmp_path, visit)))
    assert [one["source_digest"] for one in sample.record["sequences"]] == [
        one["source_digest"] for one in native.record["sequences"]
    ]


def test_dates_become_days_that_only_the_key_explains(
    tmp_path: Path, visit: dict[str, Any]
) -> None:
    days = []
    for when in (datetime.date(2024, 1, 31), datetime.date(2024, 3, 1)):
        task = _task(tmp_path, {**visit, "visit": when})
        assert _sample(convert(task)).record["visit_day"] is None  # no shift: no date
        shifted = Task(task.item, task.config, "toy", task.subject, day_shift=4711)
        days.append(_sample(convert(shifted)).record["visit_day"])
    assert days[1] - days[0] == 30
    assert days[0] == datetime.date(2024, 1, 31).toordinal() + 4711


def test_the_date_of_a_study(
    tmp_path: Path, series: Callable[..., None], toy_volume: Callable[..., np.ndarray]
) -> None:
    series(tmp_path / "a", toy_volume(3), StudyDate="20240131")
    names = tuple(f"a/IM{number:03d}" for number in range(1, 10))
    item = {"sequences": (Part("volume", "", None, names),)}
    task = _task(tmp_path, item)
    shifted = Task(task.item, task.config, "toy", task.subject, day_shift=5)
    expected = datetime.date(2024, 1, 31).toordinal() + 5
    assert _sample(convert(shifted)).record["visit_day"] == expected
    assert b"2024" not in _sample(convert(shifted)).members["scan.json"]


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        ({"modalities": ["CT"]}, "not selected: modality"),
        ({"description": "axial"}, "not selected: unknown series description"),
        ({"min_shape": [9, 10, 13]}, "9 x 10 x 12 voxels, the recipe takes at least 9 x 10 x 13"),
        ({"min_quality": 1.0}, "not selected: quality"),
    ],
)
def test_what_a_recipe_does_not_select_is_skipped(
    tmp_path: Path, visit: dict[str, Any], select: dict[str, Any], reason: str
) -> None:
    item = {**visit, "sequences": visit["sequences"][:1]}
    (one,) = convert(_task(tmp_path, item, select=select))
    assert (one.status, one.sample) == ("skipped", None)
    assert one.reason is not None
    assert reason in one.reason


def test_a_verdict_is_kept_without_reading(tmp_path: Path) -> None:
    for verdict in (("rejected", "a localiser, not a scan"), ("skipped", "not selected: x")):
        task = _task(tmp_path / "gone", {"verdict": verdict})
        (one,) = convert(task)
        assert (one.status, one.reason, task.item.num_files) == (*verdict, 1)


def test_every_time_point_has_its_own_verdict(tmp_path: Path) -> None:
    series = np.stack([_volume(1), np.full(SHAPE, 9.0), _volume(3)], axis=-1)
    image = nibabel.Nifti1Image(series.transpose(2, 1, 0, 3).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "t1w.nii")
    found = convert(_task(tmp_path, select={"min_quality": 0.1}))
    assert [one.status for one in found] == ["accepted", "skipped", "accepted"]
    (tmp_path / "t1w.nii").write_bytes((tmp_path / "t1w.nii").read_bytes()[:-8])
    (one,) = convert(_task(tmp_path))
    assert one.reason == "not a readable NIfTI file, truncated or damaged (too short)"
