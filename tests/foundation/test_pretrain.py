"""The command itself, on two ranks: it resumes bit for bit, and stops in one line."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from foundation.backbone import load_backbone
from foundation.log import read_log
from foundation.recipe import PretrainConfig
from foundation.running.plan import make_plan
from foundation.running.ranks import Ranks
from recipes.command import STOPPED
from recipes.load import RecipeError, load
from shards.index import VOLUME
from tests.written_shards import Written, ramp, write_shards

STEPS, EVERY, KILL_AFTER = 24, 4, 10
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small scans of five subjects in several tars."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(10):
        steps = generator.integers(-500, 500, (18 + number, 26, 20))
        voxels = steps.cumsum(axis=0).clip(-1000, 1000).astype(np.int16)
        face = np.zeros(voxels.shape, np.uint8)
        face[:, :6] = number % 2
        samples.append(Written({VOLUME: voxels}, masks={"face": face}, subject=str(number // 2)))
    folder = tmp_path_factory.mktemp("shards") / "toy"
    return write_shards(folder, samples, shard_size_mb=0.15)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four further scans, two of a subject that is in the first folder too."""
    samples = [
        Written({VOLUME: ramp(number, (17, 25, 19))}, subject=subject, values={"site": subject})
        for number, subject in enumerate(["0", "0", "9", "8"])
    ]
    return write_shards(tmp_path_factory.mktemp("others") / "others", samples, name="others")


def recipe(shards: Path, folder: Path, **method: dict) -> Path:
    tree = {
        "name": "small",
        "shards": str(shards),
        "out": str(folder / "runs"),
        "vit": {"size": "toy", "patch_size": [8, 8, 4], "depth": 2, "drop_path_rate": 0.2},
        "preprocessing": {"crop_shape": [16, 24, 12]},
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 2},
        "optimiser": {"lr": 1e-3, "warmup_steps": 2, "clip": 1.0, "weight_decay_end": 0.1},
        "deepspeed": {"stage": 1},
        "checkpoint": {"every_steps": EVERY, "keep": 2},
        **method,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def dino(shards: Path, folder: Path) -> Path:
    section = {
        "head": {"num_prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 8},
        "local_crops": {"num_crops": 2, "shape": [8, 8, 8]},
        "freeze_last_layer_steps": 3,
    }
    return recipe(shards, folder, dino=section)


def mae(shards: Path, folder: Path) -> Path:
    section = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2}
    return recipe(shards, folder, mae=section)


def launch(path: Path, project: Path, *words: str, ranks: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "foundation.launch", str(ranks), "foundation.pretrain"]
    return subprocess.Popen(
        [*command, str(path), *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(path: Path, project: Path, *words: str, ranks: int = 2) -> str:
    process = launch(path, project, *words, ranks=ranks)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def wait_for(process: subprocess.Popen[str], log: Path, *, step: int) -> None:
    while not log.exists() or len(read_log(log)) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)


def kill_after(process: subprocess.Popen[str], log: Path, *, step: int) -> None:
    """SIGKILL to every process of the job, in the middle of a step past ``step``."""
    wait_for(process, log, step=step)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone)
    process.communicate()


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = read_log(folder / "runs" / "small" / "log.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(dino(shards, folder), project)
    return folder


def test_a_killed_run_goes_on_bit_for_bit(
    shards: Path, whole: Path, tmp_path: Path, project: Path
) -> None:
    """DINO, with drop path, a moving teacher and centre, two forwards an update, ZeRO stage 1."""
    path = dino(shards, tmp_path)
    run = tmp_path / "runs" / "small"
    kill_after(launch(path, project), run / "log.jsonl", step=KILL_AFTER)
    before = len(read_log(run / "log.jsonl"))
    assert KILL_AFTER <= before < STEPS, "the kill came too late to mean anything"
    newest = max((run / "checkpoints").glob("step-*"))
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    said = finish(path, project)
    assert f"skipped a checkpoint: {weights}" in said
    begin = int(newest.name.removeprefix("step-")) - EVERY
    assert f"going on from step {begin}" in said
    assert losses(tmp_path) == losses(whole)
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, STEPS + 1))
    name = "runs/small/backbone/model.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_goes_on_with_other_ranks_and_another_stage(
    shards: Path, whole: Path, tmp_path: Path, project: Path
) -> None:
    """Told to stop after a few steps on two ranks, it saves, and goes on as one, to rounding."""
    path = dino(shards, tmp_path)
    run = tmp_path / "runs" / "small"
    process = launch(path, project, "checkpoint.every_steps=1000")
    wait_for(process, run / "log.jsonl", step=KILL_AFTER)
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == STOPPED, err[-3000:]
    told = out.splitlines()[-1]
    assert told.endswith("steps, saved; the same command goes on from there")
    stopped = int(told.split()[2])

    words = ("deepspeed.stage=0", "resume.allow_changes=[deepspeed]")
    said = finish(path, project, *words, ranks=1)
    assert f"goes on with changes from step {stopped}: deepspeed.stage (1 -> 0)" in said
    assert (
        f"8 scans = 1 ranks x 4 x 2, CPU, fp32, ZeRO stage 0, going on from step {stopped}" in said
    )
    found, expected = np.array(losses(tmp_path)), np.array(losses(whole))
    assert (found[:stopped] == expected[:stopped]).all()
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    weights = [
        load_file(each / "runs/small/backbone/model.safetensors") for each in (tmp_path, whole)
    ]
    for name in weights[0]:
        torch.testing.assert_close(*(each[name] for each in weights), rtol=1e-3, atol=1e-4)


