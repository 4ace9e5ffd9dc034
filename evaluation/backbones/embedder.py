"""What a backbone is to evaluation: something with a contract that turns a scan into features."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.scan import Scan

Spacing = tuple[float, float, float]

LAYERS = 4
"""At most so many of the last blocks are kept."""
MOST_PATCHES = 256
"""Patch tokens of a scan that are kept for the attentive probe."""


class EmbedderError(ValueError):
    """A backbone of a recipe that cannot be loaded, or does not keep to its contract."""


class Dense:
    """Patch tokens of a whole scan on one grid, for segmentation.

    Attributes:
        tokens: (d, h, w, E) float32; overlapping windows are averaged.
        patch_voxels: Voxels (D, H, W) of the embedded scan that a token covers.
        offset_voxels: Where the first token begins in the embedded scan, negative under padding.
        shape: (D, H, W) of the embedded scan.
        spacing_mm: Of the embedded scan.
    """

    def __init__(
        self,
        tokens: NDArray[np.float32],
        *,
        patch_voxels: tuple[int, int, int],
        offset_voxels: tuple[int, int, int],
        shape: tuple[int, int, int],
        spacing_mm: Spacing,
    ) -> None:
        self.tokens = tokens
        self.patch_voxels = patch_voxels
        self.offset_voxels = offset_voxels
        self.shape = shape
        self.spacing_mm = spacing_mm


class Embedder(Protocol):
    """A frozen backbone of any origin."""

    @property
    def digest(self) -> str:
        """64 hex digits over weights, architecture and preprocessing."""

    @property
    def spacing_mm(self) -> Spacing | None:
        """What scans are resampled to; None keeps each scan's own."""

    def embed(self, scan: Scan) -> dict[str, NDArray[np.float32]]:
        """Features of a scan that has the wanted spacing.

        Returns:
            ``cls`` and ``mean``: (L, E), class token and mean patch token of the last L <= LAYERS
            blocks, the last block first, pooled over the windows that cover the scan.
            ``crop_cls`` and ``crop_mean``: (W, E), of the last block, of each window.
            ``patch``: (T, E), at most MOST_PATCHES patch tokens of the last block, spread evenly
            over the scan, without those that see padding only. A backbone without a class token
            gives the same array for cls and mean; one without patch tokens leaves ``patch`` out.
        """

    def dense(self, scan: Scan) -> Dense | None:
        """Patch tokens of the last block on a grid; None where there are none."""
