"""The size that a compressed image states of itself.

A decoder allocates what the codestream asks for, not what the header says, so one damaged byte
could ask for all memory. Sizes are compared before anything is decoded.
"""

from collections.abc import Iterable
from typing import NamedTuple

from shards.scan import ScanError

START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
START_OF_JPEG = b"\xff\xd8"
# Start-of-frame markers of JPEG and JPEG-LS (F7); C4, C8 and CC mean something else.
SIZE_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


class Size(NamedTuple):
    """Of one compressed image."""

    rows: int
    columns: int
    components: int


def check_codestreams(frames: Iterable[bytes], *, rows: int, columns: int) -> None:
    """Compare each frame with the header's size; a scan has one component.

    Raises:
        ScanError: A frame states another size, or none.
    """
    expected = Size(rows, columns, 1)
    for frame in frames:
        if codestream_size(frame) != expected:
            raise ScanError("a compressed image of another size than its header says, or damaged")


def codestream_size(frame: bytes) -> Size | None:
    """The size in a JPEG, JPEG-LS or JPEG 2000 codestream; None where there is none to be found."""
    if frame.startswith(START_OF_JPEG):
        return _jpeg_size(frame)
    start = frame.find(START_OF_JPEG2000)
    if start < 0 or len(frame) < start + 42:
        return None
    # SIZ: length 2, capabilities 2, then 4 bytes each: width, height, and the offset of both.
    place = [int.from_bytes(frame[at : at + 4], "big") for at in range(start + 8, start + 24, 4)]
    components = int.from_bytes(frame[start + 40 : start + 42], "big")
    return Size(place[1] - place[3], place[0] - place[2], components)


def _jpeg_size(frame: bytes) -> Size | None:
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in SIZE_MARKERS:
            rows = int.from_bytes(frame[at + 5 : at + 7], "big")
            return Size(rows, int.from_bytes(frame[at + 7 : at + 9], "big"), frame[at + 9])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