def test_a_finished_run_has_everything_and_is_not_run_again(
    shards: Path, tmp_path: Path, project: Path
) -> None:
    path = mae(shards, tmp_path)
    run = tmp_path / "runs" / "small"
    out = finish(path, project, "train.steps=3")
    assert out.splitlines()[0] == f"reads   {shards}: 10 scans of 5 subjects"
    assert out.splitlines()[1] == f"writes  {run}"
    assert out.splitlines()[-1] == f"backbone: {run / 'backbone'}"

    backbone = load_backbone(run / "backbone")
    assert (
        backbone.provenance["shards"]["digest"]
        == (json.loads((shards / "dataset.json").read_text())["digest"])
    )
    assert len(backbone.provenance["subjects"]) == 5
    assert len(backbone.provenance["source_digests"]) == 10
    assert backbone.provenance["perceptual_hashes"] == [], "the toy shards have none"
    assert backbone.provenance["scans_seen"] == 24
    assert "toy-" not in json.dumps(backbone.provenance)
    with np.load(run / "pictures" / "reconstructions.npz") as pictures:
        assert set(pictures.files) == {"original", "masked", "reconstruction"}
        for name in pictures.files:
            assert pictures[name].shape == (6, 24, 12)
            assert pictures[name].dtype == np.float32
            assert pictures[name].min() >= 0
            assert pictures[name].max() <= 1
        hidden = pictures["masked"] != pictures["original"]
        assert 0.5 < hidden.mean() < 0.9
        visible = pictures["masked"] > 0
        assert (pictures["reconstruction"] == pictures["original"])[visible].all()
    line = read_log(run / "log.jsonl")[-1]
    assert line["step"] == 3
    assert line["epochs"] == {"toy": 2.4}
    assert set(line["seconds"]) >= {"read", "decode", "wait", "forward", "backward", "optimiser"}
    assert line["tokens_per_s"] == pytest.approx(line["scans_per_s"] * 18, rel=1e-3)

    # Alone, so that what it imports can be seen: the engine is not among it.
    check = (
        "import sys, foundation.pretrain as p; from recipes.load import load; "
        f"p.main(load({str(path)!r}, p.PretrainConfig, ['train.steps=3'])); "
        "assert 'deepspeed' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(project)}
    again = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, env=environment, check=True
    )
    assert again.stdout.splitlines()[-1] == f"up to date: {run / 'backbone'}"


def test_a_loss_that_is_no_number_stops_all_ranks_in_one_line(
    shards: Path, tmp_path: Path, project: Path
) -> None:
    """A learning rate out of bounds; what was saved before stays, and is whole."""
    path = mae(shards, tmp_path)
    words = ("optimiser.lr=1e30", "optimiser.warmup_steps=0", "checkpoint.every_steps=1")
    process = launch(path, project, *words)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if "error" in line]
    assert len(told) == 1
    assert told[0].startswith("error: after ")
    assert "not finite" in told[0]
    assert err.splitlines()[-1] == told[0]
    assert (tmp_path / "runs" / "small" / "checkpoints" / "latest").exists()
    assert not (tmp_path / "runs" / "small" / "backbone").exists()


POISONED = """
import sys
import torch
import foundation.pretrain as pretrain
from foundation.mae import Mae
from foundation.running.ranks import run_on_ranks
forward, bad = Mae.forward, {3, 5, 18, 19, 20, 21}
def poisoned(self, batch, step):
    loss, metrics = forward(self, batch, step)
    return (loss * torch.nan if int(batch.position[0]) // 8 in bad else loss), metrics
Mae.forward = poisoned
run_on_ranks(pretrain.main, pretrain.PretrainConfig, doc="")
"""
"""MAE whose loss is no number in six updates' scans."""


