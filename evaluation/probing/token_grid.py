"""Where patch tokens lie over a mask: shares of classes in each token, and back to voxels.

A mask and the scan that was embedded have one centre but may differ in spacing, as resampling goes
about the centre (``shards.scan.resample``). All maps are products of one small matrix per axis, so
they are exact and need no index arrays of the size of a volume.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.embedder import Dense, Spacing
from foundation.tasks.masks import Mask, MaskError

Matrix = NDArray[np.float32]


class TokenGrid(NamedTuple):
    """Tokens over the voxels of a mask, one matrix per axis (d, h, w).

    Attributes:
        covers: (tokens, voxels) of each axis: the part of each voxel that lies in each token.
        weights: (voxels, tokens) of each axis: linear interpolation from the centres of the tokens
            to the voxels of the embedded scan, and from those to the voxels of the mask.
    """

    covers: tuple[Matrix, Matrix, Matrix]
    weights: tuple[Matrix, Matrix, Matrix]

    @classmethod
    def of(cls, dense: Dense, mask_shape: Sequence[int], mask_mm: Spacing) -> "TokenGrid":
        """The grid of a scan's tokens over its mask.

        Raises:
            MaskError: Mask and scan are not of the same extent.
        """
        axes = []
        for axis in range(3):
            voxels, size_mm = dense.shape[axis], dense.spacing_mm[axis]
            gap = mask_shape[axis] * mask_mm[axis] / size_mm - voxels
            # Resampling leaves out the part of a voxel that does not fit.
            if not -1e-2 < gap < 1 and voxels > 1:
                raise MaskError(
                    f"a mask of {tuple(mask_shape)} voxels of {_mm(mask_mm)} does not fit its scan "
                    f"of {dense.shape} voxels of {_mm(dense.spacing_mm)}"
                )
            axes.append(
                _Axis(
                    tokens=dense.tokens.shape[axis],
                    patch=dense.patch_voxels[axis],
                    offset=dense.offset_voxels[axis],
                    voxels=voxels,
                    mask_voxels=mask_shape[axis],
                    mask_step=mask_mm[axis] / size_mm,
                )
            )
        d, h, w = (axis.covers() for axis in axes)
        to_d, to_h, to_w = (axis.weights() for axis in axes)
        return cls((d, h, w), (to_d, to_h, to_w))

    def shares(self, mask: Mask, *, num_classes: int) -> NDArray[np.float32]:
        """Volume of each class in each token over that of the scan in it, (d, h, w, K + 1).

        A token that sees padding only has zeros.
        """
        d, h, w = self.covers
        shape = (len(d), len(h), len(w), num_classes + 1)
        found = np.zeros(shape, dtype=np.float32)
        for number in range(1, num_classes + 1):
            found[..., number] = _along(self.covers, mask.classes == number)
        inside = d.sum(1)[:, None, None] * h.sum(1)[None, :, None] * w.sum(1)[None, None, :]
        found[..., 0] = np.maximum(inside - found[..., 1:].sum(-1), 0)
        found /= np.where(inside > 0, inside, 1)[..., None]
        return found

    def upsample(self, values: NDArray[np.float32], planes: slice) -> NDArray[np.float32]:
        """(C, d, h, w) values of tokens at the voxels of some planes of the mask, (C, D', H, W)."""
        d, h, w = self.weights
        return np.stack([_along((d[planes], h, w), each) for each in values])


class _Axis(NamedTuple):
    """One axis, in voxels of the embedded scan: it begins at 0 and its centre is voxels / 2."""

    tokens: int
    patch: int
    offset: int
    voxels: int
    mask_voxels: int
    mask_step: float

    def covers(self) -> Matrix:
        """(tokens, mask voxels): the part of each mask voxel in each token."""
        edges = (np.arange(self.mask_voxels + 1) - self.mask_voxels / 2) * self.mask_step
        edges += self.voxels / 2
        starts = self.offset + self.patch * np.arange(self.tokens)[:, None]
        low, high = np.maximum(edges[:-1], starts), np.minimum(edges[1:], starts + self.patch)
        part: Matrix = (np.clip(high - low, 0, None) / self.mask_step).astype(np.float32)
        return part

    def weights(self) -> Matrix:
        """(mask voxels, tokens): linear from tokens to voxels, then from voxels to mask voxels."""
        centres = np.arange(self.voxels) - self.offset - (self.patch - 1) / 2
        to_voxels = _linear(centres / self.patch, self.tokens)
        steps = (np.arange(self.mask_voxels) - (self.mask_voxels - 1) / 2) * self.mask_step
        to_mask = _linear(steps + (self.voxels - 1) / 2, self.voxels)
        return (to_mask @ to_voxels).astype(np.float32)


def _linear(places: NDArray[np.floating], num: int) -> NDArray[np.float64]:
    """(places, num) weights of linear interpolation; beyond the ends the edge goes on."""
    inside = places.clip(0, num - 1)
    return np.maximum(0.0, 1.0 - np.abs(inside[:, None] - np.arange(num)))


def _along(
    matrices: tuple[Matrix, Matrix, Matrix], volume: NDArray[np.float32] | NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A (d, h, w) volume with one matrix applied to each axis; the smallest array is kept."""
    d, h, w = matrices
    values = volume.astype(np.float32, copy=False)
    if w.shape[0] < w.shape[1]:
        moved = np.tensordot(d, h @ (values @ w.T), axes=1)
    else:
        moved = (h @ np.tensordot(d, values, axes=1)) @ w.T
    return np.asarray(moved, dtype=np.float32)


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{edge:g}" for edge in spacing) + " mm"
