"""To a folder: the whole artefact appears at once, or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import nn

from foundation.artefact.golden import golden_pair
from foundation.artefact.head import HeadSettings, Tuned
from foundation.artefact.layout import (
    CARD,
    CONFIG,
    FILES,
    GOLDEN,
    HEAD,
    HEAD_FILES,
    HEAD_SETTINGS,
    PREPROCESSING,
    PROVENANCE,
    RECIPE,
    SUMS,
    VERSION,
    WEIGHTS,
)
from foundation.artefact.tensors import write_tensors
from foundation.artefact.versions import SCHEMA_VERSION
from foundation.finetuning.network import TunedNetwork
from foundation.preprocessing import Preprocessing
from foundation.running.card import model_card
from foundation.running.files import sync_tree
from foundation.vit import Vit3d, VitConfig, build_vit
from shards.files import fresh_folder, publish_folder, sha256_of, write_json, write_text

Network = TypeVar("Network", bound=nn.Module)


def save_backbone(
    folder: str | Path,
    *,
    vit: Vit3d,
    vit_config: VitConfig,
    preprocessing: Preprocessing,
    recipe: dict[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Publish a backbone: the whole folder appears at once, or not at all.

    Args:
        folder: Replaced if it exists.
        vit: Trained weights; stored as float32.
        vit_config: Builds the same network again.
        preprocessing: The contract its inputs obey.
        recipe: The resolved recipe, JSON-like.
        provenance: How it came to be, JSON-like.
    """
    _save(
        Path(folder),
        vit=_frozen(build_vit(vit_config), vit),
        vit_config=vit_config,
        preprocessing=preprocessing,
        recipe=recipe,
        provenance=provenance,
        tuned=None,
    )


def save_model(
    folder: str | Path,
    *,
    vit: Vit3d,
    vit_config: VitConfig,
    preprocessing: Preprocessing,
    head: nn.Module,
    settings: HeadSettings,
    recipe: dict[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Publish a fine-tuned model: a backbone, and its head or decoder beside it.

    Args:
        folder: Replaced if it exists.
        vit: Trained weights under their plain names, adapters merged; stored as float32.
        vit_config: Builds the same network again.
        preprocessing: The contract its inputs obey.
        head: Trained weights of the head or the decoder; stored as float32.
        settings: Builds the same head again, and says what its outputs mean.
        recipe: The resolved recipe, JSON-like.
        provenance: How it came to be, JSON-like; ``foundation.running.tuned_card`` says what of it
            the card tells.
    """
    plain = _frozen(build_vit(vit_config), vit)
    built = _frozen(settings.build(plain), head)
    network = TunedNetwork(plain, built, settings.target).eval()
    _save(
        Path(folder),
        vit=plain,
        vit_config=vit_config,
        preprocessing=preprocessing,
        recipe=recipe,
        provenance=provenance,
        tuned=Tuned(settings, network, len(built.state_dict())),
    )


def _save(
    folder: Path,
    *,
    vit: Vit3d,
    vit_config: VitConfig,
    preprocessing: Preprocessing,
    recipe: dict[str, Any],
    provenance: Mapping[str, Any],
    tuned: Tuned | None,
) -> None:
    beside = fresh_folder(folder)
    write_json(beside / CONFIG, {VERSION: SCHEMA_VERSION, "vit": vit_config.model_dump()})
    _write_weights(vit, beside / WEIGHTS)
    if tuned is not None:
        _write_weights(tuned.network.head, beside / HEAD)
        # Keys are not sorted: the values of a mask follow the order of the outputs.
        content = tuned.settings.model_dump(mode="json")
        write_text(beside / HEAD_SETTINGS, json.dumps(content, indent=1) + "\n")
    write_tensors(golden_pair(vit, tuned=tuned), beside / GOLDEN, mode_of=beside / CONFIG)
    write_json(beside / PREPROCESSING, preprocessing.model_dump())
    write_text(beside / RECIPE, yaml.safe_dump(recipe, sort_keys=False, width=100))
    write_json(beside / PROVENANCE, dict(provenance))
    card = model_card(
        vit_config,
        preprocessing=preprocessing,
        provenance=provenance,
        recipe=recipe,
        settings=tuned.settings if tuned else None,
    )
    write_text(beside / CARD, card)
    seal(beside)
    sync_tree(beside)
    publish_folder(beside, folder)


def seal(folder: Path) -> None:
    """Write SHA256SUMS over the files that are there now."""
    names = [*FILES, *(name for name in HEAD_FILES if (folder / name).exists())]
    sums = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    write_text(folder / SUMS, sums)


def _frozen(empty: Network, trained: nn.Module) -> Network:
    """The weights of a network, float32 on the CPU, in one that no training holds on to."""
    weights = {name: tensor.float().cpu() for name, tensor in trained.state_dict().items()}
    empty.load_state_dict(weights)
    return empty.eval()


def _write_weights(network: nn.Module, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_tensors(weights, path, mode_of=path.with_name(CONFIG))
