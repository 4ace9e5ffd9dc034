"""Where weights to begin from are read: timm's hub, a file, a backbone of our own."""

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foundation.backbone import load_backbone
from foundation.beginning.fitting import positions_in_words
from foundation.beginning.inflate import (
    PATCH,
    FlatNetwork,
    InflationError,
    Weights,
    weights_of_flat,
)
from shards.files import sha256_of

TIMM = "timm:"
_EPS = 1e-6


class SourceError(ValueError):
    """Weights that cannot be read, or whose network ours cannot be."""


class Source(NamedTuple):
    """Weights to begin from, and what must be told about them."""

    name: str
    """as the recipe has it"""
    architecture: str
    licence: str
    digest: str
    """64 hex digits that change with any weight"""
    past: dict[str, Any]
    """provenance of a backbone of our own; empty for others"""
    weights: Weights


def read_timm(name: str) -> Source:
    """``timm:NAME``, from the hub or its cache.

    Raises:
        SourceError: No such network, no weights of it in reach, no licence stated, or it is not a
            plain ViT.
    """
    architecture = name.removeprefix(TIMM)
    network = flat_network(architecture)
    tensors, licence = _pretrained(architecture)
    if not licence:
        raise SourceError(
            f"{name}: timm states no licence for it; find it out, save the weights as a "
            f".safetensors file and give that with init.licence"
        )
    return Source(
        name=name,
        architecture=architecture,
        licence=licence,
        digest=_digest_of(tensors),
        past={},
        weights=_inflated(tensors, network=network, where=name),
    )


def read_file(path: Path, *, architecture: str, licence: str) -> Source:
    """A safetensors file of a ViT with timm's names.

    Args:
        path: Of the file.
        architecture: timm's name of the network.
        licence: Of the weights.

    Raises:
        SourceError: It cannot be read, or is not a plain ViT.
    """
    network = flat_network(architecture)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path}: cannot be read as safetensors ({error})") from None
    return Source(
        name=str(path),
        architecture=architecture,
        licence=licence,
        digest=sha256_of(path),
        past={},
        weights=_inflated(tensors, network=network, where=str(path)),
    )


def read_backbone(folder: Path) -> Source:
    """A published backbone, checked as for any other use.

    Its licence is what its scans, and the weights it began from itself, are under.

    Raises:
        ValueError: It is none, or damaged.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no such folder; weights are {TIMM}NAME, a .safetensors file or a folder "
            f"backbone/"
        )
    backbone = load_backbone(folder)
    vit, provenance = backbone.vit, backbone.provenance
    licences = {each["licence"] for each in provenance.get("shards", {}).get("sources", ())}
    if earlier := provenance.get("initialised_from"):
        licences.add(earlier["licence"])
    tensors = dict(vit.state_dict())
    tensors[PATCH] = tensors[PATCH].unflatten(1, (vit.in_chans, *vit.patch_size))
    return Source(
        name=str(folder),
        architecture="scanfm",
        licence=", ".join(sorted(licences)) or "unknown",
        digest=backbone.digest,
        past=provenance,
        weights=Weights(
            tensors, vit.num_heads, flat=False, positions=positions_in_words(vit.positions)
        ),
    )


def flat_network(architecture: str) -> FlatNetwork:
    """What timm knows of a network beside its weights.

    Raises:
        SourceError: It knows no such network, or the network is not the plain ViT that ours is in
            3D, whose tensors could have the same names and mean something else.
    """
    import timm
    from timm.models.vision_transformer import Block, VisionTransformer

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"timm has no network {architecture!r}{hint}")
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False)
    if type(model) is not VisionTransformer or type(model.blocks[0]) is not Block:
        raise SourceError(
            f"timm's {architecture} is not a plain ViT; take a vit_... such as DINOv2"
        )
    block = model.blocks[0]
    if block.norm1.eps != _EPS or not isinstance(block.mlp.act, nn.GELU | nn.SiLU):
        raise SourceError(
            f"timm's {architecture} has norms with eps {block.norm1.eps:g} and "
            f"{type(block.mlp.act).__name__}; the backbone has {_EPS:g} and GELU or SwiGLU"
        )
    config = model.pretrained_cfg
    return FlatNetwork(
        num_heads=block.attn.num_heads,
        mean=config["mean"],
        std=config["std"],
        grid=model.patch_embed.grid_size,
        position_prefix=0 if model.no_embed_class else model.num_prefix_tokens,
    )


def _pretrained(architecture: str) -> tuple[dict[str, Tensor], str | None]:
    """Weights and their licence; what timm draws on the way does not move torch's generator."""
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(architecture, pretrained=True)
    # A hub out of reach ends in a dozen types of three libraries; none of them is our fault.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(
            f"{TIMM}{architecture}: its weights cannot be had ({type(error).__name__}: {reason}); "
            f"where the hub is out of reach, bring its model.safetensors here and give that file "
            f"with init.architecture={architecture} and init.licence"
        ) from error
    return dict(model.state_dict()), model.pretrained_cfg.get("license")


def _inflated(tensors: Mapping[str, Tensor], *, network: FlatNetwork, where: str) -> Weights:
    try:
        return weights_of_flat(tensors, network)
    except InflationError as error:
        raise SourceError(f"{where}: {error}") from None


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
