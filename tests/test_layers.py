"""Imports run down: evaluation -> foundation -> shards -> recipes; heavy libraries have a door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = ("recipes", "shards", "foundation", "evaluation")

DOORWAYS = {
    "SimpleITK": {"shards/images/itk.py"},
    "aiohttp": {"shards/storage/connections.py"},
    "blosc2": {"shards/codec.py", "shards/bench/crop.py"},
    "deepspeed": {"foundation/engine.py", "foundation/running/moments.py"},
    "distributed": {"shards/building/executors.py"},
    "fsspec": {"shards/storage/connections.py"},
    "gdcm": {"shards/dicom/tree.py"},
    "monai": {
        "evaluation/backbones/monai3d.py",
        "foundation/bench/augmentation.py",
        "foundation/converting/bundle.py",
        "foundation/finetuning/decoders.py",
        "foundation/finetuning/whole_scan.py",
        "shards/bench/build.py",
        "shards/bench/crop.py",
    },
    "huggingface_hub": {"foundation/artefact/hub.py"},
    "medmnist": {"shards/sources/medmnist.py"},
    "nibabel": {
        "foundation/converting/bundle.py",
        "foundation/embedding/token_map.py",
        "foundation/finetuning/mask_space.py",
        "shards/images/nifti.py",
        "shards/phantom/files.py",
        "shards/scan.py",
    },
    "onnxruntime": {"foundation/converting/graph.py"},
    "pydicom": {"shards/dicom/tree.py", "shards/phantom/files.py"},
    "wandb": {"foundation/log.py"},
    "webdataset": {"shards/bench/crop.py"},
}


def imports_of(source: str) -> Iterator[str]:
    """Dotted names of every module that the source imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module


def sources(project: Path) -> Iterator[Path]:
    for layer in LAYERS:
        yield from sorted((project / layer).rglob("*.py"))


def upward_imports(layer: str, source: str) -> list[str]:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    return [name for name in imports_of(source) if name.split(".")[0] in above]


def test_no_import_runs_up(project: Path) -> None:
    found = {}
    for path in sources(project):
        relative = path.relative_to(project)
        if upward := upward_imports(relative.parts[0], path.read_text()):
            found[str(relative)] = upward
    assert not found


@pytest.mark.parametrize("source", ["import foundation.mae", "from evaluation.run import main"])
def test_an_upward_import_is_seen(source: str) -> None:
    assert upward_imports("shards", f"def late():\n    {source}\n")


def test_heavy_libraries_have_one_doorway(project: Path) -> None:
    found = []
    for path in sources(project):
        relative = str(path.relative_to(project))
        for name in imports_of(path.read_text()):
            library = name.split(".")[0]
            if library in DOORWAYS and relative not in DOORWAYS[library]:
                found.append(f"{relative} imports {library}")
    assert not found


def test_package_init_files_are_empty(project: Path) -> None:
    filled = [str(p) for p in sources(project) if p.name == "__init__.py" and p.read_text().strip()]
    assert not filled