def test_a_bad_stretch_is_skipped_then_passed_over(
    shards: Path, tmp_path: Path, project: Path
) -> None:
    """Two bad updates are skipped; four in a row take the run back, and it ends behind them."""
    words = [str(mae(shards, tmp_path)), "train.micro_batch=8", "safety.cool_steps=8"]
    done = subprocess.run(
        [sys.executable, "-c", POISONED, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "small"
    lines = read_log(run / "log.jsonl")
    updates = {line["step"]: line for line in lines if "incident" not in line}
    assert list(updates) == [step for step in range(1, STEPS + 1) if step not in (4, 6)]
    incidents = [(line["step"], line["incident"]) for line in lines if "incident" in line]
    bad = [(step, "loss") for step in (4, 6, 19, 20, 21, 22)]
    assert incidents == [*bad, (16, "rollback")]
    first = next(line for line in lines if "incident" in line)
    assert first["applied"] is False
    assert [(each["rank"], each["loss"], len(each["scans"])) for each in first["samples"]] == [
        (0, "nan", 8)
    ]
    assert "back from step 22 to 16" in done.stderr
    assert first["lr_scale"] == 0.5
    assert updates[5]["lr"] == pytest.approx(0.5 * updates[3]["lr"], rel=0.05)
    state = json.loads((run / "checkpoints" / "step-000024" / "state.json").read_text())
    assert (state["position"], state["num_applied"]) == ((24 + 6) * 8, 22)
    assert (run / "backbone").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["preprocessing.crop_shape=[16,24,10]"], "multiple of patch_size"),
        (["train.microbatch=2"], "unknown key 'train.microbatch', did you mean 'micro_batch'"),
        (["dino={}"], "exactly one of the sections mae, dino; this one has mae and dino"),
        (["mae=null"], "this one has none"),
        (["name=a/b"], "name: "),
        (["shards=[]"], "name each folder once, and one at least"),
        (["shards=[{folder: a}, {folder: a}]"], "name each folder once"),
        (["shards=[{folder: a, wieght: 2}]"], "did you mean 'weight'"),
        (["reading.crop_mm=[20, -1, null]"], "crop_mm must be positive"),
        (["reading.sequences=[t1w, t1w]"], "sequences: a name stands twice"),
    ],
)
def test_a_recipe_that_makes_no_sense(
    shards: Path, tmp_path: Path, words: list[str], line: str
) -> None:
    with pytest.raises(RecipeError, match=line):
        load(mae(shards, tmp_path), PretrainConfig, words)


