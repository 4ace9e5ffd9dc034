"""A checkpoint is whole or it is not used, and the one before it is."""

import json
import os
from pathlib import Path

import pytest
import torch

from foundation.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    Keep,
    Snapshot,
    forget_after,
    newest_checkpoint,
    read_moments,
    read_state,
    read_weights,
    write_checkpoint,
)


def snapshot(step: int, **state: object) -> Snapshot:
    return Snapshot(
        step,
        weights={"body.weight": torch.full((2, 3), float(step)), "center": torch.tensor(step)},
        moments={"body.weight/exp_avg": torch.full((2, 3), step / 10)},
        state={"position": step * 16, **state},
        recipe="name: small\n",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints = tmp_path / "checkpoints"
    for step in (4, 8, 12):
        write_checkpoint(checkpoints, snapshot(step), keep=Keep(2))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_named(folder: Path) -> None:
    assert names(folder) == ["latest", "step-000008", "step-000012"]
    assert (folder / "latest").read_text() == "step-000012\n"


def test_the_newest_one_comes_back(folder: Path) -> None:
    found = newest_checkpoint(folder, say=pytest.fail)
    assert found == folder / "step-000012"
    assert read_state(found) == {"schema_version": 2, "step": 12, "position": 192}
    assert (found / "recipe.yaml").read_text() == "name: small\n"
    assert read_weights(found)["body.weight"].tolist() == [[12.0] * 3] * 2
    assert read_weights(found)["center"].item() == 12
    assert (
        read_moments(found)["body.weight/exp_avg"].tolist() == [[torch.tensor(1.2).item()] * 3] * 2
    )
    assert not [path for path in found.iterdir() if path.suffix in (".pt", ".pkl", ".bin")]


def test_milestones_and_the_last_healthy_one_stay(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40):
        healthy = step <= 25
        write_checkpoint(tmp_path, snapshot(step, healthy=healthy), keep=Keep(1, every_steps=20))
    assert names(tmp_path) == ["latest", "step-000020", "step-000025", "step-000040"]
    found = newest_checkpoint(tmp_path, say=pytest.fail, healthy_before=41)
    assert found == tmp_path / "step-000025"
    assert newest_checkpoint(tmp_path, say=pytest.fail, healthy_before=25).name == "step-000020"
    assert newest_checkpoint(tmp_path, say=pytest.fail, healthy_before=20) is None
    forget_after(tmp_path, 25)
    assert names(tmp_path) == ["latest", "step-000020", "step-000025"]
    assert (tmp_path / "latest").read_text() == "step-000025\n"


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no manifest", "odd manifest"])
def test_a_damaged_one_is_skipped_with_a_line(folder: Path, name: str, damage: str) -> None:
    path = folder / "step-000012" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "cut":
        path.write_bytes(bytes(content[:-5]))
    elif damage == "flipped":
        path.write_bytes(bytes(content))
    elif damage == "missing":
        path.unlink()
    elif damage == "no manifest":
        (folder / "step-000012" / "manifest.json").unlink()
    else:
        (folder / "step-000012" / "manifest.json").write_text(json.dumps(["step"]))
    said: list[str] = []
    assert newest_checkpoint(folder, say=said.append) == folder / "step-000008"
    assert len(said) == 1
    assert said[0].startswith("skipped a checkpoint: ")
    assert "kept as step-000012.damaged.1" in said[0]
    # The next one of that step finds its name free.
    write_checkpoint(folder, snapshot(12), keep=Keep(2))
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000012"


def test_none_is_whole_or_there_is_none(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("step-*"):
        (path / "state.json").unlink()
    said: list[str] = []
    assert newest_checkpoint(folder, say=said.append) is None
    assert len(said) == 2
    assert newest_checkpoint(tmp_path / "none", say=pytest.fail) is None


@pytest.mark.parametrize("background", [False, True])
def test_what_cannot_be_written_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    writer = CheckpointWriter(folder, keep=Keep(2))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if background:
            writer.write(snapshot(16), background=True)
            with pytest.raises(CheckpointError, match="is the disk full"):
                writer.wait()
        else:
            with pytest.raises(CheckpointError, match="is the disk full"):
                writer.write(snapshot(16), background=False)
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000012"
    writer.write(snapshot(16), background=background)
    writer.wait()
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000016"


def test_training_goes_on_while_one_is_written(folder: Path) -> None:
    """What is written is what was handed over, one at a time."""
    writer = CheckpointWriter(folder, keep=Keep(3))
    for step in (16, 20):
        writer.write(snapshot(step), background=True)
    writer.wait()
    assert names(folder) == ["latest", "step-000012", "step-000016", "step-000020"]
    assert (folder / "latest").read_text() == "step-000020\n"
