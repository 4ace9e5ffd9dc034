"""A scan in memory, and the readers that bring any file to the same axes and units.

Axes are LPS: D runs from inferior to superior, H from anterior to posterior, W from the subject's
right to left; ``spacing_mm`` is (d, h, w). Only the readers know a file format's own order.
"""

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.measure.percentile import pieces
from shards.measure.regrid import regrid
from shards.policy import LENIENT, Policy

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
MODALITIES = ("CT", "MR", "PT", "OT")
MAX_SHEAR = 0.02  # |cosine| between two voxel axes: 1.1 degrees, far below any gantry tilt in use
INT16 = np.iinfo(np.int16)
ABSENT = "the file or folder does not exist"


class ScanError(ValueError):
    """A scan that cannot be used. The message is the ledger's reason: no identifier, no path."""


@dataclass(frozen=True)
class Origin:
    """What a file says of where it comes from; it identifies, so none of it is ever written.

    Attributes:
        subject: DICOM PatientID.
        series: SeriesInstanceUID.
        frame_of_reference: FrameOfReferenceUID: scans that share it lie in one space.
        date: Of the study.
        description: SeriesDescription, for selection rules.
    """

    subject: str | None = None
    series: str | None = None
    frame_of_reference: str | None = None
    date: datetime.date | None = None
    description: str | None = None


