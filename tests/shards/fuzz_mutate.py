"""Damage from a seeded generator: of any bytes, DICOM elements, NIfTI headers, text."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]

LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UC", b"UN", b"UR", b"UT")
VRS = (*LONG_VRS, b"DS", b"IS", b"US", b"SS", b"FD", b"LO", b"UI", b"AT", b"PN", b"ZZ", b"\0\0")
LENGTHS = (0, 1, 2, 7, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TEXTS = (b"", b"0", b"-1", b"1e400", b"nan", b"inf", b"1e-30", b"99999", b"32768", b"1\\2", b"\\")
TEXTS += (b"MONOCHROME1", b"RGB", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.4.90", b"\xff\xfe")
NUMBERS = (
    b"0",
    b"-1",
    b"1e400",
    b"nan",
    b"inf",
    b"1e-30",
    b"2147483647",
    b"70000",
    b"3",
    b"x",
    b"",
)
FLOATS = (0.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), 352.0, 1e9, -352.0, 0.5)
WORDS = (0, 1, -1, 2, 4, 8, 16, 64, 128, 256, 512, 768, 1280, 2048, 255, 32767, -32768, 5000)
# (offset, format, values) of the fields of a NIfTI-1 header that decide what is read and where.
FIELDS = (
    *((0, "<i", each) for each in (348, 540, 0, -1, 1543569408)),
    *((40 + 2 * axis, "<h", each) for axis in range(8) for each in WORDS),
    *((70, "<h", each) for each in WORDS),
    *((72, "<h", each) for each in WORDS),
    *((76 + 4 * axis, "<f", each) for axis in range(8) for each in FLOATS),
    *((place, "<f", each) for place in (108, 112, 116) for each in FLOATS),
    *((place, "<h", each) for place in (252, 254) for each in (0, 1, 2, 4, -1, 9)),
    *((place, "<f", each) for place in range(256, 328, 4) for each in FLOATS),
    *((344, "<i", each) for each in (0, 0x0032696E, 0x31312B6E, -1)),
)


class Failure(AssertionError):
    """What must not happen."""


def choice(random: Random, items: tuple[object, ...] | list[object]) -> object:
    """One of them, as it is: numpy's own choice would turn bytes into its types."""
    return items[int(random.integers(len(items)))]


def _place(content: bytes, random: Random) -> int:
    """Anywhere; half of the time near the beginning, where headers lie."""
    end = len(content) if random.random() < 0.5 else min(len(content), 600)
    return int(random.integers(max(end, 1)))


def flip(content: bytes, random: Random) -> bytes:
    """1 to 8 bits."""
    found = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        if found:
            found[_place(content, random)] ^= 1 << int(random.integers(8))
    return bytes(found)


def truncate(content: bytes, random: Random) -> bytes:
    return content[: _place(content, random)]


