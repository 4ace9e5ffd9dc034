"""Copies, exact and near, are rejected, marked or kept as the recipe says; the ledger adds up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from shards.build import BuildConfig, main
from shards.streaming.reader import ShardReader
from shards.verify import verify

Recipe = Callable[..., BuildConfig]
ABOUT = {"licence": "CC0", "source": "written by a test", "modality": "MR"}


def _save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, path)


def _body(seed: int) -> np.ndarray:
    """Smooth structure: what a perceptual hash can hold on to."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 20, 16)), indexing="ij")
    found = np.zeros((24, 20, 16))
    for _ in range(6):
        centre, width = random.uniform(-0.8, 0.8, 3), random.uniform(0.05, 0.3)
        square = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True))
        found += random.uniform(200, 900) * np.exp(-square / width)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three bodies; of the first an exact copy, and one with a little noise."""
    for number in range(3):
        _save(tmp_path / f"in/s{number}.nii.gz", _body(number))
    shutil.copy(tmp_path / "in/s0.nii.gz", tmp_path / "in/s3.nii.gz")
    _save(tmp_path / "in/s4.nii.gz", _body(0) + np.random.default_rng(9).normal(0, 4, (24, 20, 16)))
    return tmp_path


def _built(root: Path, toy_recipe: Recipe, **policy: Any) -> list[dict[str, Any]]:
    source = {"images": "in/*.nii.gz", "name": "mr", "subject": "s\\d", **ABOUT}
    main(toy_recipe(root, sources=[source], duplicates=policy, max_rejected_fraction=1))
    assert list(verify(root / "shards")) == []
    return [json.loads(line) for line in (root / "shards/ledger.jsonl").read_text().splitlines()]


def test_the_default_rejects_copies_and_marks_what_is_alike(root: Path, toy_recipe: Recipe) -> None:
    entries = _built(root, toy_recipe)
    first = entries[0]["key"]
    assert [entry["status"] for entry in entries] == [*["accepted"] * 3, "rejected", "accepted"]
    assert entries[3]["reason"] == f"duplicate of {first}"
    assert entries[4]["note"].startswith(f"near duplicate of {first} (distance ")
    assert {entry["note"] for entry in entries[:3]} == {None}


def test_marked_copies_are_taken_under_their_own_keys(root: Path, toy_recipe: Recipe) -> None:
    entries = _built(root, toy_recipe, exact="mark", near="reject")
    assert [entry["status"] for entry in entries] == [*["accepted"] * 4, "rejected"]
    assert entries[3]["note"] == f"duplicate of {entries[0]['key']}"
    assert entries[4]["reason"].startswith("near duplicate of ")
    assert len({sample.key for sample in ShardReader(root / "shards").samples}) == 4


def test_kept_copies_of_one_subject_have_different_keys(root: Path, toy_recipe: Recipe) -> None:
    """The same voxels and the same subject twice: the key alone cannot tell them apart."""
    source = {"images": "in/*.nii.gz", "name": "mr", "subject": "s", **ABOUT}
    policy = {"exact": "keep", "near": "ignore"}
    main(toy_recipe(root, sources=[source], duplicates=policy))
    samples = ShardReader(root / "shards").samples
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys) == 5
    assert keys[3] == f"{keys[0]}-2"
    assert {entry.subject for entry in samples} == {samples[0].subject}


def test_every_file_is_accounted_for(
    tmp_path: Path, toy_recipe: Recipe, series: Callable[..., None], toy_volume: Callable[..., Any]
) -> None:
    """A repeat, a 4D file, a scan that is not wanted, one that is damaged, and text."""
    series(tmp_path / "dicom/a", toy_volume(1), SeriesInstanceUID="1.2.1", PatientID="A")
    shutil.copy(tmp_path / "dicom/a/IM003", tmp_path / "dicom/a/IM003-again")
    series(tmp_path / "dicom/b", toy_volume(2), SeriesInstanceUID="1.2.2", SliceThickness=9)
    (tmp_path / "dicom/notes.txt").write_text("no image")
    _save(tmp_path / "mr/4d.nii.gz", np.stack([_body(seed) for seed in (1, 2, 3)], axis=-1))
    (tmp_path / "mr/cut.nii.gz").write_bytes(b"no image")
    ct = {"dicom": "dicom", "name": "ct", "licence": "CC0", "source": "a test"}
    sources = [
        {**ct, "select": {"max_slice_thickness_mm": 5}},
        {"images": "mr/*.nii.gz", "name": "mr", **ABOUT},
    ]
    main(toy_recipe(tmp_path, sources=sources, max_rejected_fraction=1))
    lines = (tmp_path / "shards/ledger.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    on_disk = sum(
        path.is_file() for name in ("dicom", "mr") for path in (tmp_path / name).rglob("*")
    )
    assert sum(entry["files"] for entry in entries) == on_disk == 9 + 1 + 9 + 1 + 2
    told = [(one["source"], one["status"], one["files"]) for one in entries]
    assert told == [
        ("ct", "rejected", 1),
        ("ct", "accepted", 9),
        ("ct", "skipped", 9),
        ("mr", "accepted", 1),
        ("mr", "accepted", 0),
        ("mr", "accepted", 0),
        ("mr", "rejected", 1),
        ("ct", "skipped", 1),
    ]
    about = json.loads((tmp_path / "shards/dataset.json").read_text())
    assert about["ledger"]["files"] == on_disk
    assert about["ledger"]["accepted"] == about["num_samples"] == 4
