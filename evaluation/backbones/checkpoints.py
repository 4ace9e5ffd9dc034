"""A checkpoint of a run as a backbone, without an export: what training has come to so far.

The run's folder is read and nothing else: a damaged checkpoint is passed over where it lies, so a
run that is still going on is not disturbed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from evaluation.backbones.embedder import EmbedderError
from evaluation.backbones.entry import Loaded
from evaluation.backbones.lines import RunLine
from evaluation.backbones.own import loaded
from foundation import checkpoint as checkpoints
from foundation.backbone import Backbone
from foundation.beginning.initial import kept_beginning, with_beginning
from foundation.checkpoint import CheckpointError
from foundation.methods import HAS_TEACHER, build_method
from foundation.recipe import PretrainConfig
from foundation.running.provenance import seen_in, shards_of
from foundation.running.runs import CHECKPOINTS, RUN, read_run
from foundation.running.saving import restore_weights
from foundation.vit import Vit3d, build_vit
from recipes.load import digest, parse
from shards.streaming.corpus import open_corpus
from shards.streaming.reading import folder_list

_STEP = "step-"


class _Chosen(NamedTuple):
    path: Path
    step: int
    weights_sha256: str


def load_run(name: str, line: RunLine, *, device: torch.device) -> Loaded:
    """The backbone in a checkpoint.

    Raises:
        ValueError: No run or no whole checkpoint there, weights that the method does not have, or
            shards that are no longer what the run was begun with.
    """
    if not (line.run / RUN).is_file():
        raise EmbedderError(f"{line.run}: no run here ({RUN} is missing); give runs/NAME")
    facts = read_run(line.run)
    config = parse(facts["recipe"], PretrainConfig, where=str(line.run / RUN))
    chosen = _chosen(line)
    vit = _network(config, chosen.path, weights=line.weights, where=str(line.run))
    identity = {
        "weights": chosen.weights_sha256,
        "of": line.weights,
        "vit": config.vit.model_dump(mode="json"),
        "preprocessing": config.preprocessing.model_dump(mode="json"),
    }
    backbone = Backbone(
        vit,
        preprocessing=config.preprocessing,
        digest=digest(identity),
        provenance=_provenance(line, config, facts, step=chosen.step),
    )
    return loaded(name, backbone.to(device), config.vit, where=str(line.run), device=device)


def _chosen(line: RunLine) -> _Chosen:
    """The checkpoint of the step, or the newest that is whole and healthy."""
    folder = line.run / CHECKPOINTS
    steps = sorted(
        (int(path.name.removeprefix(_STEP)) for path in folder.glob(f"{_STEP}*") if _is_one(path)),
        reverse=True,
    )
    if line.step is not None:
        if line.step not in steps:
            there = ", ".join(map(str, reversed(steps))) or "none"
            raise EmbedderError(f"{folder}: no checkpoint of step {line.step}; it has {there}")
        return _verified(folder / checkpoints.step_name(line.step))
    for step in steps:
        try:
            found = _verified(folder / checkpoints.step_name(step))
        except CheckpointError as error:
            print(f"passed over a checkpoint: {error}", flush=True)
        else:
            if checkpoints.read_state(found.path).get("healthy", True):
                return found
    raise EmbedderError(f"{folder}: no whole and healthy checkpoint yet; name a step")


def _is_one(path: Path) -> bool:
    """Not one that a resumed run has put aside as damaged."""
    return path.is_dir() and path.name.removeprefix(_STEP).isdecimal()


def _verified(path: Path) -> _Chosen:
    checkpoints.verify_checkpoint(path)
    manifest = json.loads((path / checkpoints.MANIFEST).read_text(encoding="utf-8"))
    step = int(checkpoints.read_state(path)["step"])
    return _Chosen(path, step, manifest[checkpoints.WEIGHTS]["sha256"])


def _network(config: PretrainConfig, path: Path, *, weights: str | None, where: str) -> Vit3d:
    if weights is not None and config.method_name not in HAS_TEACHER:
        raise EmbedderError(
            f"{where}: {config.method_name} has no student and teacher; leave weights out"
        )
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


def _provenance(
    line: RunLine, config: PretrainConfig, facts: Mapping[str, Any], *, step: int
) -> dict[str, Any]:
    """As an export's, of so many steps; a checkpoint says neither when nor how long."""
    corpus = open_corpus(
        folder_list(config.shards),
        plan=config.plan,
        seed=config.seed,
        cache=config.reading.cache,
    )
    if corpus.digest != facts["shards_digest"]:
        raise EmbedderError(
            f"{line.run}: its shards {config.shards} are not those the run was begun with (digest "
            f"{corpus.digest[:8]}, then {facts['shards_digest'][:8]}), so nobody can say what it "
            "has seen; bring them back, or score the exported backbone"
        )
    provenance = {
        "name": config.name,
        "method": config.method_name,
        "steps": step,
        "weights": line.weights,
        "scans_seen": step * config.train.global_batch,
        "recipe_digest": digest(config),
        "shards": shards_of(corpus),
        **seen_in(corpus.readers),
    }
    begun = kept_beginning(line.run)
    return with_beginning(provenance, begun) if begun else provenance
