"""Three orthogonal slices of a stored scan as small pictures, with what is to be drawn over them.

Slices lie in the middle of the foreground box. Axial ones show anterior above, the others superior
above, and the subject's right is on the left, as radiologists look at them.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.index import DamagedShard, Sample, StoredSequence
from shards.streaming.crops import Box
from shards.streaming.reader import ShardReader

CT_WINDOW_HU = (-160.0, 240.0)
MAX_PIXELS = 256  # along either edge of a picture; a larger slice is averaged down
PLANES = ("axial", "coronal", "sagittal")  # each is across the axis of its place: d, h, w


class Plane(NamedTuple):
    """One slice, (rows, columns).

    Attributes:
        name: Of ``PLANES``.
        png: A ``data:`` address.
        size_mm: (width, height) of the slice.
        pixel_mm: (width, height) of a voxel; ``box`` and ``outlines`` are in voxels.
        box: Foreground box: x, y, width, height.
        outlines: Of each mask that is met, the number of the mask and an SVG path.
    """

    name: str
    png: str
    size_mm: tuple[float, float]
    pixel_mm: tuple[float, float]
    box: tuple[int, int, int, int]
    outlines: list[tuple[int, str]]


class SequencePicture(NamedTuple):
    """One sequence; without planes it is damaged, and ``damage`` says where."""

    sequence: StoredSequence
    window: tuple[float, float]
    planes: list[Plane]
    damage: str | None


class ScanPicture(NamedTuple):
    """One sample; ``damaged_masks`` could not be drawn."""

    sample: Sample
    sequences: list[SequencePicture]
    damaged_masks: list[str]

    @property
    def is_damaged(self) -> bool:
        """Whether any of it could not be drawn."""
        return bool(self.damaged_masks) or any(one.damage for one in self.sequences)


def draw(reader: ShardReader, sample: Sample) -> ScanPicture:
    """The slices of every sequence; what is damaged is named instead of drawn."""
    boxes = _middle_slices(sample)
    masks: dict[int, list[np.ndarray]] = {}
    damaged_masks = []
    for number, name in enumerate(sample.masks):
        try:
            crops, _ = reader.read_crops(sample, boxes=boxes, sequences=[], masks=[name])
        except DamagedShard:
            damaged_masks.append(name)
            continue
        masks[number] = [crop.masks[name] for crop in crops]
    sequences = [
        _draw_sequence(reader, sample, sequence, boxes=boxes, masks=masks)
        for sequence in sample.sequences.values()
    ]
    return ScanPicture(sample, sequences, damaged_masks)


def _draw_sequence(
    reader: ShardReader,
    sample: Sample,
    sequence: StoredSequence,
    *,
    boxes: Sequence[Box],
    masks: dict[int, list[np.ndarray]],
) -> SequencePicture:
    window = window_of(sequence)
    try:
        crops, _ = reader.read_crops(sample, boxes=boxes, sequences=[sequence.name])
    except DamagedShard as error:
        offset = getattr(error, "offset", None)
        place = sample.shard if offset is None else f"{sample.shard}, byte {offset}"
        return SequencePicture(sequence, window, [], place)  # its text would name the folder
    planes = []
    for axis in range(3):
        stored = crops[axis].volumes[sequence.name]
        physical = stored.astype(np.float32) * sequence.slope + sequence.intercept
        labels = {number: slices[axis] for number, slices in masks.items()}
        planes.append(_plane(sample, axis, physical, window=window, labels=labels))
    return SequencePicture(sequence, window, planes, None)


def window_of(sequence: StoredSequence) -> tuple[float, float]:
    """(black, white) in physical units: soft tissue of CT, SUV from 0, else the robust range."""
    if sequence.modality == "CT":
        return CT_WINDOW_HU
    low, high = sequence.statistics["p00_5"], sequence.statistics["p99_5"]
    if sequence.modality == "PT":
        low = 0.0
    return low, high if high > low else low + 1.0


def _middle_slices(sample: Sample) -> list[Box]:
    """A slice across each axis, through the centre of the foreground box."""
    d, h, w = sample.shape
    middle_d, middle_h, middle_w = ((first + last) // 2 for first, last in sample.foreground_box)
    return [
        Box((middle_d, 0, 0), (1, h, w)),
        Box((0, middle_h, 0), (d, 1, w)),
        Box((0, 0, middle_w), (d, h, 1)),
    ]


def _plane(
    sample: Sample,
    axis: int,
    physical: np.ndarray,
    *,
    window: tuple[float, float],
    labels: dict[int, np.ndarray],
) -> Plane:
    row, column = (each for each in range(3) if each != axis)
    (top, bottom), (left, right) = sample.foreground_box[row], sample.foreground_box[column]
    if row == 0:  # superior above
        top, bottom = sample.shape[0] - bottom, sample.shape[0] - top
    outlines = [(number, outline(_upright(label, axis))) for number, label in labels.items()]
    height_mm, width_mm = sample.spacing_mm[row], sample.spacing_mm[column]
    return Plane(
        name=PLANES[axis],
        png=picture(_upright(physical, axis), window=window),
        size_mm=(width_mm * sample.shape[column], height_mm * sample.shape[row]),
        pixel_mm=(width_mm, height_mm),
        box=(left, top, right - left, bottom - top),
        outlines=[(number, path) for number, path in outlines if path],
    )


def _upright(crop: np.ndarray, axis: int) -> np.ndarray:
    """(rows, columns) of a slice across ``axis``, as it is looked at."""
    found = crop.squeeze(axis)
    return found if axis == 0 else found[::-1]


def picture(values: np.ndarray, *, window: tuple[float, float]) -> str:
    """(rows, columns) in physical units as a grey PNG, a ``data:`` address."""
    from PIL import Image

    level = (_reduced(values) - window[0]) / (window[1] - window[0])
    grey = np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="png", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _reduced(values: np.ndarray) -> np.ndarray:
    """Means of whole blocks of voxels, so that no edge exceeds ``MAX_PIXELS``."""
    for axis in (0, 1):
        block = -(-values.shape[axis] // MAX_PIXELS)
        starts = np.arange(0, values.shape[axis], block)
        counts = np.diff([*starts, values.shape[axis]]).reshape(-1 if axis == 0 else (1, -1))
        counts = counts[:, None] if axis == 0 else counts
        values = np.add.reduceat(values, starts, axis=axis) / counts
    return values


def outline(labels: np.ndarray) -> str:
    """An SVG path along the borders between labels of (rows, columns), in pixels; empty if none."""
    padded = np.pad(labels, 1)
    between_rows = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (rows + 1, columns)
    between_columns = padded[1:-1, 1:] != padded[1:-1, :-1]  # (rows, columns + 1)
    across = [f"M{x} {y}h{length}" for y, x, length in _runs(between_rows)]
    down = [f"M{x} {y}v{length}" for x, y, length in _runs(between_columns.T)]
    return "".join(across + down)


def _runs(marked: np.ndarray) -> list[tuple[int, int, int]]:
    """(line, start, length) of every stretch of neighbours that are marked."""
    steps = np.diff(np.pad(marked.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    lengths = stops - starts
    return list(zip(lines.tolist(), starts.tolist(), lengths.tolist(), strict=True))
