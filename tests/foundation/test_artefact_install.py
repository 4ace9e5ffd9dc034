"""The core install loads, embeds and predicts, and nothing on that way can run what it reads."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.foundation.tuned_models import write_model

UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

WAY_IN = """
import sys

HIDDEN = set(sys.argv[1].split(","))

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # what tells the versions of packages
        return getattr(self.finder, name)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
import numpy as np
import foundation.embed
import foundation.predict
from foundation.backbone import load_backbone
from foundation.model import load_model
from shards.scan import Scan

backbone = load_backbone("demo", say=lambda text: print(text, file=sys.stderr))
voxels = np.random.default_rng(0).integers(-900, 900, (18, 30, 26)).astype(np.int16)
scan = Scan(voxels, spacing_mm=(5.0, 3.0, 4.0), modality="CT", metadata={})
features = backbone.embed_scan(scan)
assert features["cls"].shape == features["mean"].shape == (96,)
assert np.isfinite(features["cls"]).all() and features["cls"].std() > 0
label, mask = (load_model(each).predict_scan(scan) for each in sys.argv[2:])
assert label["label"] in ("0", "1") and 0 < label["probability_1"] < 1
assert mask.mask.shape == scan.voxels.shape and mask["volume_vein_ml"] >= 0
print(*(name for name in sys.modules if name.split(".")[0] in ("foundation", "shards", "recipes")))
"""


def installed_beside_core(project: Path) -> set[str]:
    """Import names of everything here that ``pip install scanfm`` would not have brought."""
    core = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    brought: set[str] = set()
    waiting = [Requirement(each) for each in core]
    while waiting:
        needed = waiting.pop()
        name = plain(needed.name)
        if name in brought or not (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            continue
        brought.add(name)
        try:
            waiting += [Requirement(each) for each in requires(needed.name) or []]
        except PackageNotFoundError:  # for another system
            continue
    ours = {"scanfm", *brought}
    modules = packages_distributions().items()
    return {name for name, owners in modules if not ours & {plain(owner) for owner in owners}}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def way_in(folder: Path, hidden: set[str], *, at: Path) -> subprocess.CompletedProcess[str]:
    models = [str(write_model(at / kind, kind)) for kind in ("binary", "segmentation")]
    return subprocess.run(
        [sys.executable, "-c", WAY_IN, ",".join(sorted(hidden)), *models],
        cwd=at,
        env={"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HOME": str(at)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_core_install_loads_embeds_and_predicts_and_cannot_unpickle(
    project: Path, tmp_path: Path
) -> None:
    hidden = installed_beside_core(project)
    assert {"deepspeed", "wandb", "lightly", "blosc2", "pandas", "sklearn", "webdataset"} <= hidden
    assert not {"torch", "timm", "safetensors", "numpy", "nibabel", "monai"} & hidden
    done = way_in(project, hidden, at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "golden    comes out" in done.stderr
    ours = done.stdout.split()
    assert {"foundation.artefact.reading", "foundation.artefact.hub", "shards.scan"} <= set(ours)
    assert {"foundation.artefact.head", "foundation.predicting.outcome"} <= set(ours)
    for name in ours:
        path = project / (name.replace(".", "/") + ".py")
        if path.is_file():
            found = unpickling(path.read_text())
            assert not found, f"{path}: {found}"


@pytest.mark.slow
def test_a_wheel_outside_the_checkout_has_all_it_needs(project: Path, tmp_path: Path) -> None:
    """Built from a copy, so that nothing is left in the checkout."""
    for name in ("recipes", "shards", "foundation", "evaluation"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, tmp_path / "source" / name)
    build = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "."]
    subprocess.run(
        [sys.executable, *build, "--wheel-dir", str(tmp_path)],
        cwd=tmp_path / "source",
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    shutil.rmtree(tmp_path / "source")
    done = way_in(tmp_path / "site", installed_beside_core(project), at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site" / "foundation") in done.stderr  # the folder of demo


def unpickling(source: str) -> list[str]:
    """Imports of pickle and its like, and calls that read pickles or run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in UNPICKLES else []
        elif isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            allows = any(
                each.arg == "allow_pickle" and ast.unparse(each.value) != "False"
                for each in node.keywords
            )
            if text in ("torch.load", "eval", "exec", "yaml.unsafe_load") or allows:
                found.append(text)
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(path)", "np.load(x, allow_pickle=1)"],
)
def test_unpickling_is_seen(source: str) -> None:
    assert unpickling(source)
