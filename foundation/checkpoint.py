"""Checkpoints of a run: each is one transaction, and a run resumes from it as if never stopped.

``checkpoints/step-000120/`` holds ``weights.safetensors`` (of the method: student, teacher,
centres), ``optimiser.safetensors`` (Adam's averages), ``state.json`` (counters, digests),
``recipe.yaml`` and ``manifest.json`` (size and SHA-256 of every file). Tensors are whole, whatever
ZeRO stage and number of ranks trained them, so any job can go on from them. Random numbers need no
state: they follow from positions in the stream.

A checkpoint is written beside, synced, renamed, and only then does ``latest`` name it, for people
and tools: a run resumes from whichever whole one has most steps.
"""

import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.running.files import numbered, sync_tree
from shards.files import publish_folder, sha256_of, write_json, write_text

SCHEMA_VERSION = 2

STATE, MANIFEST, LATEST, RECIPE = "state.json", "manifest.json", "latest", "recipe.yaml"
WEIGHTS, OPTIMISER = "weights.safetensors", "optimiser.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or written."""


@dataclass(frozen=True)
class Snapshot:
    """What a run is after ``step`` updates, in memory.

    Attributes:
        step: Updates done.
        weights: The method's ``state_dict``, whole.
        moments: Adam's averages, ``NAME/exp_avg`` and ``NAME/exp_avg_sq``.
        state: JSON-like; comes back from :func:`read_state`. ``healthy`` says that a run in
            trouble may roll back to here.
        recipe: The resolved recipe, YAML.
    """

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    state: Mapping[str, Any]
    recipe: str


@dataclass(frozen=True)
class Keep:
    """Which whole checkpoints stay: the last ones, milestones, and the last healthy one.

    Attributes:
        last: How many of the newest.
        every_steps: Those at multiples of it stay for good; None keeps none for that.
    """

    last: int
    every_steps: int | None = None


class CheckpointWriter:
    """Writes snapshots of one run, one at a time, while training goes on.

    The snapshot is a copy, so what training does meanwhile cannot reach it. An error comes out at
    the next call.
    """

    def __init__(self, folder: Path, *, keep: Keep) -> None:
        """Write below ``folder``, the run's ``checkpoints/``."""
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def write(self, snapshot: Snapshot, *, background: bool) -> None:
        """Write a checkpoint, now or beside what follows.

        Raises:
            CheckpointError: This one, or the one before it, could not be written.
        """
        self.wait()
        if not background:
            self._write(snapshot)
            self.wait()
            return
        self._thread = threading.Thread(target=self._write, args=[snapshot], name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Let what is being written become whole.

        Raises:
            CheckpointError: It could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be written, is the disk full? ({error})"
            ) from error

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self._folder, snapshot, keep=self._keep)
        except (OSError, SafetensorError) as error:
            self._error = error


def step_name(step: int) -> str:
    """Folder of the checkpoint after ``step`` updates."""
    return f"step-{step:06d}"


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: Keep) -> None:
    """Write, publish, and remove those that need not stay."""
    final = folder / step_name(snapshot.step)
    beside = folder / f".{final.name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(dict(snapshot.weights), beside / WEIGHTS)
    save_file(dict(snapshot.moments), beside / OPTIMISER)
    write_text(beside / RECIPE, snapshot.recipe)
    content = {**snapshot.state, "schema_version": SCHEMA_VERSION, "step": snapshot.step}
    write_json(beside / STATE, content)
    files = sorted(path for path in beside.iterdir() if path.is_file())
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    write_json(beside / MANIFEST, manifest)
    sync_tree(beside)
    publish_folder(beside, final)
    sync_tree(final.parent, deep=False)
    write_text(folder / LATEST, f"{final.name}\n")
    _remove_old(folder, keep=keep)


def newest_checkpoint(
    folder: Path, *, say: Callable[[str], None], healthy_before: int | None = None
) -> Path | None:
    """The last checkpoint that is whole, byte for byte; None where there is none.

    Damaged ones are left where they are under another name, and ``say`` is told.

    Args:
        folder: ``checkpoints/`` of the run.
        say: Told what is skipped.
        healthy_before: Take only one that was healthy, of fewer steps than this.
    """
    for path in sorted(_checkpoints(folder), key=_step_of, reverse=True):
        if healthy_before is not None and _step_of(path) >= healthy_before:
            continue
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            aside = numbered(path.with_name(f"{path.name}.damaged"))
            path.rename(aside)
            say(f"skipped a checkpoint: {error}; kept as {aside.name}, using the one before")
        else:
            if healthy_before is None or _is_healthy(path):
                return path
    return None


def forget_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of more than ``step`` updates: the run goes another way from there."""
    for path in _checkpoints(folder):
        if _step_of(path) > step:
            shutil.rmtree(path)
    write_text(folder / LATEST, f"{step_name(step)}\n")


def read_state(path: Path) -> dict[str, Any]:
    """What the snapshot's ``state`` was, and ``step``."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """The method's ``state_dict``, on the CPU."""
    return load_file(path / WEIGHTS)


def read_moments(path: Path) -> dict[str, Tensor]:
    """Adam's averages, on the CPU."""
    return load_file(path / OPTIMISER)


def _remove_old(folder: Path, *, keep: Keep) -> None:
    found = sorted(_checkpoints(folder), key=_step_of)
    stay = set(found[-keep.last :])
    if keep.every_steps:
        stay |= {path for path in found if _step_of(path) % keep.every_steps == 0}
    stay |= set([path for path in found if _is_healthy(path)][-1:])
    for old in set(found) - stay:
        shutil.rmtree(old)


def verify_checkpoint(path: Path) -> None:
    """Raises CheckpointError unless every file is there as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{path}: its {MANIFEST} is missing or unreadable") from None
    for name in {STATE, WEIGHTS, OPTIMISER} - set(expected):
        raise CheckpointError(f"{path}: its {MANIFEST} does not list {name}")
    for name, (num_bytes, digest) in expected.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != num_bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise CheckpointError(f"{file}: {found}, expected {num_bytes} bytes")
        if sha256_of(file) != digest:
            raise CheckpointError(f"{file}: not the bytes that were written (SHA-256 differs)")
    version = read_state(path).get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}")


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def _is_healthy(path: Path) -> bool:
    try:
        return bool(read_state(path).get("healthy", True))
    except (OSError, ValueError):  # damaged, which a resuming run will tell
        return False


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
