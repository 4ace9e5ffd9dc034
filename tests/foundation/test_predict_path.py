"""A lab's path: DICOM and a table of labels, a short fine-tuning, and the model alone on raw scans.

What the command tells in another folder, without recipe, shards or run, is what training wrote down
of the validation subjects.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from foundation.finetuning.calibration import apply_calibration
from foundation.model import load_model
from shards.phantom.files import write_dicom, write_nifti
from shards.phantom.simulate import simulate
from shards.scan import read_scan

SEED = 3
NUM_SUBJECTS = 12
BONE_HU, AIR_HU = 150, -700
RECIPE = {
    "name": "lab",
    "tasks": ["female.yaml", "parts.yaml"],
    "data_root": "archive",
    "pseudonym_key": "key",
    "vit": {"size": "toy", "depth": 2, "patch_size": [4, 8, 4], "position": "rope_mm"},
    "preprocessing": {"crop_shape": [16, 40, 24], "spacing_mm": [8.0, 4.0, 6.0]},
    "decoder": {"kind": "light", "features": 4, "overlap": 0.25},
    "train": {"steps": 30, "global_batch": 4},
    "optimiser": {"lr": 3e-3, "clip": 1.0},
    "checkpoint": {"every_steps": 15},
    "log": {"every_steps": 5},
    "build_workers": 0,
}
COHORT = {
    "name": "lab",
    "table": "labels.csv",
    "subject": "{patient}",
    "scan": "{scan}",
    "mask": "{mask}",
    "modality": "CT",
    "split": {"column": "split"},
    "licence": "CC0-1.0",
    "source": "phantom",
}
CARD = {
    "disease": "none",
    "cohort": "cohort.yaml",
    "protocol": {"split": "cohort"},
    "floors": {"volume": None, "radiomics": None, "voxels": None},
}
FEMALE = {
    "name": "female",
    "title": "Sex",
    "kind": "binary",
    "label": {"column": "sex", "positive": "F"},
}
PARTS = {
    "name": "parts",
    "title": "Air and bone",
    "kind": "segmentation",
    "label": {"classes": {"air": 3, "bone": 1}},
}


def write_archive(folder: Path) -> None:
    """Chests as DICOM and, of every third subject, as NIfTI; masks; and a table of labels."""
    rows = []
    for index in range(NUM_SUBJECTS):
        subject, _, scans = simulate(SEED, index)
        (chest,) = (scan for scan in scans if scan.body_part == "chest")
        place = folder / "scans" / subject.name
        place.mkdir(parents=True)
        name = "chest" if index % 3 else "chest.nii.gz"
        if index % 3:
            write_dicom(place / name, chest, subject)
        else:
            write_nifti(place / name, chest.voxels, chest.grid, orientation="PIR")
        classes = (chest.voxels > BONE_HU) + 3 * (chest.voxels < AIR_HU).astype(np.uint8)
        mask = folder / f"masks/{subject.name}.nii.gz"
        mask.parent.mkdir(exist_ok=True)
        write_nifti(mask, classes, chest.grid, orientation="LPS")
        rows.append(
            {
                "patient": subject.name,
                "scan": f"scans/{subject.name}/{name}",
                "mask": f"masks/{subject.name}.nii.gz",
                "sex": "MF"[index % 2],
                "split": ("train", "train", "val", "test", "train", "val")[index // 2],
            }
        )
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def run(*words: str, folder: Path, project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores_of(rows: list[dict[str, str]]) -> dict[str, list[float]]:
    """By pseudonym."""
    return {
        row["subject"]: [float(row[name] or "nan") for name in row if name.startswith("score_")]
        for row in rows
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_dicom_and_labels_to_predictions_of_raw_scans(tmp_path: Path, project: Path) -> None:
    work, lab = tmp_path / "work", tmp_path / "lab"
    write_archive(work / "archive")
    trees: dict[str, dict[str, Any]] = {
        "recipe": RECIPE,
        "cohort": COHORT,
        "female": {**CARD, **FEMALE},
        "parts": {**CARD, **PARTS},
    }
    for name, tree in trees.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    run("foundation.finetune", "recipe.yaml", folder=work, project=project)

    # A lab with the models, the raw scans and the key; no recipe, no shards, no run.
    lab.mkdir()
    told = {}
    for name in ("female", "parts"):
        told[name] = scores_of(rows_of(work / "runs/lab" / name / "predictions.csv"))
        shutil.move(work / "runs/lab" / name / "model", lab / name)
    table = rows_of(work / "archive/labels.csv")
    for name in ("scans", "masks"):
        shutil.move(work / "archive" / name, lab / name)
    shutil.move(work / "key", lab / "key")
    shutil.rmtree(work)
    named = ["--modality", "CT", "--pseudonym-key", "key", "--namespace", "lab"]
    words = ["foundation.predict", "female", "scans", "--out", "labels.csv", *named]
    assert f"({NUM_SUBJECTS} of {NUM_SUBJECTS} scans)" in run(*words, folder=lab, project=project)
    words = ["foundation.predict", "parts", "scans", "--out", "volumes.csv", "--masks", "found"]
    run(*words, "--modality", "CT", folder=lab, project=project)

    check_labels(lab, told["female"])
    check_masks(lab, told["parts"], table=table)


def check_labels(lab: Path, told: dict[str, list[float]]) -> None:
    """The told probabilities of validation subjects, at the model's own temperature if any."""
    model = load_model(lab / "female")
    found = {row["subject"]: row for row in rows_of(lab / "labels.csv")}
    assert set(told) < set(found)
    assert not set(found) & set(model.provenance["subjects"]) & set(told)
    for subject, scores in told.items():
        (chance,) = apply_calibration([scores], model.calibration, model.target)[0]
        assert float(found[subject]["probability_1"]) == pytest.approx(chance, abs=1e-3)
        assert found[subject]["calibrated"] == "no"  # of so few subjects
        assert found[subject]["label"] == str(int(chance > 0.5))
    assert len({round(scores[0], 6) for scores in told.values()}) == len(told)


def check_masks(lab: Path, told: dict[str, list[float]], *, table: list[dict[str, str]]) -> None:
    """They lie on the scans, and agree with the true masks as well as training said."""
    masks = {row["scan"]: Path(row["mask"]) for row in rows_of(lab / "volumes.csv")}
    values = PARTS["label"]["classes"]  # type: ignore[index]
    everybody = []
    for row in table:
        scan = row["scan"].removeprefix("scans/")
        source, mask = lab / "scans" / scan, lab / masks[scan]
        raw = read_scan(source, modality="CT")
        found, true = (
            read_scan(path, modality="OT")
            for path in (mask, lab / f"masks/{row['patient']}.nii.gz")
        )
        assert found.voxels.shape == raw.voxels.shape
        np.testing.assert_allclose(found.affine, raw.affine, atol=1e-3)
        if source.is_file():
            assert nib.load(mask).shape == nib.load(source).shape
            np.testing.assert_allclose(nib.load(mask).affine, nib.load(source).affine, atol=1e-5)
        if row["split"] == "val":
            everybody.append([
                dice_of(found.voxels == value, true.voxels == value) for value in values.values()
            ])  # fmt: skip
    expected = sorted(told.values())
    np.testing.assert_allclose(sorted(everybody), expected, atol=0.02)
    assert np.nanmax(expected) > 0.3  # it has learnt something to be compared


def dice_of(found: np.ndarray, true: np.ndarray) -> float:
    """Written here, not taken from what is tested."""
    both = int(found.sum()) + int(true.sum())
    return float(2 * (found & true).sum() / both) if both else float("nan")
