"""One DICOM series as volumes with their true geometry.

Slices are ordered along the slice normal, never by file name. What the policy does not allow, and
what cannot be placed at all, is refused with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.dicom.facts import is_burned_in, is_secondary_capture, metadata_of, origin_of
from shards.dicom.frames import MAX_VOXELS, Frame, frames_of
from shards.dicom.geometry import Grid, Plane, plan_grid, regrid
from shards.dicom.stack import read_stack
from shards.dicom.tree import read_dataset
from shards.dicom.values import number, text
from shards.dicom.volumes import split_stacks, split_volumes
from shards.policy import LENIENT, Policy
from shards.scan import MODALITIES, Scan, ScanError, physical_units, to_lps


def read_series(
    files: Sequence[Path], *, modality: str | None = None, policy: Policy = LENIENT
) -> Iterator[Scan]:
    """Read one series: its slices in any order, or one file with several frames.

    Several scans come out where the series holds several volumes (time points, echoes, stacks) and
    the policy splits them. A volume that cannot be used does not keep back the others: its reason
    is raised behind them. ``left_out`` stands at the first scan.

    Raises:
        ScanError: Too few slices, a gap, colour, a damaged file, and the like.
    """
    if not files:
        raise ScanError("a series without files")
    kind = _modality(files[0], modality)
    frames = [one for path in files for one in frames_of(path, modality=kind, policy=policy)]
    volumes, left_out = _volumes(frames, policy, kind)
    failure = None
    for place, volume in enumerate(volumes):
        try:
            scan = _scan(volume, modality=kind, policy=policy, left_out=left_out)
        except ScanError as error:
            failure = failure or error
            continue
        yield scan if len(volumes) == 1 else _numbered(scan, place)
        left_out = {}
    if failure is not None:
        raise failure


def _modality(path: Path, declared: str | None) -> str:
    found = text(read_dataset(path, tags=["Modality"]), "Modality")
    if found not in MODALITIES:
        raise ScanError(f"a modality other than {', '.join(MODALITIES)}")
    if declared is not None and declared != found:
        raise ScanError(f"the header says {found}, the recipe says {declared}")
    return found


def _volumes(
    frames: Sequence[Frame], policy: Policy, modality: str
) -> tuple[list[list[Frame]], dict[str, int]]:
    """All volumes of a series, and how many of its files are in none, by reason."""

    def is_same(one: Frame, other: Frame) -> bool:
        mine, theirs = (read_stack([frame], modality=modality) for frame in (one, other))
        return np.array_equal(mine, theirs)

    volumes: list[list[Frame]] = []
    reasons: dict[Path, str] = {}
    for stack in split_stacks(frames, policy=policy):
        _check_alike(stack)
        found = split_volumes(stack, policy=policy, is_same=is_same)
        volumes.extend(found.volumes)
        for reason, left in found.left_out.items():
            reasons.update({frame.path: reason for frame in left})
    used = {frame.path for volume in volumes for frame in volume}
    unused = [reason for path, reason in reasons.items() if path not in used]
    return volumes, {reason: unused.count(reason) for reason in dict.fromkeys(unused)}


def _check_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    if any(frame.shape != first.shape for frame in frames):
        raise ScanError("slices of different size")
    if not all(np.allclose(frame.pixel_mm, first.pixel_mm, rtol=1e-3) for frame in frames):
        raise ScanError("slices of different pixel spacing")
    if len(frames) * first.shape[0] * first.shape[1] > MAX_VOXELS:
        raise ScanError("a series that claims an impossible size")


def _scan(
    frames: Sequence[Frame], *, modality: str, policy: Policy, left_out: Mapping[str, int]
) -> Scan:
    """One volume; ``frames`` in order along the normal."""
    if len(frames) < policy.min_slices:
        raise ScanError(f"{len(frames)} slices, the recipe asks for {policy.min_slices}")
    first = frames[0]
    plane = Plane(first.along_columns, first.along_rows, *first.pixel_mm)
    header = first.header
    thickness = number(header, "SliceThickness") or number(header, "SpacingBetweenSlices")
    positions = np.stack([frame.position for frame in frames])
    grid = plan_grid(positions, plane=plane, thickness_mm=thickness, policy=policy)
    # No name holds the wide integers while the narrow copy of them is made.
    voxels = physical_units(
        regrid(read_stack(frames, modality=modality), grid=grid), modality=modality
    )
    found = to_lps(voxels, affine=grid.affine(plane))
    return Scan(
        voxels=found.voxels,
        spacing_mm=found.spacing_mm,
        modality=modality,
        affine=found.affine,
        origin=origin_of(header),
        metadata=_metadata(frames, grid),
        left_out=left_out,
    )


def _metadata(frames: Sequence[Frame], grid: Grid) -> dict[str, str | float | bool]:
    found = metadata_of(frames[0].header)
    if grid.changes:
        found["geometry"] = ", ".join(grid.changes)
    if any(is_secondary_capture(frame.header) for frame in frames):
        found["secondary_capture"] = True
    if any(is_burned_in(frame.header) for frame in frames):
        found["burned_in_annotation"] = True
    return found


def _numbered(scan: Scan, place: int) -> Scan:
    """One of several volumes of a series, counted from 1."""
    return replace(scan, metadata={**scan.metadata, "volume_of_series": float(place + 1)})
