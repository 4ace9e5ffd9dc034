"""A checkpoint of a run as a network: what training has come to so far, student or teacher.

The run's folder is read and nothing else: a damaged checkpoint is passed over where it lies, so a
run that is still going on is not disturbed. Checkpoints hold whole tensors, so it does not matter
under which ZeRO stage, and on how many ranks, they were trained.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from foundation import checkpoint as checkpoints
from foundation.checkpoint import CheckpointError
from foundation.methods import HAS_TEACHER, build_method
from foundation.recipe import PretrainConfig
from foundation.running.runs import CHECKPOINTS, RUN, read_run
from foundation.running.saving import restore_weights
from foundation.vit import Vit3d, build_vit
from recipes.load import parse

Weights = Literal["student", "teacher"]

_STEP = "step-"


class TrainedError(ValueError):
    """A run, or a checkpoint of it, that holds no such network."""


class Trained(NamedTuple):
    """The backbone in a checkpoint."""

    vit: Vit3d
    """float32, on the CPU"""
    config: PretrainConfig
    step: int
    weights: Weights | None
    """which of two networks; None: the one the method would publish"""
    sha256: str
    """of the checkpoint's weights"""
    facts: Mapping[str, Any]
    """what began the run"""


def read_trained(
    run: Path,
    *,
    step: int | None = None,
    weights: Weights | None = None,
    say: Callable[[str], None] = print,
) -> Trained:
    """The network of one checkpoint.

    Args:
        run: runs/NAME.
        step: Of the checkpoint; None: the newest that is whole and healthy.
        weights: Of a method with two networks; None: the one it would publish.
        say: Told what is passed over.

    Raises:
        TrainedError: No run or no such checkpoint there, or weights that the method does not have.
        CheckpointError: The checkpoint is damaged, or of another network.
        RunError: ``run.json`` is damaged.
        RecipeError: The run's recipe is of another version.
    """
    if not (run / RUN).is_file():
        raise TrainedError(f"{run}: no run here ({RUN} is missing); give runs/NAME")
    facts = read_run(run)
    config = parse(facts["recipe"], PretrainConfig, where=str(run / RUN))
    if weights is not None and config.method_name not in HAS_TEACHER:
        raise TrainedError(
            f"{run}: {config.method_name} has no student and teacher; leave weights out"
        )
    path = _chosen(run / CHECKPOINTS, step=step, say=say)
    manifest = json.loads((path / checkpoints.MANIFEST).read_text(encoding="utf-8"))
    return Trained(
        vit=_network(config, path, weights=weights),
        config=config,
        step=int(checkpoints.read_state(path)["step"]),
        weights=weights,
        sha256=manifest[checkpoints.WEIGHTS]["sha256"],
        facts=facts,
    )


def _chosen(folder: Path, *, step: int | None, say: Callable[[str], None]) -> Path:
    """The checkpoint of the step, or the newest that is whole and healthy."""
    steps = sorted(
        (int(path.name.removeprefix(_STEP)) for path in folder.glob(f"{_STEP}*") if _is_one(path)),
        reverse=True,
    )
    if step is not None:
        if step not in steps:
            there = ", ".join(map(str, reversed(steps))) or "none"
            raise TrainedError(f"{folder}: no checkpoint of step {step}; it has {there}")
        path = folder / checkpoints.step_name(step)
        checkpoints.verify_checkpoint(path)
        return path
    for number in steps:
        path = folder / checkpoints.step_name(number)
        try:
            checkpoints.verify_checkpoint(path)
        except CheckpointError as error:
            say(f"passed over a checkpoint: {error}")
        else:
            if checkpoints.read_state(path).get("healthy", True):
                return path
    raise TrainedError(f"{folder}: no whole and healthy checkpoint yet; name a step")


def _is_one(path: Path) -> bool:
    """Not one that a resumed run has put aside as damaged."""
    return path.is_dir() and path.name.removeprefix(_STEP).isdecimal()


def _network(config: PretrainConfig, path: Path, *, weights: Weights | None) -> Vit3d:
    with torch.random.fork_rng(devices=[]):
        method = build_method(
            config,
            vit=build_vit(config.vit),
            preprocessing=config.preprocessing,
            total_steps=config.train.steps,
            seed=config.seed,
        )
    assert isinstance(method, nn.Module)
    restore_weights(method, path)
    found: Any = method.backbone if weights is None else getattr(method, weights).backbone
    vit: Vit3d = found
    return vit.float()
