"""Damage to files that a stopped job left behind, or to what it has finished."""

import json
from pathlib import Path

import numpy as np


def damage(path: Path, random: np.random.Generator, *, keep_bytes: int = 0) -> str:
    """Cut a file, or flip bits of up to eight of its bytes; says what was done.

    Args:
        path: Not an empty file.
        random: Decides.
        keep_bytes: At the file's start are left alone.
    """
    content = bytearray(path.read_bytes())
    left = len(content) - keep_bytes
    if keep_bytes or random.random() < 0.4:
        size = keep_bytes + int(random.integers(left))
        path.write_bytes(content[:size])
        return f"cut {path.name} from {len(content)} to {size} bytes"
    places = random.integers(len(content), size=int(random.integers(1, 9))).tolist()
    for place in places:
        content[place] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    return f"flipped bits of {path.name} at {sorted(set(places))}"


def rewrite(path: Path, content: bytes) -> None:
    """Bring back a file, or a damaged checkpoint's that was moved aside."""
    if path.parent.is_dir():
        path.write_bytes(content)


def synced_bytes(path: Path) -> int:
    """Of a log, what a checkpoint has brought to the disk, which no power cut takes away."""
    if path.name != "log.jsonl":
        return 0
    names = [each.name[5:] for each in path.parent.glob("checkpoints/step-*")]
    steps = [int(name) for name in names if name.isdecimal()]
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > max(steps, default=0):
            break
        kept += len(line)
    return kept


def is_detected(folder: Path) -> bool:
    """Whoever loads the backbone, or verifies the shards, is told."""
    from foundation.backbone import BackboneError, load_backbone
    from shards.verify import verify

    if folder.name != "backbone":
        try:
            return bool(list(verify(folder)))
        except ValueError:
            return True
    try:
        load_backbone(folder)
    except BackboneError:
        return True
    return False
