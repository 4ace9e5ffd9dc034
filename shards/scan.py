"""A scan in memory, and the readers that bring any file to the same axes and units.

Axes are LPS: D runs from inferior to superior, H from anterior to posterior, W from the subject's
right to left; ``spacing_mm`` is (d, h, w). Only the readers know a file format's own order.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

MODALITIES = ("CT", "MR", "PT", "OT")
MAX_SHEAR = 0.02  # |cosine| between two voxel axes: 1.1 degrees, far below any gantry tilt in use
INT16 = np.iinfo(np.int16)


class ScanError(ValueError):
    """A scan that cannot be used. The message is the ledger's reason: no identifier, no path."""


@dataclass(frozen=True)
class Scan:
    """One volume with what is known about it.

    Attributes:
        voxels: (D, H, W) in LPS order; CT is int16 in Hounsfield units, others int16 or float32.
        spacing_mm: (d, h, w).
        modality: One of ``MODALITIES``.
        subject: Identity as the file tells it (DICOM PatientID); never written anywhere.
        metadata: Descriptions from an allow-list (``body_part``, ``manufacturer``, ...).
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    modality: str
    subject: str | None = None
    metadata: Mapping[str, str | float] = field(default_factory=dict)


def read_scan(where: str | Path, *, modality: str | None = None, min_slices: int = 1) -> Scan:
    """Read one scan: a NIfTI file, a folder with one DICOM series, or ``FILE.npz#split/index``.

    Args:
        where: The scan.
        modality: What the scan is; DICOM tells by itself, and must then agree.
        min_slices: Fewest voxels along the shortest axis (DICOM: fewest slices).

    Raises:
        ScanError: Anything that keeps the scan from being used.
    """
    name = str(where)
    if modality is not None and modality not in MODALITIES:
        raise ScanError(f"the modality is not one of {', '.join(MODALITIES)}")
    if "#" in name:
        return _read_npz(name, modality=modality)
    if not Path(name).exists():
        raise ScanError("the file or folder does not exist")
    if Path(name).is_dir():
        from shards.dicom import find_series
        from shards.dicom_series import read_series

        found = find_series(name)
        if len(found) != 1:
            raise ScanError(f"the folder holds {len(found)} DICOM series, expected one")
        return read_series(found[0].files, modality=modality, min_slices=min_slices)
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti(name, modality=modality, min_slices=min_slices)
    raise ScanError("neither a NIfTI file, a DICOM folder nor a member of an npz archive")


def resample(scan: Scan, spacing_mm: tuple[float, float, float]) -> Scan:
    """The scan on a grid of ``spacing_mm`` around the same centre: linear, smoothed where coarser.

    Raises:
        ScanError: The scan is thinner than one voxel of the new grid.
    """
    if np.allclose(scan.spacing_mm, spacing_mm, rtol=0, atol=1e-3):
        return scan
    extent = np.multiply(scan.voxels.shape, scan.spacing_mm)
    if (extent < spacing_mm).any() and min(scan.voxels.shape) > 1:
        raise ScanError(f"an extent of {extent.min():.1f} mm is less than one voxel at the target")
    import torch
    import torchio

    image = torchio.ScalarImage(
        tensor=torch.from_numpy(scan.voxels.astype(np.float32))[None],
        affine=np.diag([*scan.spacing_mm, 1.0]),
    )
    # The smoothing filter needs four voxels along each axis.
    smooth = min(scan.voxels.shape) >= 4
    voxels = torchio.Resample(spacing_mm, antialias=smooth)(image).data[0].numpy()
    if scan.modality == "CT":
        voxels = hounsfield(voxels)
    return replace(scan, voxels=np.ascontiguousarray(voxels), spacing_mm=spacing_mm)


def to_lps(
    voxels: np.ndarray, *, affine: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Turn an array in any order into (D, H, W) by the nearest permutation and flips.

    Args:
        voxels: (I, J, K).
        affine: (4, 4), from voxel indices to millimetres in RAS (the NIfTI frame).

    Returns:
        The voxels and their spacing (d, h, w).
    """
    import nibabel

    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (lengths <= 1e-6).any():
        raise ScanError("the geometry is not usable: a voxel axis has no length")
    cosines = (axes / lengths).T @ (axes / lengths)
    if np.abs(cosines[np.triu_indices(3, k=1)]).max() > MAX_SHEAR:
        raise ScanError("the voxel axes are not perpendicular (gantry tilt or shear)")
    orientation = nibabel.orientations.io_orientation(affine)
    ras = nibabel.orientations.apply_orientation(voxels, orientation)
    spacing_ras = np.empty(3)
    spacing_ras[orientation[:, 0].astype(int)] = lengths
    lps = ras[::-1, ::-1].transpose(2, 1, 0)
    right_left, front_back, down_up = (float(length) for length in spacing_ras)
    return np.ascontiguousarray(lps), (down_up, front_back, right_left)


