"""Weights of one patch size, grid and number of channels, made those of another; 2D ones 3D.

A 2D network is taken as a 3D one whose patches are one slice thick: its patch embedding then
becomes thicker in the way it becomes wider.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from foundation.network.patches import Shape
from foundation.network.positions import sincos_axis

LEARNED = "learned"
PATCH, BIAS, POSITIONS = "patch_embed.weight", "patch_embed.bias", "position_table"
CLASS, REGISTERS, ABSENT = "cls_token", "registers", "absent_embed"

# A 2D table says nothing of depth. Slices get a fixed code whose spread is this share of the
# table's own: enough to tell them apart, too little to hide where in the slice a patch lies.
DEPTH_SHARE = 0.5

_TIMM_NAMES = {
    PATCH: "patch_embed.proj.weight",
    BIAS: "patch_embed.proj.bias",
    POSITIONS: "pos_embed",
    REGISTERS: "reg_token",
}
_OUR_NAMES = {theirs: ours for ours, theirs in _TIMM_NAMES.items()}
_OURS_MIDDLE = 0.5
"""Our values go from -1 to 1 around the middle of those from 0 to 1 that a 2D network knows."""


class InflationError(ValueError):
    """Weights that cannot become those of a 3D backbone."""


class Weights(NamedTuple):
    """A network's weights under the names of :class:`foundation.vit.Vit3d`."""

    tensors: dict[str, Tensor]
    """the patch embedding as (E, C, d, h, w), a position table as (1, E, gd, gh, gw)"""
    num_heads: int
    flat: bool
    """of a 2D network"""
    positions: str
    """how places enter, in words: tensors do not show all of it"""

    def source_name(self, name: str) -> str:
        """What the network itself calls a tensor."""
        return _TIMM_NAMES.get(name, name) if self.flat else name


class FlatNetwork(NamedTuple):
    """What the tensors of a 2D ViT of timm do not tell."""

    num_heads: int
    mean: Sequence[float]
    """subtracted from its input's channels, which go from 0 to 1"""
    std: Sequence[float]
    """its input's channels are then divided by"""
    grid: tuple[int, int]
    """patches (h, w) of the image size it was built for"""
    position_prefix: int
    """rows of its position table before those of patches: of the class token, of registers"""


def weights_of_flat(tensors: Mapping[str, Tensor], network: FlatNetwork) -> Weights:
    """The 3D network with patches one slice thick that does what a 2D ViT of timm does.

    It takes one channel of -1 to 1, which the 2D network would see as a grey picture, normalised as
    it was in its training.

    Raises:
        InflationError: A tensor that the patch embedding needs is missing, the position table fits
            no grid, or the network does something before its blocks that ours does not.
    """
    if (patch := _TIMM_NAMES[PATCH]) not in tensors:
        raise InflationError(f"has no {patch!r}, so it is no ViT with timm's names")
    if odd := sorted(name for name in tensors if name.startswith("norm_pre.")):
        raise InflationError(f"has a norm before its blocks ({odd[0]!r}), which the backbone lacks")
    found = {_OUR_NAMES.get(name, name): each.float() for name, each in tensors.items()}
    found[PATCH], found[BIAS] = _grey_patch(found[PATCH], found.get(BIAS), network)
    if POSITIONS in found:
        prefix, found[POSITIONS] = _split_positions(found[POSITIONS], network)
        for name in (CLASS, REGISTERS):
            taken = found[name].shape[1] if name in found else 0
            if prefix.shape[1] >= taken > 0:
                found[name] = found[name] + prefix[:, :taken]
                prefix = prefix[:, taken:]
    return Weights(found, network.num_heads, flat=True, positions=LEARNED)