@dataclass(frozen=True)
class Scan:
    """One volume with what is known about it.

    Attributes:
        voxels: (D, H, W) in LPS order; CT is int16 in Hounsfield units, others int16 or float32.
        spacing_mm: (d, h, w).
        modality: One of ``MODALITIES``.
        affine: (4, 4), from voxel indices (d, h, w, 1) to patient millimetres (x, y, z, 1) in LPS;
            None where the file has no geometry.
        origin: Who and when; never written anywhere.
        metadata: Descriptions from an allow-list (``body_part``, ``manufacturer``, ...).
        left_out: Files of the input that are no part of any scan: their number, by reason; told at
            the first scan.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    modality: str
    affine: np.ndarray | None = None
    origin: Origin = Origin()
    metadata: Mapping[str, str | float | bool] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_scan(where: str | Path, *, modality: str | None = None, policy: Policy = LENIENT) -> Scan:
    """:func:`read_scans` for a place that holds exactly one.

    Raises:
        ScanError: Anything that keeps the scan from being used, or a second scan.
    """
    return only_scan(read_scans(where, modality=modality, policy=policy))


def only_scan(scans: Iterator[Scan]) -> Scan:
    """The one scan of a file or series.

    Raises:
        ScanError: There is a second one.
    """
    first = next(scans)
    if next(scans, None) is not None:
        raise ScanError("several volumes in one file or series, expected one")
    return first


def read_scans(
    where: str | Path, *, modality: str | None = None, policy: Policy = LENIENT
) -> Iterator[Scan]:
    """Read a NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or a member.

    Args:
        where: The scans; several where they are time points of one acquisition. A member is
            ``FILE.npz#split/index``, ``FILE.tar#first+size`` (its bytes in the tar), or one channel
            of a 4D NIfTI file, ``FILE.nii.gz#number``.
        modality: What the scan is; DICOM tells by itself, and must then agree.
        policy: What is done with odd geometry.

    Raises:
        ScanError: Anything that keeps the scan from being used.
    """
    name = os.fspath(where)
    if modality is not None and modality not in MODALITIES:
        raise ScanError(f"the modality is not one of {', '.join(MODALITIES)}")
    for mark, read in _MEMBERS.items():
        archive, found, member = name.rpartition(mark)
        if found:
            yield from read(archive + mark[:-1], member, modality=modality, policy=policy)
            return
    if not Path(name).exists():
        raise ScanError(ABSENT)
    if Path(name).is_dir():
        yield from _read_folder(name, modality=modality, policy=policy)
    elif name.lower().endswith(NIFTI):
        from shards.images.nifti import read_nifti_file

        yield from read_nifti_file(name, modality=modality, policy=policy)
    elif name.lower().endswith(ITK):
        from shards.images.itk import read_itk

        yield from read_itk(name, modality=modality, policy=policy)
    else:
        raise ScanError(
            "neither a NIfTI, NRRD or MetaImage file, a DICOM folder nor a member of an archive"
        )


def _read_folder(folder: str, *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    from shards.dicom.series import read_series
    from shards.dicom.tree import find_series

    found = find_series(folder)
    if len(found) != 1:
        raise ScanError(f"the folder holds {len(found)} DICOM series, expected one")
    return read_series(found[0].files, modality=modality, policy=policy)


def _read_npz(file: str, member: str, *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    from shards.images.npz import read_npz

    del policy
    return iter([read_npz(file, member, modality=modality)])


def _read_tar(file: str, member: str, *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    from shards.images.tar import read_tar_member

    return read_tar_member(file, member, modality=modality, policy=policy)


def _read_channel(
    file: str, member: str, *, modality: str | None, policy: Policy
) -> Iterator[Scan]:
    from shards.images.nifti import read_nifti_file

    if not member.isdecimal() or not Path(file).exists():
        raise ScanError(ABSENT)
    every = policy.model_copy(update={"time_points": "split"})
    for number, scan in enumerate(read_nifti_file(file, modality=modality, policy=every)):
        if number == int(member):
            yield scan
            return
    raise ScanError("the image has no such channel")


_MEMBERS = {
    ".npz#": _read_npz,
    ".tar#": _read_tar,
    ".nii.gz#": _read_channel,
    ".nii#": _read_channel,
}
"""Readers of a part of a file, by what stands before its name."""


def file_and_member(where: str) -> tuple[str, str | None]:
    """The file behind a place, and the member of it that is read, if it is one."""
    for mark in _MEMBERS:
        archive, found, member = where.rpartition(mark)
        if found:
            return archive + mark[:-1], member
    return where, None


def same_spacing(one_mm: Sequence[float], other_mm: Sequence[float]) -> bool:
    """Whether :func:`resample` leaves a scan of the one as it is when it is asked for the other."""
    return np.allclose(one_mm, other_mm, rtol=0, atol=1e-3)


def resample(scan: Scan, spacing_mm: tuple[float, float, float]) -> Scan:
    """The scan on a grid of ``spacing_mm`` around the same centre: linear, smoothed where coarser.

    Raises:
        ScanError: The scan is thinner than one voxel of the new grid.
    """
    if same_spacing(scan.spacing_mm, spacing_mm):
        return scan
    extent = np.multiply(scan.voxels.shape, scan.spacing_mm)
    if (extent < spacing_mm).any() and min(scan.voxels.shape) > 1:
        raise ScanError(f"an extent of {extent.min():.1f} mm is less than one voxel at the target")
    voxels = regrid(
        scan.voxels,
        spacing_mm=scan.spacing_mm,
        target_mm=spacing_mm,
        is_rounded=scan.modality == "CT",
    )
    affine = None if scan.affine is None else _regridded(scan, voxels.shape, spacing_mm)
    return replace(scan, voxels=voxels, spacing_mm=spacing_mm, affine=affine)


def _regridded(
    scan: Scan, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """The affine of a grid around the same centre."""
    assert scan.affine is not None
    scale = np.diag([*np.divide(spacing_mm, scan.spacing_mm), 1.0])
    old = (np.asarray(scan.voxels.shape) - 1) / 2
    new = (np.asarray(shape) - 1) / 2 * np.diag(scale)[:3]
    scale[:3, 3] = old - new
    moved: np.ndarray = scan.affine @ scale
    return moved


class Oriented(NamedTuple):
    """Voxels (D, H, W) in LPS order, their spacing (d, h, w), and the affine of a :class:`Scan`."""

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray


def to_lps(voxels: np.ndarray, *, affine: np.ndarray) -> Oriented:
    """Turn an array in any order into (D, H, W) by the nearest permutation and flips.

    Args:
        voxels: (I, J, K).
        affine: (4, 4), from voxel indices to millimetres in RAS (the NIfTI frame).
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
    # Back from (d, h, w) of ``lps`` to the indices of ``voxels``, then to RAS, then to LPS.
    back = nibabel.orientations.inv_ornt_aff(orientation, voxels.shape)
    flip = np.zeros((4, 4))
    flip[[0, 1, 2, 3], [2, 1, 0, 3]] = (-1, -1, 1, 1)
    flip[:2, 3] = ras.shape[0] - 1, ras.shape[1] - 1
    placed = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, np.float64) @ back @ flip
    return Oriented(np.ascontiguousarray(lps), (down_up, front_back, right_left), placed)