def physical_units(voxels: np.ndarray, *, modality: str) -> np.ndarray:
    """Voxels in the type a :class:`Scan` keeps; what is not finite takes the lowest finite value.

    Raises:
        ScanError: No finite voxel, or CT values that are no Hounsfield units.
    """
    if voxels.dtype.kind not in "biuf":
        raise ScanError("colour or complex voxels, not a scan of one intensity")
    if voxels.size == 0:
        raise ScanError("the volume has no voxels")
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        if not finite.any():
            raise ScanError("no voxel has a finite value")
        if not finite.all():
            voxels = np.where(finite, voxels, voxels[finite].min())
    if modality == "CT":
        return hounsfield(voxels)
    if voxels.dtype.kind != "f" and voxels.min() >= INT16.min and voxels.max() <= INT16.max:
        return voxels.astype(np.int16)
    if np.abs(voxels.astype(np.float64)).max() > np.finfo(np.float32).max:
        raise ScanError("intensities beyond the range of 32-bit numbers")
    return voxels.astype(np.float32)


def hounsfield(voxels: np.ndarray) -> np.ndarray:
    """Round to int16 Hounsfield units."""
    if voxels.min() < INT16.min or voxels.max() > INT16.max:
        raise ScanError("CT values beyond the range of Hounsfield units in 16 bits")
    return np.rint(voxels).astype(np.int16) if voxels.dtype.kind == "f" else voxels.astype(np.int16)


def _read_nifti(name: str, *, modality: str | None, min_slices: int) -> Scan:
    import nibabel

    if modality is None:
        raise ScanError("a NIfTI file does not tell its modality; name it in the recipe")
    try:
        image = nibabel.nifti1.load(name)
        voxels = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine)
    # The library raises a dozen types for bytes that are no image; their texts hold the path.
    except Exception as error:
        reason = type(error).__name__
        raise ScanError(f"not a readable NIfTI file, truncated or damaged ({reason})") from None
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise ScanError(f"an image of {voxels.ndim} dimensions, expected three")
    if min(voxels.shape) < min_slices:
        raise ScanError(f"{min(voxels.shape)} slices, the recipe asks for {min_slices}")
    voxels, spacing_mm = to_lps(physical_units(voxels, modality=modality), affine=affine)
    return Scan(voxels=voxels, spacing_mm=spacing_mm, modality=modality)


def _read_npz(name: str, *, modality: str | None) -> Scan:
    """A shape without geometry: the axes are taken as they stand, one voxel counts as one unit."""
    file, _, member = name.partition("#")
    split, _, index = member.partition("/")
    try:
        voxels = _npz_volumes(file, split)[int(index)]
    except Exception as error:
        raise ScanError(f"not a readable member of an npz ({type(error).__name__})") from None
    if voxels.ndim != 3:
        raise ScanError(f"an image of {voxels.ndim} dimensions, expected three")
    kind = modality or "OT"
    voxels = np.ascontiguousarray(physical_units(voxels, modality=kind))
    return Scan(voxels=voxels, spacing_mm=(1.0, 1.0, 1.0), modality=kind)


@functools.lru_cache(maxsize=1)
def _npz_volumes(file: str, split: str) -> np.ndarray:
    """All volumes of one split: an npz member is compressed whole, so one is as dear as all."""
    with np.load(file, allow_pickle=False) as arrays:
        volumes: np.ndarray = arrays[f"{split}_images"]
    return volumes
