"""What an export holds: the network with named inputs and outputs, and an example of each input.

``volume`` (B, C, D, H, W) in [-1, 1], of the contract's crop; ``spacing_mm`` (B, 3) where positions
are in millimetres; ``present`` (B, C) where there are several channels. ``cls`` and ``mean`` (B, E)
and ``patch_tokens`` (B, N, E) come out. B is free, every other size is that of the contract.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foundation.backbone import Backbone
from foundation.vit import Vit3d

OUTPUTS = ("cls", "mean", "patch_tokens")
_SPACING_MM = (5.0, 1.5, 2.0)


class ConvertError(ValueError):
    """A backbone that cannot be converted, or an export that does not compute the same."""


class ExportedNetwork(nn.Module):
    """One call, tensors in and tensors out, of names that every format keeps."""

    def __init__(self, vit: Vit3d) -> None:
        super().__init__()
        self.vit = vit

    def forward(
        self, volume: Tensor, spacing_mm: Tensor | None = None, present: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The last layer's tokens after the final norm.

        Returns:
            ``cls`` (B, E), ``mean`` (B, E) over all patches of the crop, padding included, and
            ``patch_tokens`` (B, N, E) in raster order.
        """
        found = self.vit(volume, spacing_mm=spacing_mm, present=present)
        # Tensors of their own: the network's are views of one, which no one can save or hand on.
        cls, tokens = (each.clone(memory_format=torch.contiguous_format) for each in found)
        return {"cls": cls, "mean": tokens.mean(dim=1), "patch_tokens": tokens}


def frozen_network(backbone: Backbone) -> ExportedNetwork:
    """The network on the CPU, in evaluation mode, as it is exported and as exports are checked.

    Raises:
        ConvertError: The contract's crop is no whole number of patches.
    """
    vit = backbone.vit
    crop, patch = backbone.preprocessing.crop_shape, vit.patch_size
    if any(size % edge for size, edge in zip(crop, patch, strict=True)):
        raise ConvertError(
            f"the contract's crop_shape {crop} is no whole number of {patch} patches, so there is "
            f"no input to export for"
        )
    return ExportedNetwork(copy.deepcopy(vit).cpu().float()).eval().requires_grad_(False)


def example_inputs(backbone: Backbone, *, batch: int, seed: int) -> dict[str, Tensor]:
    """Inputs of the network by name, in the order of its arguments; only those that it uses."""
    vit = backbone.vit
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, vit.in_chans, *backbone.preprocessing.crop_shape)
    inputs = {"volume": torch.rand(shape, generator=generator) * 2 - 1}
    if vit.positions.kind == "rope_mm":
        factor = torch.rand(batch, 3, generator=generator) + 0.5
        inputs["spacing_mm"] = torch.tensor(_SPACING_MM) * factor
    if vit.in_chans > 1:
        present = torch.rand(batch, vit.in_chans, generator=generator) < 0.5
        present[:, 0] = True
        inputs["present"] = present
    return inputs


def facts_of(backbone: Backbone) -> dict[str, Any]:
    """What travels in an export beside the network, JSON-like."""
    return {
        "digest": backbone.digest,
        "name": str(backbone.provenance.get("name", "backbone")),
        "preprocessing": backbone.preprocessing.model_dump(mode="json"),
        "patch_size": list(backbone.vit.patch_size),
        "outputs": list(OUTPUTS),
        "licences": licences_of(backbone.provenance),
    }


def licences_of(provenance: Mapping[str, Any]) -> list[str]:
    """Those of the scans and of the weights that training began from, each once."""
    sources = provenance.get("shards", {}).get("sources", [])
    found = [str(each["licence"]) for each in sources]
    if begun := provenance.get("initialised_from"):
        found.append(str(begun["licence"]))
    return sorted(set(found))
