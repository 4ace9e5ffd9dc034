"""Grey pictures of slices as PNG inside the page, voxels as squares."""

import base64
import struct
import zlib
from collections.abc import Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting.content import RECONSTRUCTION

Pictures = Mapping[str, NDArray[np.float32]]


def picture(array: NDArray[np.float32], *, size: int = 160) -> str:
    """A grey picture as a ``data:`` address.

    Args:
        array: (H, W) in [0, 1]; H from anterior to posterior, W from the subject's right to left.
        size: The longer edge is enlarged by whole pixels to at least this, so that a page shows
            voxels as squares and never as a smear.
    """
    factor = max(1, -(-size // max(array.shape)))
    grey = np.round(255 * np.clip(np.nan_to_num(array), 0.0, 1.0)).astype(np.uint8)
    pixels = grey.repeat(factor, axis=0).repeat(factor, axis=1)
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode("ascii")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of 8-bit grey pixels, (H, W)."""
    height, width = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    # Each row begins with the number of its filter: 0, as enlarged rows compress well as they are.
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def contact_sheet(pictures: Pictures) -> list[tuple[str, list[tuple[str, str]]]]:
    """``(group, [(label, data address), ...])`` of pictures named ``GROUP__LABEL__I``."""
    named = [(name.split("__"), array) for name, array in pictures.items()]
    return [
        (group, [(_caption(parts[1]), picture(array)) for parts, array in members])
        for group, members in groupby(named, key=lambda one: one[0][0])
    ]


def triptychs(arrays: Pictures) -> list[list[tuple[str, str]]]:
    """Of each scan its original, masked and reconstructed slice as ``(caption, data address)``."""
    return [
        [(name, picture(one)) for name, one in zip(RECONSTRUCTION, row, strict=True)]
        for row in zip(*(arrays[name] for name in RECONSTRUCTION), strict=True)
    ]


def _caption(label: str) -> str:
    return f"label {label}" if label.isdigit() else label
