"""What must hold before a job may start; each check is one clear line when it fails."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

_SPACING_TOLERANCE_MM = 1e-3
_OPTIMISER_COPIES = 2


class JobError(ValueError):
    """A job that could not finish, or would not do what its recipe says."""


class Portions(NamedTuple):
    """How an update's scans are divided."""

    micro_batch: int
    """scans of one forward on one rank"""
    accumulation: int
    """forwards of one update"""


def portions_of(
    global_batch: int, *, micro_batch: int | None, world_size: int, group: int | None = None
) -> Portions:
    """Divide an update's scans evenly; without ``micro_batch`` each rank takes its share at once.

    Args:
        global_batch: Scans of an update, over all ranks.
        micro_batch: Scans of one forward on one rank.
        world_size: Number of ranks.
        group: Scans that a run in progress compares with each other, micro batch x ranks; it stays
            what it was, whatever the number of ranks, and goes before ``micro_batch``.

    Raises:
        JobError: An update would not see ``global_batch`` scans, or the group cannot be shared.
    """
    if group is not None:
        if group % world_size:
            raise JobError(
                f"this run compares {group} scans with each other, which {world_size} ranks cannot "
                f"share evenly; launch a number of ranks that divides {group}"
            )
        micro_batch = group // world_size
    together = world_size * (micro_batch or 1)
    if global_batch % together:
        each = f"micro_batch {micro_batch} x " if micro_batch else ""
        raise JobError(
            f"train.global_batch: {global_batch} scans are not a whole number of {together} "
            f"({each}{world_size} ranks); change one of them"
        )
    share = global_batch // world_size
    micro_batch = micro_batch or share
    return Portions(micro_batch, share // micro_batch)


def check_channels(in_chans: int, *, sequences: Sequence[str]) -> None:
    """The backbone takes as many channels as the recipe reads sequences."""
    if in_chans != len(sequences):
        raise JobError(
            f"vit.in_chans: {in_chans}, but reading.sequences names {len(sequences)} "
            f"({', '.join(sequences)}); set it to that"
        )


def check_spacing(
    spacing_mm: Sequence[float] | None, *, dataset: dict[str, Any], shards: str
) -> None:
    """The contract that is published must be what the shards were made with."""
    stored = dataset["spacing_mm"]
    if (stored is None) != (spacing_mm is None):
        same = False
    elif stored is None or spacing_mm is None:
        same = True
    else:
        pairs = zip(stored, spacing_mm, strict=True)
        same = all(abs(a - b) <= _SPACING_TOLERANCE_MM for a, b in pairs)
    if not same:
        raise JobError(
            f"preprocessing.spacing_mm: {_spacing(spacing_mm)}, but {shards} was built with "
            f"{_spacing(stored)}; set it to that, or build the shards again"
        )


def check_folder(folder: Path) -> None:
    """The folder, which need not exist, can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise JobError(f"{folder}: cannot be written ({error}); choose another out") from None


def check_space(folder: Path, *, method: nn.Module, keep: int) -> None:
    """The disk holds the checkpoints to keep, the one being written and the backbone."""
    size = sum(tensor.nbytes for tensor in method.state_dict().values())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    needed = (keep + 1) * (size + _OPTIMISER_COPIES * trained) + size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise JobError(
            f"{folder}: {free / 1e9:.1f} GB free, {keep + 1} checkpoints and the backbone need "
            f"{needed / 1e9:.1f} GB; free some, lower checkpoint.keep, or choose another out"
        )


def device_name(device: torch.device) -> str:
    """For people: the GPU's product name, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _spacing(spacing_mm: Sequence[float] | None) -> str:
    if spacing_mm is None:
        return "null (each scan's own)"
    return f"[{', '.join(f'{value:g}' for value in spacing_mm)}] mm"
