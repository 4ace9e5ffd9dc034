"""NRRD and MetaImage files through ITK: axes, spacing and origin as their headers say, in LPS."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shards.images.metaimage import check_metaimage
from shards.images.nifti import MAX_DEFLATION
from shards.policy import Policy
from shards.scan import Scan, ScanError, physical_units, to_lps

HEADER_BYTES = 1 << 16
DATA_FILE = re.compile(rb"^(?:data ?file\s*:|ElementDataFile\s*=)\s*([^\r\n]*)", re.I | re.M)
PACKED = re.compile(rb"^(?:encoding\s*:\s*gz|CompressedData\s*=\s*True)", re.I | re.M)
LOCAL = frozenset({"", "LOCAL"})


def read_itk(path: str | Path, *, modality: str | None, policy: Policy) -> Iterator[Scan]:
    """The volumes of an image, in order; a fourth dimension is read volume by volume.

    Raises:
        ScanError: Damaged, colour or complex, no volume, without usable geometry.
    """
    if modality is None:
        raise ScanError("the file does not tell its modality; name it in the recipe")
    most = _most_bytes(Path(path))
    if Path(path).suffix.lower() in (".mha", ".mhd"):
        check_metaimage(Path(path))
    reader = _reader(str(path))
    shape, count = _shape(reader, policy)
    if math.prod(shape) * count * _voxel_bytes(reader) > most:
        raise ScanError("not a readable NRRD or MetaImage file, truncated or damaged (too short)")
    for number in range(1 if policy.time_points == "first" else count):
        yield _volume(reader, shape, number=number, modality=modality)


def partner_name(head: bytes) -> str | None:
    """The file with the voxels, beside it, that the head of a header (``.nhdr``, ``.mhd``) names.

    Raises:
        ScanError: It names several, or one elsewhere: a header may not make us read any file.
    """
    found = DATA_FILE.search(head.partition(b"\n\n")[0])
    name = found[1].decode(errors="replace").strip() if found else ""
    if name in LOCAL:
        return None
    if not re.fullmatch(r"[^/\\%]+", name) or name in {".", ".."} or name.startswith("LIST"):
        raise ScanError("a header whose voxels lie in several files or in another folder")
    return name


def _most_bytes(path: Path) -> int:
    """As many bytes as the voxels can be: no more than the file holds, or inflates to."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        name = partner_name(head)
        if name is not None and not path.with_name(name).is_file():
            raise ScanError("the file with the voxels, which the header names, is not beside it")
        size = (path if name is None else path.with_name(name)).stat().st_size
    except OSError as error:
        raise _damaged(error) from None
    return size * MAX_DEFLATION if PACKED.search(head) else size


def _damaged(error: Exception) -> ScanError:
    """The library's texts hold the path."""
    return ScanError(
        f"not a readable NRRD or MetaImage file, truncated or damaged ({type(error).__name__})"
    )


def _reader(name: str) -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # they name the file
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(name)
    reader.SetImageIO("NrrdImageIO" if name.lower().endswith((".nrrd", ".nhdr")) else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except Exception as error:
        raise _damaged(error) from None
    pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "complex" in pixel or "label" in pixel:
        raise ScanError("colour or complex voxels, not a scan of one intensity")
    return reader


def _shape(reader: Any, policy: Policy) -> tuple[tuple[int, ...], int]:
    """(I, J, K) and the number of volumes."""
    size = tuple(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) not in (3, 4):
        raise ScanError(f"an image of {len(size)} dimensions, expected three, or four with time")
    is_nrrd = reader.GetImageIO() == "NrrdImageIO"
    if is_nrrd and len(reader.GetSize()) == 3 and "NRRD_space" not in reader.GetMetaDataKeys():
        raise ScanError("an NRRD file without a space field: where left and right are is unknown")
    count = size[3] if len(size) == 4 else 1
    if count > 1 and policy.time_points == "reject":
        raise ScanError(f"{count} time points in one file, the recipe rejects them")
    if min(size[:3]) < policy.min_slices:
        raise ScanError(f"{min(size[:3])} slices, the recipe asks for {policy.min_slices}")
    return size[:3], count


def _voxel_bytes(reader: Any) -> int:
    """Of one voxel; the names of plain types begin with their bits: ``16-bit signed integer``."""
    import SimpleITK

    name = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    return int(name.partition("-")[0]) // 8


def _volume(reader: Any, shape: tuple[int, ...], *, number: int, modality: str) -> Scan:
    import SimpleITK

    extra = reader.GetDimension() - 3
    try:
        if extra:
            reader.SetExtractSize([*shape, *[0] * extra])
            reader.SetExtractIndex([0, 0, 0, number, *[0] * (extra - 1)])
        image = reader.Execute()
    except Exception as error:
        raise _damaged(error) from None
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    stored = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    del image  # a second copy of the volume
    found = to_lps(physical_units(stored, modality=modality), affine=ras)
    return Scan(found.voxels, found.spacing_mm, modality, found.affine)
