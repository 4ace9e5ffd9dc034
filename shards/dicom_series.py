"""One DICOM series as one volume with its true geometry.

Slices are ordered along the slice normal, never by file name. What cannot be placed exactly (gaps,
repeats, tilt, mixed orientations) is refused with the reason.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.dicom import number, read_dataset, same_direction, subject_of
from shards.dicom_slice import Slice, read_slice
from shards.policy import LENIENT, Policy
from shards.scan import MODALITIES, Origin, Scan, ScanError, physical_units, to_lps

GAP_TOLERANCE = 0.05  # of the slice distance
SAME_PLACE_MM = 0.01
# Free text may name a person, so only these words leave a header.
BODY_PARTS = frozenset(
    {"ABDOMEN", "BRAIN", "BREAST", "CHEST", "HEAD", "HEART", "KIDNEY", "KNEE", "LIVER", "LUNG"}
    | {"NECK", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE", "WHOLEBODY"}
)
MANUFACTURERS = frozenset(
    {"CANON", "FUJIFILM", "GE", "HITACHI", "PHILIPS", "SHIMADZU", "SIEMENS", "TOSHIBA", "UIH"}
)


def read_series(
    files: Sequence[Path], *, modality: str | None = None, policy: Policy = LENIENT
) -> Iterator[Scan]:
    """Read one series, its slices in any order; each time point is a scan.

    Raises:
        ScanError: Too few slices, a gap, a repeat, tilt, colour, a damaged file, and the like.
    """
    if len(files) < policy.min_slices:
        raise ScanError(f"{len(files)} slices, the recipe asks for {policy.min_slices}")
    first = read_dataset(files[0])
    kind = _modality(first, modality)
    slices = [read_slice(read_dataset(path), modality=kind) for path in files]
    _check_alike(slices)
    along_columns, along_rows = slices[0].along_columns, slices[0].along_rows
    normal = np.cross(along_columns, along_rows)
    slices.sort(key=lambda one: float(normal @ one.position))
    step = _slice_step(np.stack([one.position for one in slices]), normal, first)
    row_mm, column_mm = slices[0].pixel_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, along_rows * row_mm, along_columns * column_mm], axis=1)
    affine[:2] *= -1  # LPS to RAS
    affine[:3, 3] = np.diag([-1, -1, 1]) @ slices[0].position
    found = to_lps(physical_units(_stack(slices), modality=kind), affine=affine)
    origin = Origin(subject=subject_of(first))
    yield Scan(found.voxels, found.spacing_mm, kind, found.affine, origin, _metadata(first))


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for one in slices:
        if one.voxels.shape != first.voxels.shape:
            raise ScanError("slices of different size")
        if not np.allclose(one.pixel_mm, first.pixel_mm, rtol=1e-3):
            raise ScanError("slices of different pixel spacing")
        for mine, theirs in (
            (one.along_columns, first.along_columns),
            (one.along_rows, first.along_rows),
        ):
            if not same_direction(mine, theirs):
                raise ScanError("slices of different orientation")


def _stack(slices: Sequence[Slice]) -> np.ndarray:
    """(slices, rows, columns). Padding is no tissue: it takes the lowest value of the image."""
    stack = np.stack([one.voxels for one in slices])
    if all(one.padding is None for one in slices):
        return stack
    nowhere = np.zeros(stack.shape[1:], dtype=bool)
    padding = np.stack([nowhere if one.padding is None else one.padding for one in slices])
    if padding.all():
        raise ScanError("every voxel is padding")
    return np.where(padding, stack[~padding].min(), stack)


def _slice_step(positions: np.ndarray, normal: np.ndarray, first: Any) -> np.ndarray:
    """The vector from one slice to the next, mm; ``positions`` (N, 3) are in order."""
    if len(positions) == 1:
        thickness = number(first, "SliceThickness") or number(first, "SpacingBetweenSlices")
        if not thickness or thickness <= 0:
            raise ScanError("a single slice without thickness: its geometry is unknown")
        return normal * thickness
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    tolerance = max(SAME_PLACE_MM, GAP_TOLERANCE * usual)
    if gaps.min() < tolerance:
        raise ScanError("two slices at the same position (a repeat or a time series)")
    if gaps.max() > 1.5 * usual:
        raise ScanError(f"a missing slice: a gap of {gaps.max():.2f} mm where {usual:.2f} is usual")
    if np.abs(gaps - usual).max() > tolerance:
        raise ScanError(f"uneven slices: {gaps.min():.2f} to {gaps.max():.2f} mm apart")
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    drift = positions - positions[0] - np.arange(len(positions))[:, None] * step
    if np.linalg.norm(drift, axis=1).max() > max(1.0, usual):
        raise ScanError("slices are shifted against each other")
    return step


def _modality(dataset: Any, declared: str | None) -> str:
    found = str(dataset.get("Modality", ""))
    if found not in MODALITIES:
        raise ScanError(f"a modality other than {', '.join(MODALITIES)}")
    if declared is not None and declared != found:
        raise ScanError(f"the header says {found}, the recipe says {declared}")
    return found


def _metadata(dataset: Any) -> dict[str, str | float | bool]:
    found: dict[str, str | float | bool] = {}
    body_part = str(dataset.get("BodyPartExamined") or "").upper()
    if body_part in BODY_PARTS:
        found["body_part"] = body_part
    words = str(dataset.get("Manufacturer") or "").upper().replace("-", " ").split()
    maker = next((word for word in words if word in MANUFACTURERS), None)
    if maker:
        found["manufacturer"] = maker
    for name, tag in (
        ("slice_thickness_mm", "SliceThickness"),
        ("field_strength_t", "MagneticFieldStrength"),
    ):
        value = number(dataset, tag)
        if value is not None:
            found[name] = value
    return found
