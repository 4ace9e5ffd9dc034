"""The whole path on a tiny phantom cohort: scans, shards, two ranks, a kill, a resume, a report.

Each stage runs as its own command on the shipped recipes, cut down by overrides, as a user would.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TOY = [
    "train.steps=20",
    "train.global_batch=4",
    "checkpoint.every_steps=4",
    "log.every_steps=1",
    "log.wandb=false",
    "vit.size=toy",
    "vit.depth=2",
    "vit.embed_dim=96",
    "vit.num_heads=2",
    "vit.patch_size=[8,8,8]",
    "preprocessing.crop_shape=[24,32,40]",
]
TOY_MAE = ["mae.decoder_embed_dim=96", "mae.decoder_depth=1", "mae.decoder_num_heads=2"]
TOY_DINO = [
    "dino.head.num_prototypes=32",
    "dino.head.hidden_dim=64",
    "dino.head.bottleneck_dim=32",
    "dino.local_crops={num_crops: 2, shape: [16, 16, 24]}",
]
TOY_TUNING = [
    "train.steps=4",
    "train.global_batch=4",
    "reading.crops_per_scan=1",
    "checkpoint.every_steps=4",
    "log.every_steps=1",
]
SUBJECTS = 40
# Those of which 40 subjects hold both classes in every part of the split.
NAMES = ("stroke", "infection", "cancer")
TASKS = f"tasks=[{', '.join(f'recipes/tasks/phantom_{name}.yaml' for name in NAMES)}]"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A folder with the project's recipes in it, as after a clone."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "recipes").symlink_to(project / "recipes")
    return folder


def start(words: list[str], *, work: Path, project: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*words: str, work: Path, project: Path) -> str:
    process = start(list(words), work=work, project=project)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def pretrain_words(recipe: str, name: str, *words: str) -> list[str]:
    launch = ["foundation.launch", "2", "foundation.pretrain"]
    return [*launch, recipe, f"name={name}", *TOY, *words]


def losses(run_folder: Path) -> list[tuple[int, float]]:
    lines = (run_folder / "log.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]


def kill_after_a_checkpoint(words: list[str], run_folder: Path, **where: Path) -> None:
    """Start a job and end it, all ranks at once, when its first checkpoint stands."""
    process = start(words, **where)
    deadline = time.monotonic() + 200
    while not list(run_folder.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)
    launcher = psutil.Process(process.pid)
    for each in [*launcher.children(recursive=True), launcher]:
        each.kill()
    process.communicate()


@pytest.mark.timeout(600)
def test_from_scans_to_report(work: Path, project: Path) -> None:
    where = {"work": work, "project": project}
    phantom = ("shards.phantom", "data/phantom", "--subjects", str(SUBJECTS), "--seed", "3")
    run(*phantom, **where)
    assert "up to date" in run(*phantom, **where)
    run("shards.build", "recipes/shards/demo.yaml", **where)
    assert "up to date" in run("shards.build", "recipes/shards/demo.yaml", **where)
    run("shards.verify", "data/shards/demo", **where)

    mae = "recipes/pretrain/demo_mae.yaml"
    run(*pretrain_words(mae, "undisturbed", *TOY_MAE), **where)
    killed = pretrain_words(mae, "demo_mae", *TOY_MAE)
    kill_after_a_checkpoint(killed, work / "runs/demo_mae", **where)
    assert not (work / "runs/demo_mae/backbone").exists()
    assert "going on from step" in run(*killed, **where)
    assert losses(work / "runs/demo_mae") == losses(work / "runs/undisturbed")
    assert [step for step, _ in losses(work / "runs/demo_mae")] == list(range(1, 21))
    weights = "backbone/model.safetensors"
    assert (work / "runs/demo_mae" / weights).read_bytes() == (
        work / "runs/undisturbed" / weights
    ).read_bytes()

    dino = "recipes/pretrain/demo_dino.yaml"
    run(*pretrain_words(dino, "demo_dino", *TOY_DINO), **where)

    scratch = ("foundation.finetune", "recipes/finetune/demo_labels.yaml", TASKS)
    run("foundation.launch", "2", *scratch, *TOY_TUNING, **where)
    assert "up to date" in run("foundation.launch", "2", *scratch, *TOY_TUNING, **where)

    evaluate = ("evaluation.run", "recipes/evaluation/demo.yaml", TASKS, "few_shot.num_draws=10")
    run(*evaluate, **where)
    assert "up to date" in run(*evaluate, **where)
    report = ("evaluation.report", "stores/demo", "--out", "reports/benchmark")
    run(*report, **where)
    suffixes = (".html", ".md", ".csv", ".json")
    first = {suffix: (work / f"reports/benchmark{suffix}").read_bytes() for suffix in suffixes}
    run(*report, **where)
    again = {suffix: (work / f"reports/benchmark{suffix}").read_bytes() for suffix in suffixes}
    assert again == first
    assert b"<table" in first[".html"]
    assert b"supervised from scratch" in first[".html"]
    assert re.search(rb"0\.\d+ \[[\d.]+, [\d.]+\]|0?\.\d+ \[", first[".md"]) is not None


def test_pretraining_saw_training_subjects_only(work: Path, project: Path) -> None:
    """Runs on what the flow left: the shards hold no validation or test subject."""
    from shards.pseudonym import load_key, pseudonym
    from shards.sources.cohort import load_cohort

    dataset = json.loads((work / "data/shards/demo/dataset.json").read_text())
    cohort = load_cohort(project / "recipes/cohorts/phantom.yaml", data_root=work / "data")
    key = load_key(work / "data/pseudonym.key")
    members: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in cohort.rows:
        assert row.split is not None
        members[row.split].add(pseudonym(key, cohort.config.name, row.subject))
    assert set(dataset["subjects"]) == members["train"]
    assert not set(dataset["subjects"]) & (members["val"] | members["test"])
    provenance = json.loads((work / "runs/demo_mae/backbone/provenance.json").read_text())
    assert set(provenance["subjects"]) == members["train"]
