"""Patch tokens of a whole scan as a map in the patient's space.

found = token_map(backbone, read_scan("scan.nii.gz", modality="CT"))
write_token_map("tokens.nii", found)
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from foundation.embedding.features import Spacing, at_contract, device_of, network_of
from foundation.windows import merge_windows, prepare
from shards.files import write_bytes
from shards.scan import Scan

if TYPE_CHECKING:  # which delegates to this
    from foundation.backbone import Backbone

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class TokenMap:
    """One token for each patch that sees any of the scan.

    Attributes:
        tokens: (d, h, w, E) float32 on the CPU; overlapping windows are averaged.
        affine: (4, 4), from token indices (d, h, w, 1) to the centre of its patch in patient
            millimetres (x, y, z, 1) in LPS.
    """

    tokens: Tensor
    affine: np.ndarray


def token_map(backbone: "Backbone", scan: Scan, *, spacing_mm: Spacing | None = None) -> TokenMap:
    """The map of a scan, whatever its size; axes oblique to the patient's stay so.

    The scan is padded with air evenly to whole patches, and to one window at least. Tokens of pure
    padding are cut off again. A scan without geometry lies at the origin, with its own spacing.

    Args:
        backbone: In evaluation mode.
        scan: Voxels in physical units.
        spacing_mm: Resample to this instead of to the contract's own spacing.

    Raises:
        ScanError: The scan is thinner than a voxel of the spacing.
        InputError: The backbone takes several sequences at once.
    """
    scan = at_contract(backbone, scan, spacing_mm=spacing_mm)
    patch = backbone.vit.patch_size
    prepared = prepare(
        scan,
        preprocessing=backbone.preprocessing,
        device=device_of(backbone),
        patch_size=patch,
    )
    tokens = merge_windows(
        network_of(backbone.vit, scan.spacing_mm),
        prepared,
        crop_shape=backbone.preprocessing.crop_shape,
        patch_size=patch,
    )
    before = np.asarray(prepared.before)
    first = before // patch
    stop = -(-(before + scan.voxels.shape) // patch)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))
    affine = scan.affine if scan.affine is not None else at_origin(scan.spacing_mm)
    return TokenMap(tokens[box], affine @ _to_voxels(patch, first * patch - before))


def _to_voxels(patch: tuple[int, int, int], start: np.ndarray) -> np.ndarray:
    """(4, 4), from token indices to voxel indices; the first token begins at voxel ``start``."""
    placed = np.diag([*map(float, patch), 1.0])
    placed[:3, 3] = start + (np.asarray(patch) - 1) / 2
    return placed


def at_origin(spacing_mm: Spacing) -> np.ndarray:
    """(d, h, w) to LPS millimetres: D goes up, H to the back, W to the left."""
    d, h, w = spacing_mm
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = d, h, w, 1.0
    return affine


def write_token_map(path: str | Path, found: TokenMap) -> None:
    """Write a NIfTI-1 file (w, h, d, E), float32, whose fourth axis are the features.

    It is not compressed: numbers of a network hardly shrink, and a viewer can read parts of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image_in_lps(found.tokens.detach().numpy(), found.affine).to_stream(content)
    write_bytes(path, content.getvalue())


def image_in_lps(values: np.ndarray, affine: np.ndarray) -> Any:
    """A NIfTI image of (d, h, w) values, or (d, h, w, E), with axes (w, h, d) and (w, h, d, E).

    Args:
        values: In LPS order.
        affine: (4, 4), from their indices to millimetres in LPS.
    """
    import nibabel

    # (w, h, d) as stored axes keep the values' right-handedness; the affine goes along.
    swap = np.eye(4)[[2, 1, 0, 3]]
    placed = _LPS_TO_RAS @ affine @ swap
    image = nibabel.Nifti1Image(values.swapaxes(0, 2), placed)
    image.set_sform(placed, code=1)
    image.set_qform(placed, code=1)
    image.header.set_xyzt_units("mm")
    return image
