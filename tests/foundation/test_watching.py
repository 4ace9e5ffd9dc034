"""The command itself: monitors in its log, an alarm that stops it, and the same when resumed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from foundation.log import read_log
from foundation.recipe import PretrainConfig
from foundation.running.plan import make_plan
from foundation.running.ranks import Ranks
from foundation.watching.alarms import HEALTHY
from recipes.load import load
from shards.index import VOLUME
from tests.written_shards import Written, write_shards

CHECK, SAVED, STOPPED = 5, 6, 9
FEATURES = {"feature_std", "effective_rank", "rankme", "gram_off_diagonal", "cls_patch_cosine"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten subjects, half of them ill, which brightens their scans."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(10):
        voxels = generator.normal(400 * (number % 2), 60, (12, 18, 16)).astype(np.int16)
        values = {"ill": number % 2}
        samples.append(Written({VOLUME: voxels}, subject=str(number), values=values))
    return write_shards(tmp_path_factory.mktemp("shards") / "toy", samples, shard_size_mb=1)


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> Path:
    """DINO whose teacher has a temperature of 1; a batch so large that a check is cheap."""
    tree = {
        "name": "hot",
        "shards": str(shards),
        "out": str(tmp_path / "runs"),
        "vit": {"size": "toy", "patch_size": [8, 8, 8], "depth": 1},
        "preprocessing": {"crop_shape": [8, 16, 8]},
        "dino": {
            "head": {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
            "local_crops": {"num_crops": 0},
            "ibot": None,
            "koleo_weight": 0,
            "teacher_temp": 1.0,
            "warmup_teacher_temp": 1.0,
        },
        "train": {"steps": 20, "global_batch": 100, "micro_batch": 100},
        "optimiser": {"lr": 1e-4},
        "checkpoint": {"every_steps": SAVED},
        "health": {
            "every_steps": CHECK,
            "label": "ill",
            "warmup_steps": 6,
            "patience_steps": STOPPED - 6,
            "on_alarm": "stop",
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


# Each sitting is a process of its own, forked where the engine's library is there already.
SITTINGS = """
import os, shutil, sys
import deepspeed
from foundation.watching.alarms import Unhealthy
from foundation.pretrain import main
from foundation.recipe import PretrainConfig
from recipes.load import load

for sitting in (1, 2):
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            main(load(sys.argv[1], PretrainConfig))
        except Unhealthy as error:
            print(f"stopped: {error}", flush=True)
            os._exit(0)
        os._exit(1)
    assert os.wait()[1] == 0
    shutil.copy("runs/hot/log.jsonl", f"{sitting}.jsonl")
"""


def test_an_alarm_stops_the_run_and_does_again_when_it_is_resumed(
    recipe: Path, tmp_path: Path, project: Path
) -> None:
    """The second sitting goes on from step 6, and knows from the log that this was a bad one."""
    done = subprocess.run(
        [sys.executable, "-c", SITTINGS, str(recipe)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(project), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"going on from step {SAVED}" in done.stdout
    told = "after 9 steps teacher_entropy is"
    assert done.stderr.count(f"alarm: {told}") == 2
    stopped = [line for line in done.stdout.splitlines() if line.startswith("stopped: ")]
    assert len(stopped) == 2
    for line in stopped:
        assert line.startswith(f"stopped: {told}")
        assert "last checkpoint is kept" in line
    assert not (tmp_path / "runs" / "hot" / "backbone").exists()
    logs = [read_log(tmp_path / f"{sitting}.jsonl") for sitting in (1, 2)]
    for log in logs:
        steps = [line for line in log if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, STOPPED + 1))
        (checked,) = [line for line in steps if FEATURES & line.keys()]
        assert checked["step"] == CHECK
        assert checked.keys() >= FEATURES | {"knn_auroc"}
        assert steps[0].keys() >= {"teacher_entropy", "ln_k_distance", "prototype_use"}
        assert HEALTHY.keys() <= checked.keys(), "every monitor with a range is in the log"
        assert checked["seconds"]["health"] > 0
        alarm = next(line for line in log if line.get("alarm") == "teacher_entropy")
        assert alarm["step"] == STOPPED
        assert alarm["healthy"] == [0.15, 0.99]
    alarms = [[{**line, "wall_s": 0} for line in log if "alarm" in line] for log in logs]
    assert alarms[0] == alarms[1]


def test_a_label_that_is_not_there_is_refused_before_anything_is_built(
    recipe: Path, tmp_path: Path
) -> None:
    config = load(recipe, PretrainConfig, ["health.label=il"])
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"health\.label: the column 'il' does not divide"):
        make_plan(config, ranks=alone)
    assert not (tmp_path / "runs" / "hot").exists()
