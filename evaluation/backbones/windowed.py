"""A 3D network of any origin as an embedder: windows of one shape, pooled or laid out on a grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.backbones.embedder import MOST_PATCHES, Dense, EmbedderError, Spacing
from foundation.network.patches import Shape
from foundation.preprocessing import Preprocessing
from foundation.windows import Layers, Pooled, merge_windows, pool_scan, prepare
from shards.scan import Scan

Network = Callable[[Tensor, Tensor], Layers]
"""From (B, 1, d, h, w) windows in [-1, 1] and (B, 3) spacing in mm."""


@dataclass(frozen=True)
class WindowedEmbedder:
    """See ``evaluation.backbones.embedder.Embedder``.

    Attributes:
        network: Frozen, in evaluation mode.
        preprocessing: The contract of its inputs.
        patch_size: Voxels of a window that a token stands for, (d, h, w); None without tokens.
        digest: Over weights, architecture and preprocessing.
        device: Where the network lives.
        has_grid: Whether its tokens are places in the scan; False where one token is a whole
            window.
    """

    network: Network
    preprocessing: Preprocessing
    patch_size: Shape | None
    digest: str
    device: torch.device
    has_grid: bool = True

    @property
    def spacing_mm(self) -> Spacing | None:
        """The contract's."""
        return self.preprocessing.spacing_mm

    @torch.inference_mode()
    def embed(self, scan: Scan) -> dict[str, NDArray[np.float32]]:
        """Pooled over the windows that cover the scan."""
        pooled = pool_scan(
            self._network_at(scan.spacing_mm),
            prepare(scan, preprocessing=self.preprocessing, device=self.device),
            crop_shape=self.preprocessing.crop_shape,
            patch_size=self.patch_size,
            most_patches=MOST_PATCHES if self.has_grid else 0,
        )
        return as_arrays(pooled)

    @torch.inference_mode()
    def dense(self, scan: Scan) -> Dense | None:
        """Windows begin on whole patches here, so that overlapping tokens are averaged."""
        if self.patch_size is None or not self.has_grid:
            return None
        prepared = prepare(
            scan, preprocessing=self.preprocessing, device=self.device, patch_size=self.patch_size
        )
        tokens = merge_windows(
            self._network_at(scan.spacing_mm),
            prepared,
            crop_shape=self.preprocessing.crop_shape,
            patch_size=self.patch_size,
        )
        d, h, w = prepared.before
        shape: Shape = scan.voxels.shape
        return Dense(
            tokens.numpy(),
            patch_voxels=self.patch_size,
            offset_voxels=(-d, -h, -w),
            shape=shape,
            spacing_mm=scan.spacing_mm,
        )

    def _network_at(self, spacing_mm: Spacing) -> Callable[[Tensor], Layers]:
        spacing = torch.tensor([spacing_mm], device=self.device)
        return lambda windows: self.network(windows, spacing.expand(len(windows), -1))


def as_arrays(pooled: Pooled) -> dict[str, NDArray[np.float32]]:
    """By the names of the contract; no ``patch`` where there are no tokens."""
    found: Mapping[str, Tensor] = pooled._asdict()
    arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    if not len(pooled.patch):
        del arrays["patch"]
    return arrays


@torch.inference_mode()
def try_window(network: Network, preprocessing: Preprocessing, *, device: torch.device) -> Layers:
    """What a network says of an empty window: told before anything is extracted.

    Raises:
        EmbedderError: It cannot take a window of the contract, or says something not finite.
    """
    window = torch.full((1, 1, *preprocessing.crop_shape), -1.0, device=device)
    spacing = torch.tensor([preprocessing.spacing_mm or (1.0, 1.0, 1.0)], device=device)
    try:
        layers = network(window, spacing)
    except EmbedderError:
        raise
    # A network of somebody else's can fail by anything.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EmbedderError(
            f"it cannot take a window of {tuple(window.shape)} ({type(error).__name__}: {reason}); "
            "is preprocessing.crop_shape what it was trained on?"
        ) from error
    for layer in layers:
        for tokens in layer:
            if tokens is not None and not tokens.isfinite().all():
                raise EmbedderError("it gives features that are not finite for an empty window")
    return layers


def patch_size_of(grid: Shape, crop_shape: Shape) -> Shape | None:
    """Voxels a token stands for, where tokens tile the window; else None."""
    if any(crop % cells for crop, cells in zip(crop_shape, grid, strict=True)):
        return None
    d, h, w = (crop // cells for crop, cells in zip(crop_shape, grid, strict=True))
    return d, h, w