def physical_units(
    voxels: np.ndarray, *, modality: str, slope: float = 1.0, intercept: float = 0.0
) -> np.ndarray:
    """Voxels in the type a :class:`Scan` keeps; what is not finite takes the lowest finite value.

    Besides the voxels and the result, which may be the same array, only pieces are in memory.

    Args:
        voxels: As they are stored.
        modality: CT becomes int16; others as they are: int16 where whole numbers fit, or float32.
        slope, intercept: physical = stored * slope + intercept.

    Raises:
        ScanError: No finite voxel, or CT values that are no Hounsfield units.
    """
    if voxels.dtype.kind not in "biuf":
        raise ScanError("colour or complex voxels, not a scan of one intensity")
    if voxels.size == 0:
        raise ScanError("the volume has no voxels")
    if not voxels.flags.forc:
        voxels = np.ascontiguousarray(voxels)
    scaled = (slope, intercept) != (1.0, 0.0)
    if voxels.dtype.kind != "f" and not scaled:
        if voxels.min() >= INT16.min and voxels.max() <= INT16.max:
            return voxels.astype(np.int16, copy=False)
        if modality == "CT":
            return hounsfield(voxels)
        return voxels.astype(np.float32)
    dtype = np.dtype(np.int16 if modality == "CT" else np.float32)
    return _converted(voxels, dtype=dtype, slope=slope, intercept=intercept)


def _converted(
    voxels: np.ndarray, *, dtype: np.dtype[Any], slope: float, intercept: float
) -> np.ndarray:
    """Scaled in float64 and filled, piece by piece."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = _finite_range(voxels, slope=slope, intercept=intercept)
        if dtype == np.int16:
            _check_hounsfield(low, high)
        elif max(-low, high) > np.finfo(np.float32).max:
            raise ScanError("intensities beyond the range of 32-bit numbers")
        if dtype == voxels.dtype and (slope, intercept) == (1.0, 0.0) and _all_finite(voxels):
            return voxels
        out = np.empty_like(voxels, dtype=dtype)
        for piece, found in zip(pieces(voxels), pieces(out), strict=True):
            exact = piece.astype(np.float64) * slope + intercept
            exact[~np.isfinite(exact)] = low
            found[:] = np.rint(exact, out=exact) if dtype == np.int16 else exact
    return out


def _all_finite(voxels: np.ndarray) -> bool:
    return all(np.isfinite(piece).all() for piece in pieces(voxels))


def _finite_range(voxels: np.ndarray, *, slope: float, intercept: float) -> tuple[float, float]:
    """Lowest and highest finite value after scaling."""
    low, high = np.inf, -np.inf
    for piece in pieces(voxels):
        exact = piece.astype(np.float64) * slope + intercept
        finite = np.isfinite(exact)
        low = min(low, exact.min(where=finite, initial=np.inf))
        high = max(high, exact.max(where=finite, initial=-np.inf))
    if low > high:
        raise ScanError("no voxel has a finite value")
    return float(low), float(high)


def _check_hounsfield(low: float, high: float) -> None:
    if low < INT16.min or high > INT16.max:
        raise ScanError("CT values beyond the range of Hounsfield units in 16 bits")


def hounsfield(voxels: np.ndarray) -> np.ndarray:
    """Round to int16 Hounsfield units."""
    _check_hounsfield(voxels.min(), voxels.max())
    return np.rint(voxels).astype(np.int16) if voxels.dtype.kind == "f" else voxels.astype(np.int16)
