"""A pretraining that begins from another's backbone, by its own command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from foundation.backbone import load_backbone, save_backbone
from foundation.recipe import PretrainConfig
from foundation.running.plan import make_plan
from foundation.running.ranks import Ranks
from foundation.vit import build_vit
from recipes.load import load
from tests.written_shards import plain, write_shards

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def first_backbone(folder: Path, config: PretrainConfig, *, seed: int) -> None:
    torch.manual_seed(seed)
    licence = {"name": "x", "num_samples": 1, "licence": "CC-BY-4.0", "source": "there"}
    shards = {"name": "x", "digest": "e" * 64, "num_samples": 1, "num_subjects": 1}
    save_backbone(
        folder,
        vit=build_vit(config.vit),
        vit_config=config.vit,
        preprocessing=config.preprocessing,
        recipe={},
        provenance={
            "subjects": ["f" * 16],
            "source_digests": ["d" * 64],
            "shards": {**shards, "sources": [licence]},
        },
    )


def recipe(folder: Path) -> Path:
    tree = {
        "name": "second",
        "shards": str(write_shards(folder / "shards", plain(4))),
        "out": str(folder / "runs"),
        "init": {"weights": str(folder / "first")},
        "vit": {"size": "toy", "patch_size": [4, 8, 6], "depth": 2},
        "preprocessing": {"crop_shape": [8, 16, 12]},
        "train": {"steps": 2, "global_batch": 4},
        # So little that the published weights are the first ones, to rounding.
        "optimiser": {"lr": 1e-9, "warmup_steps": 0},
        "deepspeed": {"stage": 1},
        "mae": {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_run_begins_from_a_backbone_says_so_and_keeps_to_it(
    tmp_path: Path, project: Path
) -> None:
    path = recipe(tmp_path)
    config = load(path, PretrainConfig)
    with pytest.raises(ValueError, match=r"first: no such folder; weights are timm:NAME"):
        make_plan(config, ranks=ALONE)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())

    first_backbone(tmp_path / "first", config, seed=1)
    source = load_backbone(tmp_path / "first")
    done = subprocess.run(
        [sys.executable, "-m", "foundation.pretrain", str(path)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = f"begins  {tmp_path / 'first'} (CC-BY-4.0): 100.0% of the backbone"
    assert any(line.startswith(told) for line in done.stdout.splitlines())

    run = tmp_path / "runs" / "second"
    backbone = load_backbone(run / "backbone")
    for name, tensor in backbone.vit.state_dict().items():
        torch.testing.assert_close(tensor, source.vit.state_dict()[name], atol=1e-6, rtol=0)
    begun = backbone.provenance["initialised_from"]
    assert begun["digest"] == source.digest
    assert begun["past"]["shards"]["digest"] == "e" * 64
    assert "f" * 16 in backbone.provenance["subjects"]
    assert "d" * 64 in backbone.provenance["source_digests"]
    assert len(backbone.provenance["subjects"]) == 5
    assert json.loads((run / "init.json").read_text())["report"]["coverage"] == 1
    assert "e" * 64 in (run / "run.json").read_text()
    assert "## Begun from" in (run / "backbone" / "README.md").read_text()

    assert make_plan(config, ranks=ALONE).state.finished
    first_backbone(tmp_path / "first", config, seed=2)
    with pytest.raises(ValueError, match=r"differs in init.weights \(digest "):
        make_plan(config, ranks=ALONE)
