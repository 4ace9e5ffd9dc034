"""Backbones of our own as embedders: a published artefact, or a network that was never trained."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.backbones.embedder import LAYERS
from evaluation.backbones.entry import SEEN, Entry, Loaded, Twin
from evaluation.backbones.lines import ArtefactLine
from evaluation.backbones.windowed import WindowedEmbedder
from foundation.backbone import Backbone, BackboneError, load_backbone, random_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import Crops, Vit3d, VitConfig
from foundation.windows import Layers, Tokens
from recipes.load import digest


def load_artefact(name: str, line: ArtefactLine, *, device: torch.device) -> Loaded:
    """A folder ``backbone/``, or whatever else ``load_backbone`` takes.

    Raises:
        BackboneError: It is missing, damaged, or does not tell what it was trained on.
    """
    backbone = load_backbone(line.artefact, device=str(device))
    assert backbone.loaded is not None
    return loaded(name, backbone, backbone.loaded.vit_config, where=line.artefact, device=device)


def loaded(
    name: str, backbone: Backbone, config: VitConfig, *, where: str, device: torch.device
) -> Loaded:
    """A pretrained backbone, and its untrained twins."""
    seen = _seen(backbone.provenance, where=where)
    about = {key: value for key, value in backbone.provenance.items() if key not in SEEN}
    entry = Entry(
        kind="backbone",
        title=name,
        description=f"pretrained on {len(seen['subjects'])} subjects, frozen",
        digest=backbone.digest,
        provenance=about,
        seen=seen,
        architecture=_architecture(config, backbone.preprocessing),
        embedder=embedder_of(backbone, device=device),
    )
    return Loaded(entry, _twin(config, backbone.preprocessing, device=device))


def load_twin(folder: Path, *, device: torch.device) -> tuple[str, Twin]:
    """The architecture of a published backbone, and what makes an untrained one of it."""
    backbone = load_backbone(folder)
    assert backbone.loaded is not None
    config = backbone.loaded.vit_config
    architecture = _architecture(config, backbone.preprocessing)
    return architecture, _twin(config, backbone.preprocessing, device=device)


def embedder_of(backbone: Backbone, *, device: torch.device) -> WindowedEmbedder:
    """Its last blocks, over windows of the crop it was trained on.

    Raises:
        BackboneError: It takes several sequences at once, and a scan is one.
    """
    vit: Vit3d = backbone.vit
    if vit.in_chans != 1:
        raise BackboneError(
            f"it takes {vit.in_chans} sequences at once (in_chans), and evaluation embeds each "
            "scan by itself; pretrain one with a single channel"
        )

    def network(windows: Tensor, spacing_mm: Tensor) -> Layers:
        layers = vit.last_layers(Crops(windows, spacing_mm), num=LAYERS)
        return [Tokens(*each) for each in layers]

    return WindowedEmbedder(
        network=network,
        preprocessing=backbone.preprocessing,
        patch_size=vit.patch_size,
        digest=backbone.digest,
        device=device,
    )


def _twin(config: VitConfig, preprocessing: Preprocessing, *, device: torch.device) -> Twin:
    def untrained(seed: int) -> WindowedEmbedder:
        random = random_backbone(config, preprocessing=preprocessing, seed=seed)
        return embedder_of(random.to(device), device=device)

    return untrained


def _architecture(config: VitConfig, preprocessing: Preprocessing) -> str:
    return digest([config.model_dump(mode="json"), preprocessing.model_dump(mode="json")])


def _seen(provenance: dict[str, Any], *, where: str) -> dict[str, list[str]]:
    needed = ("subjects", "source_digests")
    if missing := [key for key in needed if key not in provenance]:
        raise BackboneError(
            f"{where}: its provenance.json does not list {' and '.join(missing)}, so nobody can "
            "say whether it has seen what it is scored on; pretrain it again with this version"
        )
    return {key: list(provenance[key]) for key in SEEN if key in provenance}
