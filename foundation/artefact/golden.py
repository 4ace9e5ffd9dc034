"""The golden pair: a small fixed input, and what the network made of it when it was published."""

import math
from pathlib import Path

import torch
from torch import Tensor

from foundation.artefact.head import Tuned, logits_of
from foundation.artefact.layout import BackboneError
from foundation.artefact.tensors import Header, read_header, read_tensors
from foundation.vit import Vit3d

GOLDEN_TOLERANCE = 1e-4
_GRID = (2, 3, 4)
_SPACING_MM = (5.0, 1.5, 2.0)
_SEED = 0
_MOST_PATCHES = 4096
_FLOAT = "F32"
_LOGITS = "logits"


def golden_pair(vit: Vit3d, *, tuned: Tuned | None = None) -> dict[str, Tensor]:
    """A small fixed input with unequal axes, and what the network, and its head, make of it."""
    shape = [cells * patch for cells, patch in zip(_GRID, vit.patch_size, strict=True)]
    generator = torch.Generator().manual_seed(_SEED)
    volume = torch.rand(1, vit.in_chans, *shape, generator=generator) * 2 - 1
    golden = {"volume": volume, "spacing_mm": torch.tensor([_SPACING_MM])}
    return {**golden, **_outputs(vit, golden, tuned=tuned)}


def check_golden(vit: Vit3d, path: Path, *, tuned: Tuned | None = None) -> float:
    """Compute the stored embedding again; the largest difference of any of its numbers.

    Of a fine-tuned network the logits of its head are computed too; where these are above 1 their
    differences are shares of the largest, as rounding grows with what is rounded.

    Raises:
        BackboneError: It is more than ``GOLDEN_TOLERANCE``, or the file holds no golden pair.
    """
    header = read_header(path)
    needed = {"volume", "cls", "mean", *([_LOGITS] if tuned else [])}
    if missing := needed - set(header):
        raise BackboneError(f"{path}: lacks {', '.join(sorted(missing))}; download it again")
    if tuned is None and _LOGITS in header:
        raise BackboneError(
            f"{path}: holds logits of a head, which is not there; download it again"
        )
    _check_shapes(vit, header, path=path, tuned=tuned)
    stored = read_tensors(path)
    worst = 0.0
    for name, found in _outputs(vit, stored, tuned=tuned).items():
        error = (found - stored[name]).abs().max().item()
        if name == _LOGITS:
            error /= max(1.0, stored[name].abs().max().item())
        if not error <= GOLDEN_TOLERANCE:
            raise BackboneError(
                f"{path}: the stored {_in_words(name)} comes out {error:.2g} away, at most "
                f"{GOLDEN_TOLERANCE:g} is allowed; this code does not compute what the backbone "
                f"was published with, use the version its provenance names"
            )
        worst = max(worst, error)
    return worst


def _outputs(vit: Vit3d, golden: dict[str, Tensor], *, tuned: Tuned | None) -> dict[str, Tensor]:
    volume, spacing_mm = golden["volume"], golden.get("spacing_mm")
    with torch.inference_mode():
        output = vit(volume, spacing_mm=spacing_mm)
        found = {"cls": output.cls_token.clone(), "mean": output.patch_tokens.mean(dim=1)}
    if tuned is None:
        return found
    return {**found, _LOGITS: logits_of(tuned.network, volume, spacing_mm)}


def _in_words(name: str) -> str:
    return "output of the head" if name == _LOGITS else f"{name} embedding"


def _check_shapes(vit: Vit3d, header: Header, *, path: Path, tuned: Tuned | None) -> None:
    """An input that the network takes and that costs little, before any of it is read."""
    batch, channels, *grid = (*header["volume"].shape, 0, 0, 0, 0, 0)[:5]
    cells = [size // patch for size, patch in zip(grid, vit.patch_size, strict=True)]
    whole = [count * patch for count, patch in zip(cells, vit.patch_size, strict=True)]
    shapes = {
        "volume": (1, vit.in_chans, *whole),
        "spacing_mm": (1, 3),
        "cls": (1, vit.embed_dim),
        "mean": (1, vit.embed_dim),
    }
    if tuned is not None:
        target = tuned.settings.target
        is_map = target.kind == "segmentation"
        shapes[_LOGITS] = (1, target.num_logits, *(whole if is_map else []))
    fits = batch == 1 and channels == vit.in_chans and 0 < math.prod(cells) <= _MOST_PATCHES
    for name, shape in shapes.items():
        found = header.get(name)
        if found is not None and (found.shape != shape or found.dtype != _FLOAT or not fits):
            raise BackboneError(
                f"{path}: {name} is {found.dtype} {found.shape}, which is no golden pair of this "
                f"network; download it again"
            )
