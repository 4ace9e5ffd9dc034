"""Frames decoded into one stack of physical units, each with its own rescale."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.dicom.frames import Frame
from shards.dicom.suv import suv_factor
from shards.dicom.tree import decoded_frames, quiet
from shards.dicom.values import View, number
from shards.scan import ScanError

INT32 = np.iinfo(np.int32)
# Far beyond any scanner's, and still within the range of what the stack holds.
MAX_SLOPE, MAX_INTERCEPT = 1e25, 2.0**30


class Rescale(NamedTuple):
    """Physical units = stored value x slope + intercept."""

    slope: float
    intercept: float

    @property
    def is_whole(self) -> bool:
        """Whole numbers stay whole."""
        return self.slope == 1 and float(self.intercept).is_integer()


def read_stack(frames: Sequence[Frame], *, modality: str) -> np.ndarray:
    """Decode (slices, rows, columns) in the order of ``frames``.

    Returns:
        int32, or int64 where values need it, for CT (rounded) and for whole numbers; else float32.
        PET is in SUV. Padding is no tissue: it takes the lowest value of the image.

    Raises:
        ScanError: A frame is damaged, or nothing but padding is left.
    """
    rescales = [_rescale(frame.header, modality) for frame in frames]
    factor = suv_factor([frame.header for frame in frames]) if modality == "PT" else None
    stack: np.ndarray = np.empty(
        (len(frames), *frames[0].shape), _dtype(frames, rescales, modality)
    )
    padding: np.ndarray | None = None
    with quiet():
        for place, stored in _decoded(frames):
            stack[place] = _physical(stored, rescales[place], factor=factor, modality=modality)
            padded = _padding(frames[place].header, stored)
            if padded is not None:
                padding = np.zeros(stack.shape, dtype=bool) if padding is None else padding
                padding[place] = padded
    if padding is not None and padding.any():
        if padding.all():
            raise ScanError("every voxel is padding")
        top = np.inf if stack.dtype.kind == "f" else np.iinfo(stack.dtype).max
        stack[padding] = stack.min(where=~padding, initial=top)
    return stack


def _decoded(frames: Sequence[Frame]) -> Iterator[tuple[int, np.ndarray]]:
    """Each frame's place in ``frames`` with its stored values; a file is opened once."""
    by_file: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append(place)
    for path, places in by_file.items():
        places.sort(key=lambda place: frames[place].index)
        found = decoded_frames(path, indices=[frames[place].index for place in places])
        for place, stored in zip(places, found, strict=True):
            if stored.shape != frames[place].shape or stored.dtype.kind not in "iu":
                raise ScanError("a slice decodes to another size or type than its header says")
            yield place, stored


def _rescale(header: View, modality: str) -> Rescale:
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if modality == "CT" and (slope is None or intercept is None):
        raise ScanError("CT without a rescale: its Hounsfield units are unknown")
    found = Rescale(1.0 if slope is None else slope, intercept or 0.0)
    if not 0 < abs(found.slope) < MAX_SLOPE or abs(found.intercept) > MAX_INTERCEPT:
        raise ScanError("a rescale that leaves no usable intensities")
    return found


def _dtype(frames: Sequence[Frame], rescales: Sequence[Rescale], modality: str) -> type:
    if modality == "PT" or (modality != "CT" and not all(one.is_whole for one in rescales)):
        return np.float32
    bits = max(number(frame.header, "BitsAllocated") or 16 for frame in frames)
    return np.int32 if bits <= 16 else np.int64


def _physical(
    stored: np.ndarray, rescale: Rescale, *, factor: float | None, modality: str
) -> np.ndarray:
    """One slice in physical units, in 64 bits, for the stack to take."""
    if rescale.is_whole and factor is None:
        return stored.astype(np.int64) + int(rescale.intercept)
    values = stored * rescale.slope + rescale.intercept
    if modality == "CT":
        return np.rint(values.clip(INT32.min, INT32.max))
    return np.asarray(values if factor is None else values * factor)


def _padding(header: View, stored: np.ndarray) -> np.ndarray | None:
    """Where the header says that there is no image; None where it says nothing."""
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    ends = sorted(_as_stored(end, stored) for end in (value, value if limit is None else limit))
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def _as_stored(value: float, stored: np.ndarray) -> float:
    """Many files give the padding of signed pixels as the unsigned number of the same bits."""
    range_ = np.iinfo(stored.dtype)
    if range_.min <= value <= range_.max:
        return value
    size = 2.0 ** (8 * stored.dtype.itemsize)
    return value - size if value > range_.max else value + size