def test_local_crops_that_patches_do_not_tile_are_refused_with_the_recipe(
    shards: Path, tmp_path: Path
) -> None:
    """Before the run's folder is begun, which would hold a recipe that cannot run."""
    with pytest.raises(RecipeError, match=r"\(8, 9, 8\) voxels .* \(8, 8, 4\) patches"):
        load(dino(shards, tmp_path), PretrainConfig, ["dino.local_crops.shape=[8,9,8]"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shards=nowhere"], "nowhere: no shards here"),
        (["train.global_batch=7"], "7 scans are not a whole number of 2"),
        (["preprocessing.spacing_mm=[3,1,1]"], r"\[3, 1, 1\] mm, but .* null"),
        (["deepspeed.stage=3", "mae=null", "dino={}"], "stage: 3 splits the parameters"),
        (["out=/dev/null/runs"], "cannot be written"),
        (
            ["reading.sequences=[volume,t1w]"],
            "in_chans: 1, but reading.sequences names 2 .volume, t1w",
        ),
        (["reading.sequences=[t1w]"], "any of the sequences t1w; there is volume"),
        (["reading.ignore_masks=[nose]"], "no sample has a mask 'nose'; there is face"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_anything_is_built(
    shards: Path, tmp_path: Path, words: list[str], line: str
) -> None:
    config = load(mae(shards, tmp_path), PretrainConfig, words)
    with pytest.raises(ValueError, match=line) as caught:
        make_plan(config, ranks=ALONE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "small").exists()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_shard_that_is_not_there_is_told_before_anything_is_built(
    shards: Path, tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    tar = sorted(folder.glob("*.tar"))[-1]
    content = tar.read_bytes()
    tar.unlink()
    if damage == "cut":
        tar.write_bytes(content[:-512])
    number = len(list(shards.glob("*.tar")))
    assert number > 1
    with pytest.raises(
        ValueError, match=f"1 of {number} shards are missing or cut, such as"
    ) as told:
        make_plan(load(mae(folder, tmp_path), PretrainConfig), ranks=ALONE)
    assert tar.name in str(told.value)
    assert not (tmp_path / "runs" / "small").exists()


def test_a_mixture_is_read_as_its_recipe_says(
    shards: Path, others: Path, tmp_path: Path, project: Path
) -> None:
    """Two folders, one of them balanced, several crops of a scan, a face that is ignored."""
    path = mae(shards, tmp_path)
    entries = f"[{{folder: {shards}, weight: 3}}, {{folder: {others}, weight: 1, balance: site}}]"
    words = (
        f"shards={entries}",
        "train.steps=4",
        "train.workers=1",
        "reading={crops_per_scan: 2, crop_mm: [60, null, 18], foreground: 0.5, "
        "ignore_masks: [face]}",
    )
    out = finish(path, project, *words)
    assert out.splitlines()[:2] == [
        f"reads   {shards}: 10 scans of 5 subjects",
        f"reads   {others}: 4 scans of 3 subjects",
    ]
    run = tmp_path / "runs" / "small"
    last = read_log(run / "log.jsonl")[-1]
    assert list(last["epochs"]) == ["toy", "others/0", "others/8", "others/9"]
    passes = np.array(list(last["epochs"].values()))
    assert (passes * [10, 2, 1, 1]).sum() == pytest.approx(4 * 8 / 2, abs=1e-2)
    provenance = load_backbone(run / "backbone").provenance
    found = provenance["shards"]
    assert (found["name"], found["num_samples"], found["num_subjects"]) == ("toy + others", 14, 7)
    assert [source["name"] for source in found["sources"]] == ["toy", "others"]
    assert found["modalities"] == {"CT": 14}
    digests = [
        json.loads((each / "dataset.json").read_text())["digest"] for each in (shards, others)
    ]
    assert [each["digest"] for each in found["folders"]] == digests
    assert found["digest"] not in digests
    assert len(provenance["subjects"]) == 7
    assert len(provenance["source_digests"]) == 14
    assert provenance["epochs"].keys() == last["epochs"].keys()

    # What changes no result may change; what does, may not.
    finish(path, project, *words, "reading.timeout_s=99", "reading.max_damaged=3")
    with pytest.raises(ValueError, match=r"reading\.foreground \(0\.5 -> 0\.4"):
        make_plan(
            load(path, PretrainConfig, [*words, "reading.foreground=0.4"]),
            ranks=ALONE._replace(world_size=2),
        )


def test_sequences_and_spacings_of_all_kinds_train_together(tmp_path: Path, project: Path) -> None:
    """Two channels, of which one is sometimes absent; places in mm; ZeRO-2 in bf16."""
    samples = []
    for number in range(6):
        both = {name: ramp(number + shift, (18, 26, 20)) for shift, name in enumerate(("a", "b"))}
        kept = both if number % 3 else {"a": both["a"]}
        spacing_mm = (5.0, 1.0, 1.0) if number % 2 else (2.0, 1.5, 1.0)
        samples.append(Written(kept, subject=str(number), spacing_mm=spacing_mm))
    folder = write_shards(tmp_path / "shards", samples, shard_size_mb=0.15)
    path = dino(folder, tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["reading"] = {"sequences": ["a", "b"]}
    tree["vit"] |= {"in_chans": 2, "position": "rope_mm", "layer_scale": 0.1, "mlp": "swiglu"}
    tree["dino"]["channel_drop"] = 0.3
    tree["train"] = {"steps": 2, "global_batch": 4, "checkpoint_blocks": True}
    tree["deepspeed"] = {"stage": 2, "precision": "bf16"}
    tree["optimiser"] |= {"layer_decay": 0.8, "patch_embed_scale": 0.2}
    path.write_text(yaml.safe_dump(tree))
    assert "ZeRO stage 2" in finish(path, project)
    run = tmp_path / "runs" / "small"
    assert [line["step"] for line in read_log(run / "log.jsonl")] == [1, 2]
    vit = load_backbone(run / "backbone").vit
    volume = torch.zeros(1, 2, 16, 24, 12)
    present = torch.tensor([[True, False]])
    spacing_mm = torch.tensor([[5.0, 1.0, 1.0]])
    assert vit(volume, spacing_mm=spacing_mm, present=present).cls_token.shape == (1, 96)
    with pytest.raises(ValueError, match="needs spacing_mm"):
        vit(volume, present=present)
