"""The labelled scans of a task: whose they are, whose not, and what crops are centred in."""

import csv
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.finetuning import data
from foundation.finetuning.data import (
    LabelledScans,
    build_scans,
    class_table,
    open_scans,
    recipe_of,
    training_corpus,
)
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.target import target_of
from foundation.preprocessing import Preprocessing
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task, load_task
from recipes.load import parse
from shards.files import only_one
from shards.scan import read_scan
from shards.streaming.crops import CropPlan
from tests.foundation.finetune_runs import card, with_columns
from tests.tiny_cohort import Place

CROP = (4, 8, 12)
AS_IT_IS = Preprocessing(crop_shape=CROP)


def config(place: Place) -> FinetuneConfig:
    tree: dict[str, Any] = {
        "name": "tuned",
        "tasks": ["card.yaml"],
        "data_root": str(place.data),
        "pseudonym_key": str(place.key_path),
        "shards": str(place.root / "shards"),
        "backbone": "none",
        "train": {"steps": 2, "global_batch": 8},
        "optimiser": {"lr": 1e-3},
        "build_workers": 0,
    }
    return parse(tree, FinetuneConfig, where="recipe")


@pytest.fixture
def place(place: Place) -> Place:
    """A third of the tiny cohort: 16 subjects train, 4 decide, 4 are the test split's."""
    place.rewrite(lambda row: row if int(row["subject"][-3:]) < 24 else None)
    return place


def opened(
    place: Place, name: str, contract: Preprocessing = AS_IT_IS
) -> tuple[Task, LabelledScans]:
    task = load_task(card(place, name), data_root=place.data, key=place.key)
    about = recipe_of(config(place), task, preprocessing=contract)
    return task, open_scans(Path(about.out), task, keys=build_scans(about, task))


