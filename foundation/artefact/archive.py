"""A backbone in one file: .tar (.gz, .xz, .bz2) or .zip of the folder, taken apart file by file.

Nothing of an archive is trusted: only the files of a backbone are taken, by their own names, into
the folder given; links, paths that lead elsewhere, and bombs are refused before they are unpacked.
"""

import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from foundation.artefact.layout import ALL_FILES, SUMS, BackboneError
from shards.files import PIECE_BYTES

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_ZIP = ".zip"
_EXPANDS_AT_MOST, _FREE_BYTES = 50, 1 << 20
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # encrypted, or a compression that Python lacks
    OverflowError,
)


class _Member(NamedTuple):
    name: str
    num_bytes: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(name: str) -> bool:
    """Whether a path or URL is of an archive, by its end."""
    return name.lower().endswith(ARCHIVES)


def unpack(archive: Path, folder: Path) -> None:
    """Take the files of a backbone out of an archive.

    Args:
        archive: A .tar or .zip that holds a backbone's files, or one folder of them.
        folder: Exists, and is empty.

    Raises:
        BackboneError: It is no such archive, damaged, or holds anything else.
    """
    allowance = archive.stat().st_size * _EXPANDS_AT_MOST + _FREE_BYTES
    members = _zip_members if archive.name.lower().endswith(_ZIP) else _tar_members
    try:
        for member in members(archive):
            if member.is_folder and not member.num_bytes:
                continue
            name = _safe_name(member, archive=archive)
            allowance -= member.num_bytes
            if allowance < 0 or member.num_bytes > shutil.disk_usage(folder).free:
                raise BackboneError(
                    f"{archive}: {name} would unpack to {member.num_bytes} bytes, which no backbone"
                    f" in an archive of this size does, or is more than the disk has"
                )
            _copy(member, folder / name, archive=archive)
    except BackboneError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"{archive}: cannot be unpacked ({type(error).__name__}: {reason}); download it again"
        ) from None


def _safe_name(member: _Member, *, archive: Path) -> str:
    """The file's own name, if it is one of a backbone's."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    parts = [part for part in path.parts if part != "."]
    inside = 1 <= len(parts) <= 2 and ".." not in parts and not path.is_absolute()
    if inside and member.is_file and parts[-1] in (*ALL_FILES, SUMS):
        return parts[-1]
    shown = member.name[:100].encode("unicode_escape").decode()
    kind = "" if member.is_file else ", which is no plain file"
    raise BackboneError(
        f"{archive}: holds {shown!r}{kind}; only the files of one backbone may be in it"
    )


def _copy(member: _Member, path: Path, *, archive: Path) -> None:
    source = member.open()
    assert source is not None, "a plain file opens"
    left = member.num_bytes
    try:
        target = path.open("xb")
    except FileExistsError:
        raise BackboneError(f"{archive}: holds {path.name} twice") from None
    with source, target:
        while piece := source.read(PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raise BackboneError(f"{archive}: {path.name} is larger than the archive says")
            target.write(piece)
    if left:
        raise BackboneError(f"{archive}: {path.name} is cut short; download it again")


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as file:
        for one in file:
            plain = one.isreg() and not one.issparse()
            opened = partial(file.extractfile, one)
            yield _Member(one.name, one.size, plain, one.isdir(), opened)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for one in file.infolist():
            # The upper half holds the Unix mode; a link is a file of its own kind there.
            kind = (one.external_attr >> 16) & 0o170000
            plain = not one.is_dir() and kind in (0, 0o100000)
            opened = partial(file.open, one)
            yield _Member(one.filename, one.file_size, plain, one.is_dir(), opened)