def fitted_patch(weight: Tensor, *, in_chans: int, patch_size: Shape) -> Tensor:
    """A patch embedding for other channels and edges.

    Channels: a volume copied to all of them gives the response that one copied to all of the old
    ones gave. Edges: the pseudo-inverse of resizing (PI-resize, Beyer et al. 2023, FlexiViT), which
    gives an enlarged patch exactly, and a reduced one as nearly as can be, its old response.

    Args:
        weight: (E, C, d, h, w).
        in_chans: C'.
        patch_size: d', h', w'.

    Returns:
        (E, C', d', h', w'); ``weight`` itself where nothing changes.
    """
    if weight.shape[1:] == (in_chans, *patch_size):
        return weight
    found = weight.double()
    if weight.shape[1] != in_chans:
        found = found.sum(dim=1, keepdim=True).expand(-1, in_chans, -1, -1, -1) / in_chans
    for axis, size in enumerate(patch_size, start=2):
        back = torch.linalg.pinv(_resizing(found.shape[axis], size)).T
        found = _along(axis, found, back)
    return found.float()


def fitted_positions(table: Tensor, *, grid: Shape, flat: bool) -> Tensor:
    """A position table for another grid.

    A table of a 2D network is resized as timm does (bicubic), and its slices are told apart by a
    fixed sine-cosine code of mean zero; a 3D one is resized as the backbone does for other volumes.

    Args:
        table: (1, E, gd, gh, gw); gd is 1 for a 2D network.
        grid: The new one.
        flat: The table is of a 2D network.

    Returns:
        (1, E, *grid); ``table`` itself where nothing changes.
    """
    if table.shape[2:] == grid:
        return table
    if not flat:
        return functional.interpolate(table, grid, mode="trilinear", align_corners=False)
    plane = table[:, :, 0].double()
    for axis, size in enumerate(grid[1:], start=2):
        plane = _along(axis, plane, _resizing(plane.shape[axis], size))
    return (plane[:, :, None] + _depth_code(plane, num_slices=grid[0])).float()


def _grey_patch(weight: Tensor, bias: Tensor | None, network: FlatNetwork) -> tuple[Tensor, Tensor]:
    """(E, 1, 1, h, w) and (E,), for the grey of -1 to 1 that the network saw as RGB, normalised."""
    mean = torch.tensor(network.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(network.std, dtype=torch.float64)[:, None, None]
    per_unit = weight.double() / std
    grey = (_OURS_MIDDLE * per_unit).sum(dim=1)
    middle = (per_unit * (_OURS_MIDDLE - mean)).sum(dim=(1, 2, 3))
    old = torch.zeros(len(weight)) if bias is None else bias
    return grey[:, None, None].float(), (old + middle).float()


def _split_positions(table: Tensor, network: FlatNetwork) -> tuple[Tensor, Tensor]:
    """(1, prefix, E) of the class token and registers, (1, E, 1, gh, gw) of the patches."""
    prefix, rows = table.split(
        [network.position_prefix, table.shape[1] - network.position_prefix], dim=1
    )
    height, width = network.grid
    if height * width != rows.shape[1]:
        height = width = math.isqrt(rows.shape[1])
    if height * width != rows.shape[1]:
        raise InflationError(f"its pos_embed has {rows.shape[1]} places, which are no square grid")
    return prefix, rows.transpose(1, 2).unflatten(2, (1, height, width))


def _depth_code(plane: Tensor, *, num_slices: int) -> Tensor:
    """(1, E, gd, 1, 1) of mean zero over slices; nothing where there is only one."""
    code = sincos_axis(num_slices, width=plane.shape[1])
    code = code - code.mean(dim=0)
    if num_slices > 1:
        spread = (plane - plane.mean(dim=(2, 3), keepdim=True)).square().mean().sqrt()
        code = code * (DEPTH_SHARE * spread / code.square().mean().sqrt())
    return code.T[None, :, :, None, None]


def _resizing(old: int, new: int) -> Tensor:
    """(new, old) float64, the matrix that resizes a line of ``old`` values (bicubic)."""
    # The line lies along W: torch (2.15) antialiases along H wrongly where W is 1.
    basis = torch.eye(old, dtype=torch.float64)[None, :, None]
    lines = functional.interpolate(
        basis, (1, new), mode="bicubic", antialias=True, align_corners=False
    )
    return lines[0, :, 0].T


def _along(axis: int, tensor: Tensor, matrix: Tensor) -> Tensor:
    """``matrix`` (new, old) times each line along ``axis``."""
    return torch.tensordot(tensor, matrix, dims=([axis], [1])).movedim(-1, axis)
