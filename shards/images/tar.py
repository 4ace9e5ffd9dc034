"""WebDataset tars of NIfTI files: each image is one input, read where it lies in its tar.

``KEY.nii.gz`` or ``KEY.nii``, with an optional ``KEY.json`` of metadata beside it; whatever stands
between the key and the ending (``KEY.t1w.nii.gz``) belongs to the image's name.
"""

import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from shards.policy import Policy
from shards.scan import NIFTI, Scan, ScanError

CUT = "the archive is cut off inside this file"
DAMAGED = "the archive is damaged behind its last whole file"
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class TarImage:
    """An image in a tar.

    Attributes:
        name: Its name there.
        first, size: Its bytes in the tar.
        values: Of the JSON beside it, what is text or a number.
        fault: Why it cannot be read, if that is known already.
    """

    name: str
    first: int
    size: int
    values: Mapping[str, str | int | float | None] = field(default_factory=dict)
    fault: str | None = None


def list_tar(file: IO[bytes]) -> Iterator[TarImage]:
    """The images of an uncompressed tar in their order, those that it was cut off in included.

    Args:
        file: At its beginning; only headers and JSON files are read.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    images: list[TarImage] = []
    values: dict[str, Mapping[str, Any]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                whole = member.offset_data + member.size <= end
                base = member.name.rpartition("/")[2]
                if not member.isreg() or base.startswith("._"):
                    continue
                if base.lower().endswith(NIFTI):
                    fault = None if whole else CUT
                    images.append(TarImage(member.name, member.offset_data, member.size, {}, fault))
                elif base.endswith(".json") and whole and member.size <= MAX_JSON_BYTES:
                    values[_key(member.name)] = _values(tar, member)
            if not _is_end(file, tar.offset):
                raise tarfile.ReadError(DAMAGED)
    # The parser raises many types for bytes that are no archive; one cut in a file's data is known.
    except Exception:
        if not images or images[-1].fault is None:
            images.append(TarImage("", 0, 0, {}, DAMAGED))
    for image in images:
        found = values.get(_key(image.name), {})
        yield TarImage(image.name, image.first, image.size, found, image.fault)


def read_tar_member(
    path: str | Path, place: str, *, modality: str | None, policy: Policy
) -> Iterator[Scan]:
    """The scans of one image.

    Args:
        path: The tar.
        place: ``first+size``, as of a :class:`TarImage`.
        modality, policy: As in :func:`shards.images.nifti.read_nifti`.

    Raises:
        ScanError: As there, or the tar is not what it was.
    """
    from shards.images.nifti import read_nifti

    first, _, size = place.partition("+")
    try:
        with open(path, "rb") as file:
            file.seek(int(first))
            content = file.read(int(size))
    except (OSError, ValueError, MemoryError) as error:
        raise ScanError(f"not a readable member of a tar ({type(error).__name__})") from None
    if len(content) != int(size):
        raise ScanError(CUT)
    return read_nifti(io.BytesIO(content), modality=modality, policy=policy)


def _is_end(file: IO[bytes], place: int) -> bool:
    """Whether the mark lies there that ends an archive; the parser takes anything for one."""
    file.seek(place)
    return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _key(name: str) -> str:
    """A WebDataset key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _values(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Mapping[str, Any]:
    """What a JSON file tells; nothing, where it is none."""
    file = tar.extractfile(member)
    assert file is not None
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Text, a finite number or nothing."""
    if isinstance(value, int | float):
        return not isinstance(value, bool) and math.isfinite(value)
    return value is None or isinstance(value, str)
