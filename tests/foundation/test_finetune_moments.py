"""``foundation.finetune`` killed, restarted or started twice, at its odd moments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.finetuning.validation import BEST
from tests.foundation.finetune_runs import card, command, recipe, run
from tests.tiny_cohort import Place

pytestmark = pytest.mark.slow

FOLDS = {"repeated_cv": {"folds": 2, "repeats": 1, "seed": 1}}


def test_a_restart_moves_folds_aside_with_their_model(place: Place, project: Path) -> None:
    """The new folds must not go with the old model's folder."""
    path = recipe(
        place, card(place, "binary", protocol=FOLDS), train={"steps": 2, "global_batch": 8}
    )
    run(path, project)
    said = run(path, project, "optimiser.lr=1e-3", "resume.if_changed=restart")
    part = place.root / "runs" / "tuned" / "binary"
    assert said.count("moved the run") == 1
    for folder in (part, part.with_name("binary.1")):
        assert (folder / "model").is_dir()
        assert (folder / "fold-1" / "held_out.csv").is_file()
        facts = json.loads((folder / "run.json").read_text())["recipe"]
        fold = json.loads((folder / "fold-0" / "run.json").read_text())["recipe"]
        assert fold == facts


def test_a_fold_that_dies_while_its_scores_are_written_is_scored_again(
    place: Place, project: Path
) -> None:
    path = recipe(
        place, card(place, "binary", protocol=FOLDS), train={"steps": 2, "global_batch": 8}
    )
    run(path, project)
    part = place.root / "runs" / "tuned" / "binary"
    scores = (part / "fold-1" / "held_out.csv").read_text()
    assert not (part / "fold-1" / BEST).exists()
    died = f"""
from unittest import mock
from foundation import finetune
from foundation.finetuning import publishing
from foundation.finetuning.recipe import FinetuneConfig
from recipes.load import load

def dies(*_):
    raise KeyboardInterrupt

with mock.patch.object(publishing, "write_predictions", dies):
    finetune.main(load({str(path)!r}, FinetuneConfig, ["name=died"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", died], cwd=project, capture_output=True, check=False
    )
    assert b"KeyboardInterrupt" in done.stderr
    run(path, project, "name=died")
    assert (
        place.root / "runs" / "died" / "binary" / "fold-1" / "held_out.csv"
    ).read_text() == scores


def test_a_finished_run_goes_on_with_more_steps_where_that_is_allowed(
    place: Place, project: Path
) -> None:
    """Its best weights are in the model that was; the best of the further steps takes its place."""
    path = recipe(place, card(place, "binary"))
    run(path, project)
    run(path, project, "train.steps=10", "resume.allow_changes=[train.steps]")
    part = place.root / "runs" / "tuned" / "binary"
    facts = json.loads((part / "part.json").read_text())
    assert facts["steps"] == 10
    assert facts["best_step"] > 6
    assert (part / "model.1").is_dir()


def test_what_only_says_where_things_lie_may_change(place: Place, project: Path) -> None:
    path = recipe(place, card(place, "binary"))
    run(path, project)
    moved = place.data.rename(place.root / "moved")
    elsewhere = place.root / "other_shards"
    said = run(path, project, f"data_root={moved}", f"shards={elsewhere}", "build_workers=1")
    assert "up to date: " in said


def test_two_commands_share_shards_and_never_a_run(place: Place, project: Path) -> None:
    """The same shards are waited for; the same run is refused to the second."""
    path = recipe(place, card(place, "binary"), train={"steps": 4000, "global_batch": 8})
    first = subprocess.Popen(
        command(path), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        while not (line := first.stdout.readline()).startswith("part"):
            assert line, first.communicate()[1][-2000:]
        assert "binary: another process is at it" in run(path, project, code=2)
        run(path, project, "name=other", "train.steps=2", "checkpoint.every_steps=2")
    finally:
        first.terminate()
        first.communicate()


def test_a_run_lets_go_of_its_engine_before_the_next_begins(place: Place, project: Path) -> None:
    """DeepSpeed keeps an engine, and so its network and averages, for as long as the process."""
    path = recipe(
        place,
        card(place, "binary", protocol=FOLDS),
        train={"steps": 2, "global_batch": 8},
        deepspeed={"stage": 2},
    )
    counts = f"""
import gc
from foundation import finetune
from foundation.finetuning.recipe import FinetuneConfig
from recipes.load import load

one = finetune.finetune

def counted(run, *, request):
    gc.collect()
    kept = [each for each in gc.get_objects() if type(each).__name__ == "DeepSpeedEngine"]
    print(f"kept {{len(kept)}}", flush=True)
    one(run, request=request)

finetune.finetune = counted
finetune.main(load({str(path)!r}, FinetuneConfig))
"""
    done = subprocess.run(
        [sys.executable, "-c", counts], cwd=project, capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("kept")] == ["kept 0"] * 3
