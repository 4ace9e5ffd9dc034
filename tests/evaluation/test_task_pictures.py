"""Pictures of a task: a training scan of each class, the extremes of a number, masks."""

from typing import Any

import nibabel
import numpy as np

from evaluation.extraction.pictures import cohort_slices
from foundation.tasks.task import Task

PLAIN = {"floors": {"volume": None, "radiomics": None, "voxels": None}, "groups": []}


def number_of(row: dict[str, str]) -> int:
    return int(row["subject"][-3:])


def only_training_scans_are_there(place: Any) -> None:
    """Whatever is opened beside training scans fails from now on."""
    for row in place.rows():
        if row["split"] != "train":
            for kind in ("scan", "mask"):
                (place.data / row[kind]).unlink()


CARDS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["0", "1"]),
    ({"kind": "regression", "label": {"column": "size"}}, ["low", "high"]),
    ({"kind": "multiclass", "label": {"column": "grade"}}, ["a_b", "c"]),
    ({"kind": "retrieval", "label": {"column": "sex"}}, ["F", "M"]),
    ({"kind": "ordinal", "label": {"column": "sex", "levels": ["M", "F"]}}, ["M", "F"]),
    ({"kind": "multilabel", "label": {"columns": ["bright", "half"]}}, ["bright", "half"]),
    ({"kind": "survival", "label": {"time_days": "days", "event": "bright"}}, ["early", "late"]),
]


def test_every_kind_has_pictures_of_training_scans(place: Any) -> None:
    place.rewrite(
        lambda row: (
            row
            | {
                "grade": ("a  b", "c")[number_of(row) % 2],
                "half": "" if number_of(row) % 5 == 0 else str(number_of(row) // 3 % 2),
                "days": str(9 + number_of(row)),
            }
        )
    )
    only_training_scans_are_there(place)
    for card, names in CARDS:
        found = cohort_slices(place.task(**{**PLAIN, **card}))
        assert list(found) == [f"bright__{name}__0" for name in names]
        for picture in found.values():
            assert picture.shape == (9, 11)
            assert picture.dtype == np.float32
            assert 0 <= picture.min() < picture.max() <= 1


def test_early_is_an_event_and_not_who_left_the_study(place: Any) -> None:
    place.rewrite(lambda row: row | {"days": str(9 + number_of(row))})
    task: Task = place.task(
        kind="survival", label={"time_days": "days", "event": "bright"}, **PLAIN
    )
    rows = task.rows("train")
    first = min((task.label[row, 0], row) for row in rows if task.label[row, 1] == 1)[1]
    picture = cohort_slices(task)["bright__early__0"]
    # The scan of patient002, the first with an event, at the middle of its mask.
    assert task.subjects[first] == place.pseudonym("patient002")
    voxels = np.asarray(nibabel.nifti1.load(place.data / "scans/002_scan.nii").dataobj)
    slices = voxels[::-1, ::-1].transpose(2, 1, 0)
    ranks = [np.corrcoef(picture.ravel(), each.ravel())[0, 1] for each in slices]
    assert max(ranks) > 0.95


def test_a_segmentation_shows_a_slice_and_its_mask(place: Any) -> None:
    card = {"kind": "segmentation", "label": {"classes": {"corner": 1, "never": 2}}}
    task = place.task(**PLAIN, **card)
    only_training_scans_are_there(place)
    found = cohort_slices(task)
    assert list(found) == ["bright__corner__0", "bright__corner_mask__0"]
    mask = found["bright__corner_mask__0"]
    assert mask.shape == found["bright__corner__0"].shape == (9, 11)
    assert set(np.unique(mask)) == {0.0, 1.0}
    # The largest masks are 5 x 4 in x and y.
    assert mask.sum() == 20
