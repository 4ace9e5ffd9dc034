"""A tiny cohort of NIfTI scans with a signal in the voxels, and backbones over it."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from foundation.backbone import save_backbone
from foundation.preprocessing import Preprocessing
from foundation.tasks.task import Task, load_task
from foundation.vit import VitConfig, build_vit
from shards.pseudonym import load_key, pseudonym

NUM_SUBJECTS = 72
SHAPE = (11, 9, 7)  # of the file: x, y, z; never a cube
SPACING = (1.5, 1.0, 2.0)


class Place:
    """A project's root in a temporary folder, with data, recipes and a key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.key_path = root / "key"
        self.key = load_key(self.key_path)

    def write(self, name: str, tree: dict[str, Any]) -> Path:
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def card(self, **changes: Any) -> Path:
        tree: dict[str, Any] = {
            "name": "bright",
            "title": "A bright corner",
            "disease": "brightness",
            "cohort": str(self.root / "cohort.yaml"),
            "kind": "binary",
            "label": {"column": "bright"},
            "protocol": {"split": "cohort"},
            "floors": {
                "volume": "mask",
                "clinical": ["age", "sex"],
                "mask_intensity": True,
                "voxels": {"grid": [8, 8, 12], "pool": 2, "pca": 5},
            },
            "groups": ["sex"],
        }
        return self.write(changes.get("name", "bright"), {**tree, **changes})

    def task(self, **changes: Any) -> Task:
        return load_task(self.card(**changes), data_root=self.data, key=self.key)

    def pseudonym(self, subject: str) -> str:
        return pseudonym(self.key, "tiny", subject)

    def rows(self) -> list[dict[str, str]]:
        with (self.data / "cohort.csv").open() as file:
            return list(csv.DictReader(file))

    def rewrite(self, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
        """Write the table again with each row changed; None takes a row out."""
        rows = [row for row in map(change, self.rows()) if row is not None]
        _write_table(self.data / "cohort.csv", rows)

    def backbone(self, name: str, **provenance: Any) -> Path:
        """Publish an untrained toy backbone that claims ``provenance``."""
        config = VitConfig(patch_size=(4, 4, 4), size="toy", embed_dim=24, num_heads=1, depth=1)
        folder = self.root / "runs" / name / "backbone"
        folder.parent.mkdir(parents=True, exist_ok=True)
        seen = {"subjects": [], "source_digests": [], "method": "mae", "finished": "2026-02-03"}
        save_backbone(
            folder,
            vit=build_vit(config),
            vit_config=config,
            preprocessing=Preprocessing(crop_shape=(8, 8, 12)),
            recipe={"name": "toy"},
            provenance={**seen, **provenance},
        )
        return folder


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 subjects in three splits, of whom every other pair has a bright corner; never changed."""
    data = tmp_path_factory.mktemp("tiny")
    (data / "scans").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_SUBJECTS):
        bright = (number // 2) % 2
        voxels = rng.normal(100, 20, SHAPE).astype(np.float32)
        voxels[:4, :4, :3] += 60 * bright
        mask = np.zeros(SHAPE, np.uint8)
        mask[1 : 4 + number % 3, 1:5, 1:4] = 1
        for kind, array in (("scan", voxels), ("mask", mask)):
            image = nibabel.nifti1.Nifti1Image(array, np.diag([*SPACING, 1.0]))
            nibabel.nifti1.save(image, data / "scans" / f"{number:03d}_{kind}.nii")
        rows.append(
            {
                "subject": f"patient{number:03d}",
                "scan": f"scans/{number:03d}_scan.nii",
                "mask": f"scans/{number:03d}_mask.nii",
                "split": ("train", "train", "val", "test")[number // 2 // 2 % 4],
                "bright": bright,
                "size": round(100 + 30 * bright + rng.normal(0, 5), 3),
                "age": "" if number % 9 == 0 else 50 + number % 20,
                "sex": "MF"[number % 2],
                "part": "head",
            }
        )
    _write_table(data / "cohort.csv", rows)
    return data


@pytest.fixture
def place(tmp_path: Path, tiny_cohort: Path) -> Place:
    """A project over a copy of the tiny cohort, which a test may change."""
    place = Place(tmp_path)
    shutil.copytree(tiny_cohort, place.data)
    cohort = {
        "name": "tiny", "table": "cohort.csv", "subject": "{subject}", "scan": "{scan}",
        "mask": "{mask}", "modality": "MR", "split": {"column": "split"}, "licence": "CC0-1.0",
        "source": "made by a test",
    }  # fmt: skip
    place.write("cohort", cohort)
    return place


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
