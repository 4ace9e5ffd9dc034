"""The golden pair: a small fixed input, and what the network made of it when it was published."""

import math
from pathlib import Path

import torch
from torch import Tensor

from foundation.artefact.layout import BackboneError
from foundation.artefact.tensors import Header, read_header, read_tensors
from foundation.vit import Vit3d

GOLDEN_TOLERANCE = 1e-4
_GRID = (2, 3, 4)
_SPACING_MM = (5.0, 1.5, 2.0)
_SEED = 0
_MOST_PATCHES = 4096
_FLOAT = "F32"


def golden_pair(vit: Vit3d) -> dict[str, Tensor]:
    """A small fixed input with unequal axes, and what the network makes of it."""
    shape = [cells * patch for cells, patch in zip(_GRID, vit.patch_size, strict=True)]
    generator = torch.Generator().manual_seed(_SEED)
    volume = torch.rand(1, vit.in_chans, *shape, generator=generator) * 2 - 1
    golden = {"volume": volume, "spacing_mm": torch.tensor([_SPACING_MM])}
    return {**golden, **_embedding(vit, golden)}


def check_golden(vit: Vit3d, path: Path) -> float:
    """Compute the stored embedding again; the largest difference of any of its numbers.

    Raises:
        BackboneError: It is more than ``GOLDEN_TOLERANCE``, or the file holds no golden pair.
    """
    header = read_header(path)
    if missing := {"volume", "cls", "mean"} - set(header):
        raise BackboneError(f"{path}: lacks {', '.join(sorted(missing))}; download it again")
    _check_shapes(vit, header, path=path)
    stored = read_tensors(path)
    worst = 0.0
    for name, found in _embedding(vit, stored).items():
        error = (found - stored[name]).abs().max().item()
        if not error <= GOLDEN_TOLERANCE:
            raise BackboneError(
                f"{path}: the stored {name} embedding comes out {error:.2g} away, at most "
                f"{GOLDEN_TOLERANCE:g} is allowed; this code does not compute what the backbone "
                f"was published with, use the version its provenance names"
            )
        worst = max(worst, error)
    return worst


def _embedding(vit: Vit3d, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode():
        output = vit(golden["volume"], spacing_mm=golden.get("spacing_mm"))
        return {"cls": output.cls_token.clone(), "mean": output.patch_tokens.mean(dim=1)}


def _check_shapes(vit: Vit3d, header: Header, *, path: Path) -> None:
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
    fits = batch == 1 and channels == vit.in_chans and 0 < math.prod(cells) <= _MOST_PATCHES
    for name, shape in shapes.items():
        found = header.get(name)
        if found is not None and (found.shape != shape or found.dtype != _FLOAT or not fits):
            raise BackboneError(
                f"{path}: {name} is {found.dtype} {found.shape}, which is no golden pair of this "
                f"network; download it again"
            )
