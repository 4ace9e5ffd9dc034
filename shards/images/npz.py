"""MedMNIST archives: arrays of whole volumes, compressed together, without any geometry."""

import functools

import numpy as np

from shards.scan import Scan, ScanError, physical_units


def read_npz(file: str, member: str, *, modality: str | None) -> Scan:
    """A shape without geometry: the axes are taken as they stand, one voxel counts as one unit.

    Args:
        file: With arrays ``{split}_images`` (N, D, H, W).
        member: ``split/index``.
        modality: ``OT`` unless it is given.

    Raises:
        ScanError: There is no such volume.
    """
    split, _, index = member.partition("/")
    try:
        voxels = _volumes(file, split)[int(index)]
    except Exception as error:
        raise ScanError(f"not a readable member of an npz ({type(error).__name__})") from None
    if voxels.ndim != 3:
        raise ScanError(f"an image of {voxels.ndim} dimensions, expected three")
    if voxels.min() == voxels.max():
        raise ScanError(
            "a blank volume: MedMNIST before v2.2.4 holds some (NoduleMNIST3D before v2.1.0: 150 of"
            " its test split); fetch the newest archive"
        )
    kind = modality or "OT"
    voxels = np.ascontiguousarray(physical_units(voxels, modality=kind))
    return Scan(voxels=voxels, spacing_mm=(1.0, 1.0, 1.0), modality=kind)


@functools.lru_cache(maxsize=1)
def _volumes(file: str, split: str) -> np.ndarray:
    """All volumes of one split: an npz member is compressed whole, so one is as dear as all."""
    with np.load(file, allow_pickle=False) as arrays:
        volumes: np.ndarray = arrays[f"{split}_images"]
    return volumes
