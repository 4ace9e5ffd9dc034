"""To a folder: the whole artefact appears at once, or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from foundation.artefact.golden import golden_pair
from foundation.artefact.layout import (
    CARD,
    CONFIG,
    FILES,
    GOLDEN,
    PREPROCESSING,
    PROVENANCE,
    RECIPE,
    SUMS,
    VERSION,
    WEIGHTS,
)
from foundation.artefact.tensors import write_tensors
from foundation.artefact.versions import SCHEMA_VERSION
from foundation.preprocessing import Preprocessing
from foundation.running.card import model_card
from foundation.running.files import sync_tree
from foundation.vit import Vit3d, VitConfig, build_vit
from shards.files import fresh_folder, publish_folder, sha256_of, write_json, write_text


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
    folder = Path(folder)
    beside = fresh_folder(folder)
    frozen = build_vit(vit_config)
    frozen.load_state_dict({name: t.float().cpu() for name, t in vit.state_dict().items()})
    write_json(beside / CONFIG, {VERSION: SCHEMA_VERSION, "vit": vit_config.model_dump()})
    weights = {name: tensor.contiguous() for name, tensor in frozen.state_dict().items()}
    write_tensors(weights, beside / WEIGHTS, mode_of=beside / CONFIG)
    write_tensors(golden_pair(frozen.eval()), beside / GOLDEN, mode_of=beside / CONFIG)
    write_json(beside / PREPROCESSING, preprocessing.model_dump())
    write_text(beside / RECIPE, yaml.safe_dump(recipe, sort_keys=False, width=100))
    write_json(beside / PROVENANCE, dict(provenance))
    card = model_card(vit_config, preprocessing=preprocessing, provenance=provenance, recipe=recipe)
    write_text(beside / CARD, card)
    seal(beside)
    sync_tree(beside)
    publish_folder(beside, folder)


def seal(folder: Path) -> None:
    """Write SHA256SUMS over the files that are there now."""
    sums = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(FILES))
    write_text(folder / SUMS, sums)
