"""The jobs that are disturbed: real commands on toy inputs, and what must come out of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

STEPS, EVERY = 6, 2
FROZEN_S = 10.0  # after which ranks give up one that is silent

# Durations, dates and what follows from them: all else must be the same to the last byte.
_TIMES = {
    "seconds",
    "wall_s",
    "scans_per_s",
    "tokens_per_s",
    "memory_bytes",
    "ranks",
    "straggler",
    "hours",
    "finished",
}
_TIMED = ("| compute", "| energy", "| finished")  # lines of a card
_DIGESTED_TIMES = {"provenance.json", "README.md", "SHA256SUMS"}


class Command(NamedTuple):
    """``python -m MODULE WORDS`` on so many ranks."""

    module: str
    words: tuple[str, ...]
    ranks: int = 1


class Job(NamedTuple):
    """Commands that are run one after the other, all of them again after a fault."""

    name: str
    commands: tuple[Command, ...]
    out: Path
    """the finished result: a folder of shards, or a run"""
    inputs: Path
    """what it reads: one file of it may be lost for a while"""
    pattern: str
    """of those files"""

    @property
    def ranks(self) -> int:
        return max(command.ranks for command in self.commands)

    @property
    def trains(self) -> bool:
        return self.out.parent.name == "runs"


def make_jobs(inputs: Path, place: Path) -> dict[str, Job]:
    """Write the inputs and recipes of all jobs; the results will lie below ``place``."""
    from recipes.load import to_yaml
    from tests.shards.conftest import recipe, write_archive

    archive = write_archive(inputs / "archive")
    config = recipe(
        archive, out=str(place / "shards"), max_rejected_fraction=0.0, shard_size_mb=0.004
    )
    path = inputs / "shards.yaml"
    path.write_text(to_yaml(config))
    pool = (Command("shards.build", (str(path), "workers=1")),)
    words = [(str(path), f"part={part}") for part in ("0/2", "1/2", "merge")]
    about = (place / "shards", archive, "*/case_*.nii.gz")
    builds = [
        Job("build", (Command("shards.build", (str(path),)),), *about),
        Job("pool", pool, *about),
        Job("parts", tuple(Command("shards.build", each) for each in words), *about),
    ]
    folder = _toy_shards(inputs / "toy")
    trainings = [
        _training("mae", folder, inputs, place, ranks=1, stage=0, mae=_MAE),
        _training("dino", folder, inputs, place, ranks=1, stage=2, dino=_DINO),
        _training("mae2", folder, inputs, place, ranks=2, stage=0, mae=_MAE),
        _training("dino2", folder, inputs, place, ranks=2, stage=1, dino=_DINO),
    ]
    return {job.name: job for job in [*builds, *trainings]}


_MAE = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2}
_DINO = {
    "head": {"num_prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 8},
    "local_crops": {"num_crops": 2, "shape": [8, 8, 8]},
    "freeze_last_layer_steps": 2,
}


def _training(
    name: str, shards: Path, inputs: Path, place: Path, *, ranks: int, stage: int, **method: Any
) -> Job:
    tree = {
        "name": name,
        "shards": str(shards),
        "out": str(place / "runs"),
        "vit": {"size": "toy", "patch_size": [8, 8, 4], "depth": 1, "drop_path_rate": 0.2},
        "preprocessing": {"crop_shape": [16, 24, 12]},
        "train": {"steps": STEPS, "global_batch": 4, "timeout_s": FROZEN_S},
        "optimiser": {"lr": 1e-3, "warmup_steps": 2, "clip": 1.0, "weight_decay_end": 0.1},
        "deepspeed": {"stage": stage},
        "checkpoint": {"every_steps": EVERY, "keep": 2},
        **method,
    }
    path = inputs / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    command = Command("foundation.pretrain", (str(path),), ranks)
    return Job(name, (command,), place / "runs" / name, shards, "*.tar")


def _toy_shards(folder: Path) -> Path:
    """Six small scans of three subjects in several tars."""
    from shards.index import VOLUME
    from tests.written_shards import Written, write_shards

    random = np.random.default_rng(0)
    samples = []
    for number in range(6):
        steps = random.integers(-500, 500, (18 + number, 26, 20))
        voxels = steps.cumsum(axis=0).clip(-1000, 1000).astype(np.int16)
        samples.append(Written({VOLUME: voxels}, subject=str(number // 2)))
    return write_shards(folder, samples, shard_size_mb=0.03)


def result_of(job: Job) -> dict[str, Any]:
    """All of a finished job that must not depend on what happened on the way, by name.

    Raises:
        ValueError: A file of the backbone is not the one that ``SHA256SUMS`` names.
    """
    if not job.trains:
        return {path.name: path.read_bytes() for path in sorted(job.out.iterdir())}
    backbone = job.out / "backbone"
    found: dict[str, Any] = {
        path.name: path.read_bytes()
        for path in backbone.iterdir()
        if path.name not in _DIGESTED_TIMES
    }
    for line in (backbone / "SHA256SUMS").read_text().splitlines():
        expected, _, name = line.partition("  ")
        if hashlib.sha256((backbone / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"{name} is not what SHA256SUMS names")
    found["provenance"] = _timeless(json.loads((backbone / "provenance.json").read_text()))
    card = (backbone / "README.md").read_text().splitlines()
    found["card"] = [line for line in card if not line.startswith(_TIMED)]
    for number, text in enumerate((job.out / "log.jsonl").read_text().splitlines(), start=1):
        for name, value in _timeless(json.loads(text)).items():
            found[f"{name} in line {number} of the log"] = value
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _timeless(each) for name, each in value.items() if name not in _TIMES}
    return value


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it should be."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]
