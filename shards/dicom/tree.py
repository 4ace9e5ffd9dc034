"""DICOM files: their headers, a tree of them sorted into series, and their pixels.

The one doorway to pydicom, which decodes through gdcm. Whatever bytes a file holds, a reason comes
out, never an exception of the parser: its texts quote the header.
"""

import logging
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from shards.dicom.codestream import check_codestreams
from shards.dicom.decoder import decoded_apart
from shards.dicom.facts import (
    FACT_TAGS,
    LOCALISER_SLICES,
    MAX_DIRECTIONS,
    Facts,
    facts_of,
    subject_of,
)
from shards.dicom.values import number, numbers, same_direction, text
from shards.policy import Policy
from shards.scan import ScanError

HEADER_TAGS = (
    *FACT_TAGS,
    *("SOPInstanceUID", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames"),
)
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_INFLATED_BYTES = 2**30
Mapper = Callable[[Callable[[Path], "Header | str"], Sequence[Path]], Iterable["Header | str"]]


class Header(NamedTuple):
    """What sorts a file into its series.

    Attributes:
        series: SeriesInstanceUID, and empty where there is none.
        shape: Rows, columns.
        instance: SOPInstanceUID, and empty where there is none.
        orientation: ImageOrientationPatient, or zeros.
        num_frames: More than one where the file is a volume by itself.
        subject: PatientID, or the study where there is none.
        facts: For selection.
    """

    series: str
    shape: tuple[int, int]
    instance: str
    orientation: tuple[float, ...]
    num_frames: int
    subject: str
    facts: Facts


@dataclass(frozen=True)
class Series:
    """The files of one series that share frame of reference, orientation and size.

    Attributes:
        files: Its slices, in the order of their paths; or one file with several frames.
        subject: PatientID, or the study; empty where the files name nobody.
        uid: SeriesInstanceUID; empty where there is none. Groups of one series share it.
        facts: Of the first file, to select by; never written.
        of_mixed: The series holds other slice directions too, scouts aside.
        num_frames: Of the file, where one file is the whole series.
    """

    files: tuple[Path, ...]
    subject: str
    uid: str
    facts: Facts
    of_mixed: bool = False
    num_frames: int = 1


@dataclass(frozen=True)
class Tree:
    """All that lies below a folder: every file is in one series or, with why not, skipped."""

    series: tuple[Series, ...]
    skipped: tuple[tuple[Path, str], ...]


Members = list[tuple[Path, Header]]


def find_series(folder: str | Path) -> list[Series]:
    """The series below ``folder``, in the order of their first file."""
    return list(read_tree(folder).series)


def read_tree(folder: str | Path, *, mapper: Mapper = map) -> Tree:
    """Sort every file below ``folder`` into series by its header; pixels are not read.

    Args:
        folder: The root of the tree.
        mapper: ``mapper(function, paths)`` yields the results in order, as ``map`` does; that of
            an executor reads headers in parallel.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return sort_headers(zip(paths, mapper(read_header, paths), strict=True))


def sort_headers(pairs: Iterable[tuple[Path, Header | str]]) -> Tree:
    """Sort headers, or the reasons why files have none, into series. Nothing is read."""
    groups: dict[tuple[object, ...], list[Members]] = {}
    skipped = []
    for path, header in pairs:
        if isinstance(header, str):
            skipped.append((path, header))
            continue
        alike = groups.setdefault(_key(path, header), [])
        for members in alike:
            if same_direction(members[0][1].orientation, header.orientation):
                members.append((path, header))
                break
        else:
            alike.append([(path, header)])
    several = [one for alike in groups.values() for members in alike for one in _copies(members)]
    mixed = _directions(members for alike in groups.values() for members in alike)
    series = [_series(members, mixed.get(_space(members), [])) for members in several]
    return Tree(tuple(sorted(series, key=lambda one: one.files[0])), tuple(skipped))


def refusal(series: Series, *, policy: Policy) -> str | None:
    """Why the policy refuses a series by its headers alone, or None: no pixel need be read."""
    facts = series.facts
    if facts.localiser and policy.localisers == "reject":
        return "a localiser, not a scan"
    if series.of_mixed and policy.orientations == "reject":
        return "several slice directions in one series"
    if facts.secondary_capture and policy.secondary_captures == "reject":
        return "a secondary capture, not a scan"
    if facts.burned_in_annotation and policy.burned_in_annotation == "reject":
        return "annotation is burned into the image"
    num_slices = max(len(series.files), series.num_frames)
    if num_slices < policy.min_slices:
        return f"{num_slices} slices, the recipe asks for {policy.min_slices}"
    return None


def _key(path: Path, header: Header) -> tuple[object, ...]:
    """Files of one key and one direction are one series; a file of several frames is its own."""
    alone = path if header.num_frames > 1 or not header.series else None
    facts = header.facts
    return header.series, facts.frame_of_reference, header.shape, facts.localiser, alone


def _space(members: Members) -> tuple[str, str | None]:
    return members[0][1].series, members[0][1].facts.frame_of_reference


def _directions(groups: Iterable[Members]) -> dict[tuple[str, str | None], list[Members]]:
    """For each series, one group of files for every slice direction; scouts are left out."""
    found: dict[tuple[str, str | None], list[Members]] = {}
    for members in groups:
        header = members[0][1]
        if header.facts.localiser or not any(header.orientation):
            continue
        known = found.setdefault(_space(members), [])
        for place, one in enumerate(known):
            if same_direction(one[0][1].orientation, header.orientation):
                known[place] = one + members
                break
        else:
            known.append(members)
    return found


def _copies(members: Members) -> list[Members]:
    """All files, or one group for each folder where one of several folders holds every slice."""
    instances = {header.instance for _, header in members if header.instance}
    folders: dict[Path, Members] = {}
    for path, header in members:
        folders.setdefault(path.parent, []).append((path, header))
    whole = any(instances == {header.instance for _, header in one} for one in folders.values())
    if not instances or len(folders) == 1 or not whole:
        return [members]
    return [folders[folder] for folder in sorted(folders)]


def _series(members: Members, directions: list[Members]) -> Series:
    header = members[0][1]
    several = 1 < len(directions) <= MAX_DIRECTIONS
    planning = several and max(len(one) for one in directions) <= LOCALISER_SLICES
    facts = replace(header.facts, localiser=True) if planning else header.facts
    return Series(
        files=tuple(path for path, _ in members),
        subject=header.subject,
        uid=header.series,
        facts=facts,
        of_mixed=len(directions) > 1 and not facts.localiser,
        num_frames=header.num_frames,
    )


def read_header(source: Path | BinaryIO) -> Header | str:
    """The header of an image, or the reason why the file is none. Reads no further than it needs.

    Args:
        source: A path, or a binary file that can seek, of an object store for instance.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _header(file)
        return _header(source)
    except OSError:
        return "a file that cannot be read"


def _header(file: BinaryIO) -> Header | str:
    try:
        refuse_bombs(file)
    except ScanError:
        return "not a DICOM file"
    with quiet():
        try:
            found = _pydicom().filereader.read_partial(
                file, _is_past_image_description, specific_tags=_tags(HEADER_TAGS)
            )
            if str(found.file_meta.get("MediaStorageSOPClassUID")) == DICOMDIR:
                return "a DICOMDIR, an index of other files"
            if "Rows" not in found or "Columns" not in found:
                return "DICOM without an image"
            return Header(
                series=text(found, "SeriesInstanceUID"),
                shape=(int(found.Rows), int(found.Columns)),
                instance=text(found, "SOPInstanceUID"),
                orientation=tuple(numbers(found, "ImageOrientationPatient", 6) or [0.0] * 6),
                num_frames=int(number(found, "NumberOfFrames") or 1),
                subject=subject_of(found) or "",
                facts=facts_of(found),
            )
        except ImportError:
            raise  # of the installation, not of the file
        # The parser raises many types for bytes that are no DICOM, OSError among them.
        except Exception:
            return "not a DICOM file"


def _is_past_image_description(tag: Any, vr: str | None, length: int) -> bool:  # noqa: ARG001
    """Group 0028 describes the image; what follows is large, private, or by frame."""
    return bool(tag > 0x0028FFFF)


def _tags(names: Sequence[str | int]) -> list[Any]:
    return [_pydicom().tag.Tag(name) for name in names]


def refuse_bombs(file: BinaryIO) -> None:
    """Stop at a deflated file that would fill the memory.

    Raises:
        ScanError: It does not inflate, or to more than ``MAX_INFLATED_BYTES``.
    """
    head = file.read(4096)
    start = 144 + int.from_bytes(head[140:144], "little")  # behind the file's meta information
    if DEFLATED in head[:start]:
        file.seek(start)
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        pending = file.read()
        while pending and not inflater.eof:
            try:
                size += len(inflater.decompress(pending, 2**20))
            except zlib.error:
                raise ScanError("a deflated file that is damaged") from None
            if size > MAX_INFLATED_BYTES:
                raise ScanError("a deflated file that is far too large")
            pending = inflater.unconsumed_tail
    file.seek(0)


def read_dataset(path: Path, *, tags: Sequence[str | int] | None = None) -> Any:
    """The header of a file, without its pixels; all of it, or these ``tags``.

    Raises:
        ScanError: The file cannot be read, or not as DICOM.
    """
    with quiet():
        try:
            with path.open("rb") as file:
                refuse_bombs(file)
                chosen = None if tags is None else _tags(tags)
                return _pydicom().dcmread(file, stop_before_pixels=True, specific_tags=chosen)
        except ScanError:
            raise
        except Exception as error:
            raise ScanError(f"a slice cannot be read ({type(error).__name__})") from None


def decoded_frames(path: Path, *, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Stored values of some frames, (rows, columns) each, in this order, one at a time.

    The caller has checked the size that the header states (``shards.dicom.frames``), and keeps the
    parser :func:`quiet`. What is compressed is decoded by another process.

    Raises:
        ScanError: Pixels are absent, truncated, damaged or in an encoding that nothing here reads.
    """
    try:
        is_compressed = _syntax(path).is_encapsulated
    except Exception as error:
        raise _undecodable(error) from None
    read = decoded_apart if is_compressed else frames_here
    yield from read(path, indices=indices)


def frames_here(path: Path, *, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """:func:`decoded_frames` in this process, which a decoder of compressed pixels may end."""
    try:
        source = _pixel_source(path)
        yield from _pydicom().pixels.utils.iter_pixels(source, indices=indices, raw=True)
    except ScanError:
        raise
    except Exception as error:
        raise _undecodable(error) from None


def _syntax(path: Path) -> Any:
    """The transfer syntax; only the file's meta information is read."""
    with path.open("rb") as file:
        meta = _pydicom().filereader.read_partial(file, lambda *_: True).file_meta
        return meta.TransferSyntaxUID


def _undecodable(error: Exception) -> ScanError:
    reason = type(error).__name__
    return ScanError(f"pixels that cannot be decoded: truncated, damaged or absent ({reason})")


def _pixel_source(path: Path) -> Any:
    """The path, of which pydicom reads frame by frame; or all in memory where it is compressed."""
    pydicom = _pydicom()
    syntax = _syntax(path)
    if not (syntax.is_encapsulated or syntax.is_deflated):
        return path
    dataset = pydicom.dcmread(path)
    if syntax.is_encapsulated and syntax != pydicom.uid.RLELossless:
        frames = pydicom.encaps.generate_frames(
            dataset.PixelData, number_of_frames=int(number(dataset, "NumberOfFrames") or 1)
        )
        check_codestreams(frames, rows=int(dataset.Rows), columns=int(dataset.Columns))
    return dataset


_IMPORTING = threading.Lock()
_QUIETING = threading.Lock()
_QUIET: list[ExitStack] = []


def _pydicom() -> Any:
    """pydicom and the parts of it used here, imported by one thread at a time.

    Its modules import one another in a circle: a thread that begins while another imports them
    would see them half made.
    """
    with _IMPORTING:
        import pydicom.encaps
        import pydicom.filereader
        import pydicom.pixels.utils
        import pydicom.tag
    return pydicom


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of the parser quote header values: none may reach a log.

    Levels and filters belong to the process: the first thread in sets them, the last one out
    takes them back.
    """
    with _QUIETING:
        _QUIET.append(_QUIET[-1] if _QUIET else _hushed())
    try:
        yield
    finally:
        with _QUIETING:
            hushed = _QUIET.pop()
            if not _QUIET:
                hushed.close()


def _hushed() -> ExitStack:
    """Silence the parser until the stack is closed."""
    logger = logging.getLogger("pydicom")
    undo = ExitStack()
    undo.callback(logger.setLevel, logger.level)
    undo.enter_context(warnings.catch_warnings())
    logger.setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    return undo
