"""One visit on one grid: its sequences and label masks, or a refusal with the numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.measure.percentile import pieces
from shards.measure.regrid import new_shape
from shards.policy import Policy
from shards.scan import ITK, NIFTI, Scan, ScanError, read_scans, resample

MAX_SHIFT = 0.1
"""Of the smallest voxel edge: how far a corner of one grid may lie from that of another. Rounding
in headers stays far below it, and no resampled or moved image comes near."""
MAX_LABEL = 255


class Part(NamedTuple):
    """One volume of a visit.

    Attributes:
        name: Of the sequence or mask.
        where: What :func:`shards.scan.read_scans` takes, relative to the root; empty for a DICOM
            series.
        modality: None where the files tell it.
        files: Every file that is read, relative to the root.
    """

    name: str
    where: str
    modality: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visit:
    """Volumes on one grid; ``masks`` are uint8 labels (D, H, W)."""

    scans: Mapping[str, Scan]
    masks: Mapping[str, np.ndarray]

    @property
    def first(self) -> Scan:
        """The first sequence, whose grid is that of all."""
        return next(iter(self.scans.values()))


def read_visits(
    sequences: Sequence[Part], masks: Sequence[Part], *, root: Path, policy: Policy
) -> Iterator[Visit]:
    """The visit of these parts; several where the only sequence has several time points.

    Raises:
        ScanError: A part cannot be used, has several volumes where others must fit it, or does not
            lie on the grid of the first.
    """
    if len(sequences) == 1 and not masks:
        (part,) = sequences
        for scan in _read(part, root, policy):
            yield Visit({part.name: scan}, {})
            del scan  # while the next one is read
        return
    scans: dict[str, Scan] = {}
    for part in sequences:
        with _naming(part.name):
            scans[part.name] = _only(part, root, policy)
            check_registration(scans[sequences[0].name], scans[part.name])
    labels = {}
    for part in masks:
        with _naming(part.name):
            labels[part.name] = _mask(part, root, scans[sequences[0].name])
    yield Visit(scans, labels)


def check_registration(first: Scan, other: Scan) -> None:
    """Both lie on one grid in one space.

    Raises:
        ScanError: Their frames of reference, shapes or affines differ, by the numbers it names.
    """
    spaces = first.origin.frame_of_reference, other.origin.frame_of_reference
    if None not in spaces and spaces[0] != spaces[1]:
        raise ScanError("not registered: another frame of reference than the first sequence")
    if first.voxels.shape != other.voxels.shape:
        raise ScanError(
            f"not on one grid: {_times(other.voxels.shape)} voxels, the first sequence has"
            f" {_times(first.voxels.shape)}"
        )
    if (first.affine is None) != (other.affine is None):
        raise ScanError("not on one grid: one of two volumes has no geometry")
    if first.affine is None or other.affine is None:
        return
    shift_mm = _corner_shift_mm(first.affine - other.affine, first.voxels.shape)
    limit_mm = MAX_SHIFT * min(first.spacing_mm)
    if shift_mm > limit_mm:
        raise ScanError(
            f"not registered: {shift_mm:.2f} mm from the grid of the first sequence, at most"
            f" {limit_mm:.2f} are rounding"
        )


def labels_of(scan: Scan) -> np.ndarray:
    """Voxels of a mask as uint8.

    Raises:
        ScanError: A value that is no whole number from 0 to ``MAX_LABEL``.
    """
    if scan.voxels.min() < 0 or scan.voxels.max() > MAX_LABEL:
        raise ScanError(f"a mask with values outside of 0 to {MAX_LABEL}")
    labels = np.empty(scan.voxels.shape, np.uint8)
    for piece, found in zip(pieces(scan.voxels), pieces(labels), strict=True):
        found[:] = piece
        if not np.array_equal(found, piece):
            raise ScanError("a mask with values that are no whole numbers")
    return labels


def at_spacing(
    visit: Visit, *, spacing_mm: tuple[float, float, float] | None, max_anisotropy: float | None
) -> Visit:
    """The visit on the grid that a recipe asks for; masks take the nearest label.

    Args:
        visit: On its own grid.
        spacing_mm: The target, or None for its own.
        max_anisotropy: Largest ratio of two edges of a voxel: shorter edges grow, and no voxel is
            made up along the longest.

    Raises:
        ScanError: The volume is thinner than a new voxel.
    """
    own = visit.first.spacing_mm
    if spacing_mm is None and max_anisotropy is not None:
        least = max(own) / max_anisotropy
        spacing_mm = tuple(max(edge, least) for edge in own)  # type: ignore[assignment]
    if spacing_mm is None or np.allclose(own, spacing_mm, rtol=0, atol=1e-3):
        return visit
    return Visit(
        {name: resample(scan, spacing_mm) for name, scan in visit.scans.items()},
        {name: _nearest(mask, own, spacing_mm) for name, mask in visit.masks.items()},
    )


def _nearest(labels: np.ndarray, own: Sequence[float], spacing_mm: Sequence[float]) -> np.ndarray:
    """Labels on the same new grid as :func:`shards.scan.resample` gives."""
    places = []
    for length, count, old, new in zip(
        labels.shape, new_shape(labels.shape, own, spacing_mm), own, spacing_mm, strict=True
    ):
        centre = (length - 1) / 2 + (np.arange(count) - (count - 1) / 2) * new / old
        places.append(np.floor(centre + 0.5).astype(np.int64).clip(0, length - 1))
    return np.ascontiguousarray(labels[np.ix_(*places)])


def _read(part: Part, root: Path, policy: Policy) -> Iterator[Scan]:
    if part.where:
        return read_scans(root / part.where, modality=part.modality, policy=policy)
    from shards.dicom.series import read_series

    files = [root / name for name in part.files]
    return read_series(files, modality=part.modality, policy=policy)


def _only(part: Part, root: Path, policy: Policy) -> Scan:
    scans = _read(part, root, policy)
    first = next(scans)
    if next(scans, None) is not None:
        raise ScanError("several volumes, where all of a visit must lie on one grid")
    return first


def _mask(part: Part, root: Path, first: Scan) -> np.ndarray:
    if not part.where.lower().endswith((*NIFTI, *ITK)):
        raise ScanError(
            "a mask that is no NIfTI, NRRD or MetaImage file (DICOM-SEG is not read; convert it)"
        )
    found = _only(part._replace(modality="OT"), root, Policy(min_slices=1))
    labels = labels_of(found)
    check_registration(first, replace(found, voxels=labels))
    return labels


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Which of several volumes a reason is about: its name in the recipe."""
    try:
        yield
    except ScanError as error:
        raise ScanError(f"{name}: {error}") from None


def _corner_shift_mm(difference: np.ndarray, shape: Sequence[int]) -> float:
    """How far the affines move apart at the corner where they do most."""
    ends = [(0, length - 1) for length in shape]
    corners = np.array([(d, h, w, 1) for d in ends[0] for h in ends[1] for w in ends[2]])
    return float(np.linalg.norm((corners @ difference.T)[:, :3], axis=1).max())


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
