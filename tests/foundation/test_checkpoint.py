"""A checkpoint is whole or it is not used, and the one before it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from foundation.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
)


class Engine:
    """Saves like DeepSpeed does, and remembers what it was asked to load."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.loaded: tuple[Path, str] | None = None

    def save_checkpoint(self, folder: Path, *, tag: str, save_latest: bool) -> None:
        assert not save_latest
        (folder / tag).mkdir()
        (folder / tag / "weights.pt").write_bytes(b"weights " * 100)
        if self.fails:
            raise OSError("No space left on device")

    def load_checkpoint(self, folder: Path, *, tag: str) -> None:
        self.loaded = (folder, tag)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    checkpoints = tmp_path / "checkpoints"
    for step in (4, 8, 12):
        state = {"position": step * 16}
        save_checkpoint(checkpoints, step=step, engine=Engine(), state=state, keep=2)
    yield checkpoints
    dist.destroy_process_group()


def test_the_newest_two_are_kept_and_named(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step-000008",
        "step-000012",
    ]
    assert (folder / "latest").read_text() == "step-000012\n"


def test_the_newest_one_comes_back(folder: Path) -> None:
    found = newest_checkpoint(folder, say=pytest.fail)
    assert found == folder / "step-000012"
    assert read_state(found) == {"schema_version": 1, "step": 12, "position": 192}
    engine = Engine()
    load_checkpoint(found, engine=engine)
    assert engine.loaded == (found, "deepspeed")


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "deepspeed" / "weights.pt"
    content = bytearray(file.read_bytes())
    content[17] ^= 4
    file.write_bytes(content)


def cut(checkpoint: Path) -> None:
    file = checkpoint / "deepspeed" / "weights.pt"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "deepspeed" / "weights.pt").unlink()


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (flip_a_bit, "not the bytes that were written"),
        (cut, "799 bytes, expected 800 bytes"),
        (lose_a_file, "missing, expected"),
        (lose_the_manifest, "manifest.json is missing or unreadable"),
        (empty_the_manifest, "does not list state.json"),
    ],
)
def test_a_damaged_one_is_skipped_aloud_and_kept(folder: Path, damage, line: str) -> None:
    damage(folder / "step-000012")
    said: list[str] = []
    assert newest_checkpoint(folder, say=said.append) == folder / "step-000008"
    assert len(said) == 1
    assert line in said[0]
    assert (folder / "step-000012.damaged.1").is_dir()
    # The step can be written again.
    save_checkpoint(folder, step=12, engine=Engine(), state={}, keep=2)
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000012"


def test_no_whole_checkpoint_at_all(folder: Path) -> None:
    for checkpoint in folder.glob("step-*"):
        flip_a_bit(checkpoint)
    said: list[str] = []
    assert newest_checkpoint(folder, say=said.append) is None
    assert len(said) == 2


def test_a_write_that_fails_leaves_the_one_before(folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, step=16, engine=Engine(fails=True), state={}, keep=2)
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000012"
    # The next attempt is not disturbed by what the failed one left.
    save_checkpoint(folder, step=16, engine=Engine(), state={}, keep=2)
    assert newest_checkpoint(folder, say=pytest.fail) == folder / "step-000016"
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step-000012",
        "step-000016",
    ]


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", say=pytest.fail) is None
