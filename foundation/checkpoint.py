"""Checkpoints of a run: each is one transaction, and a run resumes from it as if never stopped.

``checkpoints/step-000120/`` holds DeepSpeed's files (weights, optimiser, teacher, centres),
``state.json`` (counters, digests) and ``manifest.json`` (size and SHA-256 of every file). Random
numbers need no state: they follow from positions in the stream. A checkpoint is written beside,
synced, renamed, and only then does ``latest`` name it, for people and tools: a run resumes from
whichever whole one has most steps. DeepSpeed's files are pickles: they are read only from the run's
own folder, and only as the bytes this run wrote.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from foundation.running.files import numbered, sync_tree
from foundation.running.ranks import from_rank_zero
from shards.files import publish_folder, sha256_of, write_json, write_text

SCHEMA_VERSION = 1

STATE, MANIFEST, LATEST = "state.json", "manifest.json", "latest"
_TAG = "deepspeed"
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


def save_checkpoint(
    folder: Path, *, step: int, engine: Any, state: dict[str, Any], keep: int
) -> None:
    """Write the checkpoint of ``step`` updates; every rank calls it.

    Args:
        folder: ``checkpoints/`` of the run.
        step: Updates done.
        engine: DeepSpeed's; its module's ``state_dict`` holds all that a method needs to go on.
        state: JSON-like; comes back from :func:`read_state`.
        keep: Whole checkpoints to keep; older ones are removed.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".{final.name}.tmp"
    from_rank_zero(lambda: _empty(beside))
    try:
        engine.save_checkpoint(beside, tag=_TAG, save_latest=False)
    except RuntimeError as error:  # torch's way to tell of a full disk
        raise CheckpointError(
            f"{beside}: could not be written, is the disk full? ({error})"
        ) from error
    dist.barrier()
    content = {**state, "schema_version": SCHEMA_VERSION, "step": step}
    from_rank_zero(lambda: _publish(beside, final, state=content, keep=keep))


def newest_checkpoint(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint that is whole, byte for byte; None where there is none.

    Damaged ones are left where they are under another name, and ``say`` is told.
    """
    for path in sorted(_checkpoints(folder), key=_step_of, reverse=True):
        try:
            _verify(path)
        except CheckpointError as error:
            aside = numbered(path.with_name(f"{path.name}.damaged"))
            path.rename(aside)
            say(f"skipped a checkpoint: {error}; kept as {aside.name}, using the one before")
        else:
            return path
    return None


def read_state(path: Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` was given, and ``step``."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def load_checkpoint(path: Path, *, engine: Any) -> None:
    """Bring the engine back to a checkpoint of as many ranks; every rank calls it."""
    engine.load_checkpoint(path, tag=_TAG)


def _publish(beside: Path, final: Path, *, state: dict[str, Any], keep: int) -> None:
    write_json(beside / STATE, state)
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(beside)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
    }
    write_json(beside / MANIFEST, manifest)
    sync_tree(beside)
    publish_folder(beside, final)
    write_text(final.parent / LATEST, f"{final.name}\n")
    for old in sorted(_checkpoints(final.parent), key=_step_of)[:-keep]:
        shutil.rmtree(old)


def _verify(path: Path) -> None:
    """Raises CheckpointError unless every file is there as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: its {MANIFEST} is missing or unreadable") from None
    if STATE not in manifest:
        raise CheckpointError(f"{path}: its {MANIFEST} does not list {STATE}")
    for name, expected in manifest.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise CheckpointError(f"{file}: {found}, expected {expected['bytes']} bytes")
        if sha256_of(file) != expected["sha256"]:
            raise CheckpointError(f"{file}: not the bytes that were written (SHA-256 differs)")
    version = read_state(path).get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}")


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