def write_rows(place: Place, rows: list[dict[str, str]]) -> None:
    with (place.data / "cohort.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def drawn(scans: LabelledScans, task: Task, folder: Path, *, num: int = 100) -> set[str]:
    """Keys of the samples that training shows in so many scans."""
    corpus = training_corpus(
        scans,
        folder=folder,
        subjects=[task.subjects[row] for row in task.rows("train")],
        plan=plan_of(scans),
        seed=0,
        target=target_of(task, task.rows("train")),
    )
    return {corpus.sample(corpus.drawn(number)).key for number in range(num)}


def plan_of(scans: LabelledScans) -> CropPlan:
    masks = () if scans.mask is None else (scans.mask,)
    return CropPlan(CROP, sequences=(scans.sequence,), masks=masks)


def folder_of(scans: LabelledScans) -> Path:
    return Path(str(scans.reader))


def test_test_subjects_are_in_no_shard_and_a_sample_is_its_scan(place: Place) -> None:
    task, scans = opened(place, "masks")
    there = {scan["subject"] for scan in scans.reader.samples.scans()}
    assert there == {task.subjects[row] for row in task.rows("train", "val")}
    row = int(task.rows("val")[3])
    (index,) = scans.samples[task.subjects[row]]
    found, file = scans.scan(index), read_scan(task.scans[row][0].scan, modality="MR")
    assert found.spacing_mm == file.spacing_mm == (2.0, 1.0, 1.5)
    assert np.allclose(found.voxels, file.voxels, atol=0.02)
    mask = read_scan(task.scans[row][0].mask, modality="OT").voxels  # type: ignore[arg-type]
    classes = scans.classes(index, target_of(task, task.rows("train")))
    assert np.array_equal(classes, mask == 1)


def test_scans_are_kept_at_the_spacing_of_the_contract(place: Place) -> None:
    contract = AS_IT_IS.model_copy(update={"spacing_mm": (3.0, 2.0, 1.5)})
    _, scans = opened(place, "binary", contract)
    found = scans.scan(0)
    assert found.spacing_mm == (3.0, 2.0, 1.5)
    assert found.voxels.shape == (4, 4, 11)  # of 7, 9, 11 voxels of (2, 1, 1.5) mm


def test_training_draws_every_scan_of_training_and_no_other(place: Place) -> None:
    """One subject has two scans; crops of a mask are centred in the box about it."""
    rows = place.rows()
    write_rows(place, [*rows, {**rows[1], "scan": rows[0]["scan"], "mask": rows[0]["mask"]}])
    task, scans = opened(place, "masks")
    names = [task.subjects[row] for row in task.rows("train")]
    expected = {scans.reader.samples[index].key for name in names for index in scans.samples[name]}
    assert len(expected) == len(names) + 1
    assert drawn(scans, task, folder_of(scans)) == expected
    corpus = training_corpus(
        scans, folder=folder_of(scans), subjects=names[:1], plan=plan_of(scans), seed=0,
        target=target_of(task, task.rows("train")),
    )  # fmt: skip
    sample = corpus.sample(corpus.drawn(0))
    places = np.nonzero(scans.classes(corpus.drawn(0).sample, target_of(task, task.rows("train"))))
    assert sample.foreground_box == tuple((int(p.min()), int(p.max()) + 1) for p in places)


def test_only_labelled_scans_of_rows_that_stand_are_a_subjects(place: Place) -> None:
    """Shards keep what was there once; neither that nor a scan without a label is learnt from."""
    rows = place.rows()
    unlabelled = {**rows[0], "scan": "scans/001_scan.nii", "bright": ""}
    gone = {**rows[0], "scan": "scans/002_scan.nii"}
    write_rows(place, [*rows, unlabelled, gone])
    task, scans = opened(place, "binary")
    assert len(scans.samples[place.pseudonym(rows[0]["subject"])]) == 2
    write_rows(place, [*rows, unlabelled])
    task, scans = opened(place, "binary")
    assert len(scans.reader.samples) == 16 + 4 + 2  # the shards hold it still
    (index,) = scans.samples[place.pseudonym(rows[0]["subject"])]
    file = read_scan(place.data / rows[0]["scan"], modality="MR")
    assert np.allclose(scans.scan(index).voxels, file.voxels, atol=0.02)
    assert len(drawn(scans, task, folder_of(scans))) == 16


def test_a_scan_without_a_mask_is_not_all_background(place: Place) -> None:
    rows = place.rows()
    write_rows(place, [*rows, {**rows[0], "scan": "scans/001_scan.nii", "mask": ""}])
    task, scans = opened(place, "masks")
    assert len(scans.samples[place.pseudonym(rows[0]["subject"])]) == 1
    assert len(drawn(scans, task, folder_of(scans))) == 16


def test_a_labelled_subject_without_a_readable_scan_is_one_line(place: Place) -> None:
    scan = place.data / place.rows()[0]["scan"]
    scan.write_bytes(scan.read_bytes()[:100])
    with pytest.raises(TaskError, match="1 of 20 labelled subjects have no scan"):
        opened(place, "binary")


def test_tasks_over_the_same_scans_share_their_shards(place: Place) -> None:
    with_columns(place)
    folders = {name: folder_of(opened(place, name)[1]) for name in ("binary", "sizes", "masks")}
    assert folders["binary"] == folders["sizes"] != folders["masks"]


def test_who_makes_the_same_shards_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "_LOOK_AGAIN_S", 0.05)
    task = load_task(card(place, "binary"), data_root=place.data, key=place.key)
    about = recipe_of(config(place), task, preprocessing=AS_IT_IS)
    out = Path(about.out)
    out.parent.mkdir(parents=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with only_one(out.with_name(f".{out.name}.building.lock"), doing="a test"):
            held.set()
            done.wait(0.4)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    keys = build_scans(about, task)
    other.join()
    assert len(keys) == 20
    assert capfd.readouterr().out.count("waiting: building") == 1


def test_a_table_of_classes_counts_from_the_background(place: Place) -> None:
    task = load_task(card(place, "masks"), data_root=place.data, key=place.key)
    target = target_of(task, task.rows("train"))
    two = target.model_copy(update={"outputs": ("a", "b"), "mask_values": {"a": 200, "b": 3}})
    assert {int(place): int(table) for place, table in enumerate(class_table(two)) if table} == {
        200: 1,
        3: 2,
    }
