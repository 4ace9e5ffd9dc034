"""``foundation.finetune`` as its users start it: every kind of label, folds, kills, ranks."""

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from foundation.log import read_log
from foundation.metrics.quality import measures
from foundation.model import load_model
from foundation.tasks.task import load_task
from shards.scan import read_scan
from tests.foundation.finetune_runs import (
    KINDS,
    STEPS,
    card,
    command,
    losses,
    recipe,
    run,
    with_columns,
)
from tests.tiny_cohort import Place


def scores_in(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        return {
            row["subject"]: [float(row[name] or "nan") for name in row if name.startswith("score")]
            for row in csv.DictReader(file)
        }


def test_every_kind_of_label_is_learnt_published_and_told(place: Place, project: Path) -> None:
    """One command; each model gives again, from the raw scans, what was written down."""
    with_columns(place)
    cards = {name: card(place, name) for name in KINDS}
    path = recipe(place, *cards.values(), reading={"crops_per_scan": 2})
    said = run(path, project)
    for name in KINDS:
        part = place.root / "runs" / "tuned" / name
        task = load_task(cards[name], data_root=place.data, key=place.key)
        facts = json.loads((part / "part.json").read_text())
        assert facts["task_digest"] == task.digest
        assert (facts["num_train"], facts["num_val"], facts["fraction"]) == (40, 16, 1.0)
        found = scores_in(part / "predictions.csv")
        rows = task.rows("val")
        assert sorted(found) == sorted(task.subjects[row] for row in rows)
        scores = np.array([found[task.subjects[row]] for row in rows])
        value = measures(task.label[rows], scores[None], task.card.metric)[0]
        told = facts["validation"]["scores"][task.card.metric]
        assert told["value"] == pytest.approx(value, abs=1e-9)
        assert told["low"] <= told["value"] <= told["high"]
        line = next(line for line in read_log(part / "log.jsonl") if line["step"] == STEPS)
        assert {"val_loss", f"val_{task.card.metric}"} <= set(line)
        assert not (part / "best").exists()
        assert f"model: {part / 'model'}" in said
        model = load_model(part / "model")
        scan = read_scan(task.scans[rows[0]][0].scan, modality="MR")
        if name != "masks":
            assert model.score_scan(scan) == pytest.approx(scores[0], abs=2e-3)
        else:
            assert model.classes_of(scan).shape == scan.voxels.shape
    again = run(path, project)
    assert again.count("up to date: ") == 2 * len(KINDS)  # shards and models


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(place: Place, project: Path) -> None:
    """Labels and masks, with drop path, dropout and augmentation: the same losses and scores."""
    with_columns(place)
    path = recipe(
        place,
        card(place, "binary"),
        card(place, "masks"),
        drop_path_rate=0.2,
        head={"dropout": 0.3},
        reading={"crops_per_scan": 2},
    )
    found = {}
    for ranks in (1, 2):
        run(path, project, f"name=ranks_{ranks}", ranks=ranks)
        folder = place.root / "runs" / f"ranks_{ranks}"
        found[ranks] = {
            name: (losses(folder / name), scores_in(folder / name / "predictions.csv"))
            for name in ("binary", "masks")
        }
    for name in ("binary", "masks"):
        (one, one_scores), (two, two_scores) = found[1][name], found[2][name]
        assert [step for step, _ in one] == [step for step, _ in two]
        assert [loss for _, loss in one] == pytest.approx([loss for _, loss in two], abs=2e-5)
        assert one_scores.keys() == two_scores.keys()
        for subject, scores in one_scores.items():
            assert scores == pytest.approx(two_scores[subject], abs=2e-3, nan_ok=True)


@pytest.mark.slow
def test_a_killed_tuning_goes_on_bit_for_bit(place: Place, project: Path) -> None:
    """Whatever the moment of the kill: the same losses, the same best weights, the same model."""
    path = recipe(place, card(place, "binary"), train={"steps": 24, "global_batch": 8})
    run(path, project, "name=whole")
    runs = place.root / "runs"
    log = runs / "killed" / "binary" / "log.jsonl"
    for kill_at in (5, 13, 22):
        process = subprocess.Popen(
            command(path, "name=killed"), cwd=project, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None:
            if log.is_file() and any(step >= kill_at for step, _ in losses(log.parent)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        process.wait()
    run(path, project, "name=killed")
    assert losses(log.parent) == losses(runs / "whole" / "binary")
    weights = [
        load_file(runs / name / "binary" / "model" / "model.safetensors")
        for name in ("whole", "killed")
    ]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    assert not (log.parent / "best").exists()


@pytest.mark.slow
def test_a_stop_is_saved_and_gone_on_from(place: Place, project: Path) -> None:
    path = recipe(place, card(place, "binary"), train={"steps": 4000, "global_batch": 8})
    process = subprocess.Popen(
        command(path), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = place.root / "runs" / "tuned" / "binary" / "log.jsonl"
    while not log.is_file() or not losses(log.parent):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 75, err[-2000:]
    assert "the same command goes on from there" in out


@pytest.mark.slow
def test_patience_ends_a_run_and_keeps_the_best_step(place: Place, project: Path) -> None:
    """A learning rate that undoes what was learnt: the best step is an early one, and is kept."""
    path = recipe(
        place,
        card(place, "binary"),
        train={"steps": 400, "global_batch": 8},
        optimiser={"lr": 3.0e-3, "warmup_steps": 0},
        validation={"patience": 2},
    )
    run(path, project)
    part = place.root / "runs" / "tuned" / "binary"
    last = max(step for step, _ in losses(part))
    facts = json.loads((part / "part.json").read_text())
    assert last == facts["best_step"] + 4 < 400  # two looks later, one at every second step
    values = {
        line["step"]: line["val_auroc"]
        for line in read_log(part / "log.jsonl")
        if "val_auroc" in line
    }
    assert values[facts["best_step"]] == max(values.values())
    assert facts["validation"]["scores"]["auroc"]["value"] == pytest.approx(max(values.values()))


@pytest.mark.slow
def test_folds_score_everybody_by_a_model_that_did_not_see_them(
    place: Place, project: Path
) -> None:
    cv = {"repeated_cv": {"folds": 3, "repeats": 2, "seed": 1}}
    path = recipe(place, card(place, "binary", protocol=cv), fractions=[1.0, 0.5])
    run(path, project)
    for name, share in (("binary", 1.0), ("binary_50", 0.5)):
        part = place.root / "runs" / "tuned" / name
        facts = json.loads((part / "part.json").read_text())
        with (part / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["subject"] for row in rows}) == len(rows) == 72
        assert {row["split"] for row in rows} == {"cv"}
        assert len(facts["folds"]) == 3
        for row in rows:
            assert row["subject"] not in facts["folds"][int(row["fold"])]
        trained = json.loads((part / "fold-0" / "run.json").read_text())
        assert trained["recipe"]["fractions"] == [share]
        assert (part / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tune",
    [{"mode": "head"}, {"mode": "last_blocks", "num_blocks": 1}, {"mode": "lora"}],
    ids=lambda tune: tune["mode"],
)
def test_what_is_frozen_comes_out_as_it_went_in(
    place: Place, project: Path, tune: dict[str, object]
) -> None:
    run(recipe(place, card(place, "binary"), tune=tune), project)
    part = place.root / "runs" / "tuned" / "binary"
    before = load_file(place.root / "runs" / "mae" / "backbone" / "model.safetensors")
    after = load_file(part / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    if tune["mode"] == "head":
        assert not moved
    elif tune["mode"] == "lora":
        assert moved == {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"}
    else:
        assert moved
        assert all(name.startswith(("blocks.0.", "norm.")) for name in moved)


@pytest.mark.slow
def test_another_recipe_or_other_labels_do_not_go_on_silently(place: Place, project: Path) -> None:
    path = recipe(place, card(place, "binary"))
    run(path, project)
    err = run(path, project, "optimiser.lr=1e-3", code=2)
    assert "differs in optimiser.lr" in err
    flipped = {"0": "1", "1": "0"}
    place.rewrite(lambda row: {**row, "bright": flipped[row["bright"]]})
    err = run(path, project, code=2)
    assert "differs in shards (digest" in err
    shutil.rmtree(place.root / "shards")
    run(path, project, "resume.if_changed=restart")
    assert (place.root / "runs" / "tuned" / "binary.1" / "model").is_dir()
