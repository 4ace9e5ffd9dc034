"""Any checkpoint of a run becomes a backbone with the same features, and tells what it has seen."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from foundation.artefact.checkpoints import TrainedError, read_trained
from foundation.backbone import Backbone, load_backbone
from foundation.checkpoint import CheckpointError, Keep, Snapshot, write_checkpoint
from foundation.export import ExportConfig, export, main
from foundation.methods import build_method
from foundation.recipe import PretrainConfig
from foundation.running.runs import BACKBONE, CHECKPOINTS, LOG, RUN
from foundation.vit import build_vit
from recipes.load import parse
from shards.index import read_dataset
from shards.scan import Scan
from shards.sealed import write_sealed
from tests.written_shards import plain, pseudonym, write_shards

DINO = {
    "head": {"num_prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 8},
    "local_crops": {"num_crops": 2, "shape": [8, 8, 8]},
}
MAE = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2}


def method_of(config: PretrainConfig, *, seed: int) -> Any:
    torch.manual_seed(seed)
    return build_method(
        config,
        vit=build_vit(config.vit),
        preprocessing=config.preprocessing,
        total_steps=config.train.steps,
        seed=seed,
    )


def make_run(
    folder: Path, *, name: str = "small", steps: tuple[int, int] = (10, 20), **method: Any
) -> tuple[Path, PretrainConfig]:
    """A run of two checkpoints, as a pretraining on two ranks would have left it."""
    shards = write_shards(folder / "toy", plain(3, shape=(9, 17, 13)))
    tree = {
        "name": name,
        "shards": str(shards),
        "out": str(folder / "runs"),
        "vit": {"size": "toy", "patch_size": [8, 8, 4], "depth": 2},
        "preprocessing": {"crop_shape": [8, 16, 12]},
        "train": {"steps": 30, "global_batch": 4},
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
        **method,
    }
    config = parse(tree, PretrainConfig, where="recipe")
    config.folder.mkdir(parents=True)
    digest = read_dataset(shards)["digest"]
    recipe = config.model_dump(mode="json")
    write_sealed(config.folder / RUN, {"recipe": recipe, "shards_digest": digest})
    for step in steps:
        weights = method_of(config, seed=step).state_dict()
        # The student of DINO begins as the teacher: here they differ.
        changed = {
            name: tensor + 0.01 * step
            if "student" in name and tensor.is_floating_point()
            else tensor
            for name, tensor in weights.items()
        }
        whole = {name: tensor.clone().contiguous() for name, tensor in changed.items()}
        snapshot = Snapshot(step, whole, {}, {"healthy": True}, "")
        write_checkpoint(config.folder / CHECKPOINTS, snapshot, keep=Keep(last=5))
    lines = [
        {"step": s, "loss": 1 / s, "wall_s": 36.0 * s, "ranks": {"wait": [0.1, 0.2]}}
        for s in range(1, 26)
    ]
    (config.folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config.folder, config


def scan() -> Scan:
    voxels = np.random.default_rng(1).integers(-900, 900, (11, 21, 19)).astype(np.int16)
    return Scan(voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT", metadata={})


def features(vit: Any, config: PretrainConfig) -> dict[str, np.ndarray]:
    backbone = Backbone(vit, preprocessing=config.preprocessing, digest="", provenance={})
    return backbone.embed_scan(scan())


@pytest.mark.parametrize("step", [None, 10])
def test_an_export_has_the_features_of_its_checkpoint(
    tmp_path: Path, step: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = make_run(tmp_path, mae=MAE)
    exported = export(run, ExportConfig(step=step, out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"backbone: {tmp_path / 'out'}"
    assert "golden    comes out" in said
    again = load_backbone(tmp_path / "out")
    expected = features(method_of(config, seed=step or 20).backbone, config)
    for name, feature in again.embed_scan(scan()).items():
        np.testing.assert_allclose(feature, expected[name], atol=1e-6)
    provenance = exported.provenance
    assert provenance["steps"] == (step or 20)
    assert provenance["scans_seen"] == 4 * (step or 20)
    assert provenance["hours"] == pytest.approx((step or 20) / 100)
    assert provenance["world_size"] == 2
    assert provenance["subjects"] == sorted(pseudonym(f"subject-{n}") for n in range(3))
    assert provenance["loss_curve"][-1][0] == (step or 20)


def test_student_and_teacher(tmp_path: Path) -> None:
    run, config = make_run(tmp_path, dino=DINO)
    student, teacher = (
        export(run, ExportConfig(step=20, weights=name)) for name in ("student", "teacher")
    )
    published = export(run, ExportConfig(step=20))
    method = method_of(config, seed=20)
    np.testing.assert_array_equal(
        teacher.embed_scan(scan())["cls"], features(method.teacher.backbone, config)["cls"]
    )
    np.testing.assert_array_equal(
        teacher.embed_scan(scan())["cls"], published.embed_scan(scan())["cls"]
    )
    assert not np.allclose(student.embed_scan(scan())["cls"], teacher.embed_scan(scan())["cls"])
    assert student.provenance["weights"] == "student"
    folders = sorted(path.name for path in (run / "exports").iterdir())
    assert folders == ["step-000020", "step-000020-student", "step-000020-teacher"]


def test_without_its_shards_the_runs_own_backbone_tells_what_was_seen(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, mae=MAE)
    export(run, ExportConfig(step=20, out=run / BACKBONE))
    (tmp_path / "toy").rename(tmp_path / "moved")
    early = export(run, ExportConfig(step=10)).provenance
    assert early["subjects"] == sorted(pseudonym(f"subject-{n}") for n in range(3))
    assert (early["steps"], early["scans_seen"]) == (10, 40)
    assert early["epochs"]["toy"] == pytest.approx(40 / 3)
    (run / BACKBONE).rename(run / "elsewhere")
    with pytest.raises(TrainedError, match=r"cannot be read .* nobody can say what it has seen"):
        export(run, ExportConfig(step=10, out=tmp_path / "never"))
    write_shards(tmp_path / "toy", plain(4))
    with pytest.raises(TrainedError, match="are not those the run was begun with"):
        export(run, ExportConfig(step=10, out=tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_exported_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = make_run(tmp_path, mae=MAE)
    with pytest.raises(TrainedError, match="no run here"):
        read_trained(tmp_path)
    with pytest.raises(TrainedError, match="no checkpoint of step 15; it has 10, 20"):
        read_trained(run, step=15)
    with pytest.raises(TrainedError, match="mae has no student and teacher"):
        read_trained(run, weights="student")
    (tmp_path / "mine").mkdir()
    with pytest.raises(TrainedError, match="is there, and is no backbone"):
        export(run, ExportConfig(out=tmp_path / "mine"))
    path = run / CHECKPOINTS / "step-000020" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said: list[str] = []
    assert read_trained(run, say=said.append).step == 10
    assert said[0].startswith("passed over a checkpoint: ")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_trained(run, step=20)
    monkeypatch.setattr("sys.argv", ["export", str(run), "stap=3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: export: unknown key 'stap', did you mean 'step'?\n"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])  # DINO does not run under the last
def test_an_export_is_what_the_run_publishes_under_any_stage(
    tmp_path: Path, project: Path, stage: int
) -> None:
    """A real run of two ranks; its last checkpoint has the features of its own backbone."""
    shards = write_shards(tmp_path / "toy", plain(8, shape=(9, 17, 13)))
    tree = {
        "name": "small",
        "shards": str(shards),
        "out": str(tmp_path / "runs"),
        "vit": {"size": "toy", "patch_size": [8, 8, 4], "depth": 2},
        "preprocessing": {"crop_shape": [8, 16, 12]},
        "train": {"steps": 4, "global_batch": 4},
        "optimiser": {"lr": 1e-3, "warmup_steps": 1},
        "deepspeed": {"stage": stage},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "log": {"every_steps": 1, "wandb": False},
        **({"mae": MAE} if stage == 3 else {"dino": {**DINO, "freeze_last_layer_steps": 1}}),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    subprocess.run(
        [sys.executable, "-m", "foundation.launch", "2", "foundation.pretrain", str(recipe)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    run = tmp_path / "runs/small"
    published = load_backbone(run / BACKBONE)
    last, early = (export(run, ExportConfig(step=step)) for step in (4, 2))
    for name, feature in published.embed_scan(scan()).items():
        np.testing.assert_allclose(last.embed_scan(scan())[name], feature, atol=1e-6)
        assert not np.allclose(early.embed_scan(scan())[name], feature, atol=1e-6)
    same = ("subjects", "source_digests", "shards", "recipe_digest", "world_size", "scans_seen")
    for name in same:
        assert last.provenance[name] == published.provenance[name], name
    assert last.provenance["loss_curve"] == published.provenance["loss_curve"]
