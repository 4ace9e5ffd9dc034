"""A lab that embeds and predicts needs the core: nothing else is imported on those paths."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from foundation.backbone import save_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from recipes.load import to_yaml
from tests.foundation.tuned_models import write_model

HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {names!r}
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # what tells the versions of packages
        return getattr(self.finder, name)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
import importlib
importlib.import_module("{module}").main()
"""


CORE_NEEDS = {"jinja2"}  # torch brings it along


def extras(project: Path) -> set[str]:
    """Import names of what ``[train]`` and ``[evaluate]`` add to the core."""
    text = (project / "pyproject.toml").read_text()
    section = text[text.index("train = [") : text.index("cluster = [")]
    names = set(re.findall(r'^    "([\w-]+)', section, flags=re.MULTILINE))
    assert {"deepspeed", "fsspec", "wandb", "lightly", "blosc2"} <= names
    return {"sklearn" if name == "scikit-learn" else name for name in names - CORE_NEEDS}


def run_hidden(module: str, *words: str, folder: Path, project: Path) -> None:
    """A command where none of the extras can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(names=extras(project), module=module), *words],
        cwd=folder,
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_scan(path: Path) -> None:
    voxels = np.random.default_rng(0).normal(0, 300, (20, 18, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1.5, 3.0, 1.0])), path)


def test_embedding_imports_nothing_of_the_extras(tmp_path: Path, project: Path) -> None:
    torch.manual_seed(0)
    config = VitConfig(size="toy", depth=1, patch_size=(4, 8, 8))
    preprocessing = Preprocessing(crop_shape=(8, 16, 24))
    save_backbone(
        tmp_path / "backbone",
        vit=build_vit(config),
        vit_config=config,
        preprocessing=preprocessing,
        recipe=to_yaml(preprocessing),
        provenance={},
    )
    write_scan(tmp_path / "scan.nii.gz")
    words = ["backbone", "scan.nii.gz", "--modality", "CT", "--out", "features.csv"]
    run_hidden("foundation.embed", *words, folder=tmp_path, project=project)
    assert len((tmp_path / "features.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_predicting_imports_nothing_of_the_extras(tmp_path: Path, project: Path) -> None:
    """Of a segmentation, which needs the most."""
    write_model(tmp_path / "model", "segmentation")
    write_scan(tmp_path / "scan.nii.gz")
    words = ["model", "scan.nii.gz", "--modality", "CT", "--out", "p.csv", "--masks", "masks"]
    run_hidden("foundation.predict", *words, folder=tmp_path, project=project)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
    assert nib.load(tmp_path / "masks/scan.nii.gz.mask.nii.gz").shape == (20, 18, 12)