def insert(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + random.bytes(int(random.integers(1, 300))) + content[place:]


def remove(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + content[place + int(random.integers(1, 300)) :]


def zero(content: bytes, random: Random) -> bytes:
    place, length = _place(content, random), int(random.integers(1, 2000))
    found = bytearray(content)
    found[place : place + length] = bytes(len(found[place : place + length]))
    return bytes(found)


def swap(content: bytes, random: Random) -> bytes:
    """Two blocks of the same length change places."""
    size = int(choice(random, (2, 16, 64, 512)))  # type: ignore[call-overload]
    one, two = sorted(_place(content, random) // size * size for _ in range(2))
    if two < one + size:
        return content[: one // 2]
    middle = content[one + size : two]
    return (
        content[:one]
        + content[two : two + size]
        + middle
        + content[one : one + size]
        + content[two + size :]
    )


def length_field(content: bytes, random: Random) -> bytes:
    """Two or four bytes become a number that lies at an edge."""
    value = int(choice(random, LENGTHS))  # type: ignore[call-overload]
    order = "<" if random.random() < 0.7 else ">"
    size = 2 if value <= 0xFFFF and random.random() < 0.5 else 4
    packed = struct.pack(order + ("H" if size == 2 else "I"), value)
    place = _place(content, random) // 2 * 2
    return content[:place] + packed + content[place + size :]


BYTES: tuple[Mutation, ...] = (flip, flip, truncate, insert, remove, zero, swap, length_field)


def any_bytes(content: bytes, random: Random) -> bytes:
    """One kind of damage that knows nothing of the format."""
    mutation: Mutation = choice(random, BYTES)  # type: ignore[assignment]
    return mutation(content, random)


def dicom(content: bytes, random: Random) -> bytes:
    """An element's length, VR, tag or value; or it is doubled, dropped or moved."""
    elements = _elements(content)
    if not elements:
        return any_bytes(content, random)
    start, head, stop = elements[int(random.integers(len(elements)))]
    kind = int(random.integers(7))
    element, after = content[start:stop], content[stop:]
    if kind == 0:
        size = head - start - (8 if head - start == 12 else 6)
        value = int(choice(random, LENGTHS)) % (1 << (8 * size))  # type: ignore[call-overload]
        return content[: head - size] + value.to_bytes(size, "little") + content[head:]
    if kind == 1:
        return content[: start + 4] + choice(random, VRS) + content[start + 6 :]  # type: ignore[operator]
    if kind == 2:
        return content[:start] + random.bytes(4) + content[start + 4 :]
    if kind in (3, 4):
        return content[:start] + _with_value(element, head - start, random) + after
    if kind == 5:
        return content[:stop] + element * int(random.integers(1, 40)) + after
    return content[:start] + after


def _with_value(element: bytes, head: int, random: Random) -> bytes:
    value: bytes = choice(random, TEXTS)  # type: ignore[assignment]
    if random.random() < 0.3:
        value = struct.pack("<H", int(random.integers(1 << 16))) * int(random.integers(1, 4))
    value += b" " * (len(value) % 2)
    if head == 12:
        return element[:8] + struct.pack("<I", len(value)) + value
    return element[:6] + struct.pack("<H", len(value)) + value


def _elements(content: bytes) -> list[tuple[int, int, int]]:
    """(first byte, first byte of the value, end) of each element; explicit little endian."""
    found, at = [], 132
    while at + 12 <= len(content):
        is_long = content[at + 4 : at + 6] in LONG_VRS
        head = at + (12 if is_long else 8)
        packed = content[at + 8 : head] if is_long else content[at + 6 : head]
        length = int.from_bytes(packed, "little")
        stop = len(content) if length == 0xFFFFFFFF else head + length
        if stop > len(content):
            break
        found.append((at, head, stop))
        at = stop
    return found


def nifti(content: bytes, random: Random) -> bytes:
    """One to three fields of the header."""
    found = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        place, kind, value = FIELDS[int(random.integers(len(FIELDS)))]
        if len(found) >= place + struct.calcsize(kind):
            struct.pack_into(kind, found, place, value)
    return bytes(found)


def inside_gzip(mutation: Mutation) -> Mutation:
    """What a compressed file holds is damaged, and compressed again."""

    def mutate(content: bytes, random: Random) -> bytes:
        try:
            held = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):  # damaged by the mutation before this one
            return any_bytes(content, random)
        return gzip.compress(mutation(held, random), 1, mtime=0)

    return mutate


def number_in_text(content: bytes, random: Random) -> bytes:
    """One number of the first lines becomes another, or none."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:1000]))
    if not numbers:
        return any_bytes(content, random)
    hit = numbers[int(random.integers(len(numbers)))]
    return content[: hit.start()] + choice(random, NUMBERS) + content[hit.end() :]  # type: ignore[operator]


def line_of_text(content: bytes, random: Random) -> bytes:
    """A line is doubled, dropped, emptied or joined with the next."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return any_bytes(content, random)
    place = int(random.integers(len(lines)))
    new = ([lines[place]] * 2, [], [b"\n"], [lines[place].rstrip()], [b'"' + lines[place]])
    return b"".join([*lines[:place], *new[int(random.integers(len(new)))], *lines[place + 1 :]])
