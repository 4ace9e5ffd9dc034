"""From probabilities at the contract's spacing to a mask that lies on the scan it was read from.

    probabilities = scan_probabilities(network, scan, preprocessing=contract, device="cuda")
    classes = classes_of(probabilities, scan, spacing_mm=contract.spacing_mm)
    write_mask("mask.nii.gz", labels_of(classes, target), scan, source="scan.nii.gz")

Probabilities, not classes, are interpolated: a border then lies between voxels, where it was found.
"""

import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.embedding.features import Spacing
from foundation.embedding.token_map import at_origin, image_in_lps
from foundation.finetuning.target import Target
from shards.files import write_bytes
from shards.images.nifti import read_header
from shards.measure.regrid import new_shape
from shards.scan import NIFTI, Scan, file_and_member, same_spacing

Classes = NDArray[np.uint8]
Labels = NDArray[np.unsignedinteger[Any]]

_VALUES_AT_ONCE = 1 << 22
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""What places an image in a NIfTI header, besides ``pixdim``; all else in it may identify."""


def classes_of(probabilities: Tensor, scan: Scan, *, spacing_mm: Spacing | None) -> Classes:
    """The likeliest class of each voxel of a scan.

    Probabilities are interpolated linearly from the grid that ``shards.scan.resample`` makes of the
    scan, which has the same centre; where that leaves out the scan's rim, the outermost go on.

    Args:
        probabilities: (K, d, h, w) of the resampled scan, background first.
        scan: As it was read.
        spacing_mm: That it was resampled to; None: not at all.

    Returns:
        (D, H, W) of ``scan``, 0 is background.
    """
    shape, own_mm = scan.voxels.shape, scan.spacing_mm
    if spacing_mm is None or same_spacing(own_mm, spacing_mm):
        assert probabilities.shape[1:] == shape, "probabilities of this scan"
        return _likeliest(probabilities)
    assert probabilities.shape[1:] == new_shape(shape, own_mm, spacing_mm), "of this scan"
    d, h, w = (
        _places(*axis)
        for axis in zip(shape, probabilities.shape[1:], own_mm, spacing_mm, strict=True)
    )
    planes = max(1, _VALUES_AT_ONCE // (len(probabilities) * math.prod(shape[1:])))
    found = np.empty(shape, dtype=np.uint8)
    for first in range(0, len(d), planes):
        part = _linear(probabilities, d[first : first + planes], axis=1)
        part = _linear(_linear(part, h, axis=2), w, axis=3)
        found[first : first + planes] = _likeliest(part)
    return found


def labels_of(classes: Classes, target: Target) -> Labels:
    """The values that the masks of the task have, uint8 where they fit; 0 is background."""
    values = np.array([0, *target.mask_values.values()])
    return values.astype(np.min_scalar_type(values.max()))[classes]


def volumes_ml(classes: Classes, *, spacing_mm: Spacing, num_classes: int) -> NDArray[np.float64]:
    """(K,) volume of each class in millilitres, without the background.

    Args:
        classes: (D, H, W), 0 is background.
        spacing_mm: (d, h, w).
        num_classes: K.
    """
    voxels = np.bincount(classes.ravel(), minlength=num_classes + 1)[1:]
    volumes: NDArray[np.float64] = voxels.astype(np.float64) * math.prod(spacing_mm) / 1000
    return volumes


def mean_entropy(probabilities: Tensor) -> float:
    """How unsure a mask is: 0 where every voxel of it is certain, 1 where all classes tie.

    The entropy of a voxel's classes over that of a tie, averaged over the voxels by how likely each
    is no background, so that the size of a scan around an organ plays no part.

    Args:
        probabilities: (K, D, H, W), background first. Of what is not finite comes NaN.
    """
    entropy = torch.zeros_like(probabilities[0])
    for each in probabilities:
        entropy += torch.special.entr(each)
    foreground = 1 - probabilities[0]
    total = foreground.sum(dtype=torch.float64)
    weighed = (entropy * foreground).sum(dtype=torch.float64) / math.log(len(probabilities))
    return float(weighed / total) if total != 0 else 0.0


def write_mask(
    path: str | Path, labels: Labels, scan: Scan, *, source: str | Path | None = None
) -> None:
    """Write a NIfTI file that lies on the scan; compressed if its name ends in ``.gz``.

    Beside a NIfTI file it has that file's axes and its very geometry, so arrays of both fit voxel
    by voxel. Beside anything else it has axes (w, h, d) and the scan's affine. A scan without
    geometry lies at the origin, with its own spacing.

    Args:
        path: Of the mask; its folder is made.
        labels: (D, H, W) in the scan's own grid.
        scan: As it was read.
        source: Where it was read from, as for ``read_scan``.

    Raises:
        ScanError: ``source`` cannot be read any more.
    """
    assert labels.shape == scan.voxels.shape
    own_mm = scan.spacing_mm
    file = None if source is None else file_and_member(str(source))[0]
    if file is not None and file.lower().endswith(NIFTI):
        image = _beside(labels, read_header(file))
    else:
        image = image_in_lps(labels, at_origin(own_mm) if scan.affine is None else scan.affine)
    image.header.set_slope_inter(1, 0)
    content = io.BytesIO()
    image.to_stream(content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.name.lower().endswith(".gz")
    # No time in the gzip header: two runs write the same bytes.
    written = gzip.compress(content.getvalue(), mtime=0) if packed else content.getvalue()
    write_bytes(path, written)


def _beside(labels: Labels, header: Any) -> Any:
    """An image on the grid of a file, whose axes ``shards.scan.to_lps`` had turned."""
    import nibabel

    turned = nibabel.orientations.io_orientation(header.get_best_affine())
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), turned)
    ras = labels.transpose(2, 1, 0)[::-1, ::-1]
    stored = np.ascontiguousarray(nibabel.orientations.apply_orientation(ras, back))
    assert stored.shape == tuple(header.get_data_shape()[:3]), "labels of this file"
    is_second = isinstance(header, nibabel.Nifti2Header)
    image = (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image)(stored, None)
    for name in _GEOMETRY:
        image.header[name] = header[name]
    image.header["pixdim"][:4] = header["pixdim"][:4]
    return image


def _likeliest(probabilities: Tensor) -> Classes:
    found: Classes = probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return found


def _places(count: int, length: int, own_mm: float, new_mm: float) -> Tensor:
    """(count,) float64: where voxels of the scan lie among ``length`` resampled ones."""
    steps = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * (own_mm / new_mm)
    return (steps + (length - 1) / 2).clamp(0, length - 1)


def _linear(values: Tensor, places: Tensor, *, axis: int) -> Tensor:
    """Values between their samples along one axis."""
    below = places.floor().long()
    above = (below + 1).clamp(max=values.shape[axis] - 1)
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    part = (places - below).to(values.dtype).view(shape).to(values.device)
    low, high = (values.index_select(axis, index.to(values.device)) for index in (below, above))
    return low.lerp_(high, part)
