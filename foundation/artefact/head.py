"""What a fine-tuned model holds beside its backbone: ``head.json`` and ``head.safetensors``."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from foundation.artefact.layout import HEAD, HEAD_SETTINGS, BackboneError
from foundation.artefact.tensors import read_header
from foundation.artefact.texts import read_json, section_of
from foundation.artefact.weights import with_weights
from foundation.finetuning.calibration import Calibration
from foundation.finetuning.decoders import DecoderConfig, build_decoder
from foundation.finetuning.heads import HeadConfig, build_head
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.vit import Crops, Vit3d
from recipes.load import Section

_MOST_OUTPUTS = 4096
_LARGEST_VALUE = np.iinfo(np.uint16).max


class HeadSettings(Section):
    """Of ``head.json``: a head for labels of a scan, or a decoder for masks."""

    target: Target
    head: HeadConfig | None = None
    decoder: DecoderConfig | None = None
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _check(self) -> "HeadSettings":
        if (self.head is None) == (self.decoder is None):
            raise ValueError("either head or decoder, one of them")
        if (self.decoder is not None) != (self.target.kind == "segmentation"):
            raise ValueError(f"kind {self.target.kind}: a decoder is for a segmentation only")
        if not 1 <= self.target.num_logits <= _MOST_OUTPUTS:
            raise ValueError(
                f"{self.target.num_logits} outputs of a head, 1 to {_MOST_OUTPUTS} are possible"
            )
        _check_names(self.target)
        _check_calibration(self.calibration, self.target)
        return self

    def build(self, vit: Vit3d) -> nn.Module:
        """A head or decoder for the tokens of ``vit``, freshly initialised."""
        if self.decoder is not None:
            return build_decoder(self.decoder, vit=vit, num_logits=self.target.num_logits)
        assert self.head is not None, "one of the two is there"
        return build_head(self.head, embed_dim=vit.embed_dim, target=self.target)


class Tuned(NamedTuple):
    """A network with its head, and what they are."""

    settings: HeadSettings
    network: TunedNetwork
    num_tensors: int
    """of the head"""


def read_head(folder: Path, vit: Vit3d) -> Tuned:
    """The head of a folder whose sums are verified, on its own backbone.

    Raises:
        BackboneError: Its settings are none, or its tensors not those they ask for.
    """
    settings = section_of(folder / HEAD_SETTINGS, HeadSettings, read_json(folder / HEAD_SETTINGS))
    path = folder / HEAD
    header = read_header(path)
    head = with_weights(
        lambda: settings.build(vit), path, header=header, described_by=HEAD_SETTINGS
    )
    for name, tensor in head.state_dict().items():
        if not tensor.isfinite().all():
            raise BackboneError(f"{path}: {name!r} holds values that are not finite")
    network = TunedNetwork(vit, head, settings.target).eval()
    return Tuned(settings, network, len(header))


def logits_of(network: TunedNetwork, volume: Tensor, spacing_mm: Tensor | None) -> Tensor:
    """(B, num_logits) of whole volumes, or (B, num_logits, D, H, W) of a segmentation.

    Args:
        network: In evaluation mode.
        volume: (B, C, D, H, W) in [-1, 1], no padding in it.
        spacing_mm: (B, 3).
    """
    crops = Crops(volume, spacing_mm)
    with torch.inference_mode():
        if network.target.kind == "segmentation":
            return network.dense(crops).clone()
        inside = torch.ones_like(volume[:, :1], dtype=torch.bool)
        return network.pooled(crops, inside=inside, bag_size=1).clone()


def _check_names(target: Target) -> None:
    """As many of them as the kind has, each once: they become columns of a table."""
    outputs, classes = target.outputs, target.classes
    if target.kind in ("binary", "regression", "survival") and len(outputs) != 1:
        raise ValueError(f"target: {target.kind} has 1 outputs, got {len(outputs)}")
    num_classes = {"binary": 2, "regression": 0, "survival": 0, "segmentation": 0}
    expected = num_classes.get(target.kind, len(outputs))
    # A segmentation may name its classes twice, as its outputs are these.
    if len(classes) != expected and not (target.kind == "segmentation" and classes == outputs):
        raise ValueError(f"target: {target.kind} has {expected} classes, got {len(classes)}")
    if any(len(set(names)) < len(names) for names in (outputs, classes)):
        raise ValueError("target: a name of an output or a class stands twice")
    if any(not 1 <= value <= _LARGEST_VALUE for value in target.mask_values.values()):
        raise ValueError(f"target: a value in a mask is from 1 to {_LARGEST_VALUE}")


def _check_calibration(calibration: Calibration | None, target: Target) -> None:
    if calibration is None:
        return
    count = len(target.outputs) if target.kind == "multilabel" else 1
    for name in ("temperatures", "limits"):
        found = getattr(calibration, name)
        if len(found) not in (0, count):
            raise ValueError(f"calibration.{name}: {len(found)} values, expected {count}")
