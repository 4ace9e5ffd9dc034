"""One DICOM file as one slice: refused, or decoded to physical units with its place."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.dicom import number, numbers, quiet
from shards.scan import ScanError

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Slice:
    """A decoded slice.

    Attributes:
        voxels: (rows, columns), physical units.
        padding: Where the header says there is no image, or None if it does not say.
        position: Of the first pixel's centre, LPS mm.
        along_columns, along_rows: Unit vectors (LPS) in which the column and the row index grow.
        pixel_mm: Distance of two rows, and of two columns.
    """

    voxels: np.ndarray
    padding: np.ndarray | None
    position: np.ndarray
    along_columns: np.ndarray
    along_rows: np.ndarray
    pixel_mm: tuple[float, float]


def read_slice(dataset: Any, *, modality: str) -> Slice:
    """Decode one slice.

    Raises:
        ScanError: It is no slice of a scan, is damaged, or cannot be placed.
    """
    _refuse(dataset, modality)
    along_columns, along_rows = _plane(dataset)
    row_mm, column_mm = _required(dataset, "PixelSpacing", 2)
    stored = _decode(dataset)
    return Slice(
        voxels=_rescale(dataset, stored, modality),
        padding=_padding(dataset, stored),
        position=np.asarray(_required(dataset, "ImagePositionPatient", 3)),
        along_columns=along_columns,
        along_rows=along_rows,
        pixel_mm=(row_mm, column_mm),
    )


def _refuse(dataset: Any, modality: str) -> None:
    """Stop at an object that is no slice of a scan."""
    if number(dataset, "SamplesPerPixel") not in (None, 1.0):
        raise ScanError("a colour image, not a scan of one intensity")
    if str(dataset.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        raise ScanError("a secondary capture, not a scan")
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        raise ScanError("annotation is burned into the image")
    if number(dataset, "NumberOfFrames") not in (None, 1.0):
        raise ScanError("several frames in one file are not supported")
    if modality == "PT" and str(dataset.get("Units", "")) != "GML":
        raise ScanError("PET that is not in standardised uptake values (Units is not GML)")


def _required(dataset: Any, tag: str, count: int) -> list[float]:
    values = numbers(dataset, tag, count)
    if not values:
        raise ScanError(f"a slice without a valid {tag}")
    return values


def _plane(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.asarray(_required(dataset, "ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 0.01:
        raise ScanError("a slice without a valid ImageOrientationPatient")
    return cosines[0] / lengths[0], cosines[1] / lengths[1]


def _decode(dataset: Any) -> np.ndarray:
    """Stored values, (rows, columns), through gdcm where they are compressed."""
    if "PixelData" not in dataset:
        raise ScanError("a slice without pixel data, or truncated before it")
    rows, columns = int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    expected = rows * columns * int(number(dataset, "BitsAllocated") or 16) // 8
    if (syntax is None or not syntax.is_compressed) and len(dataset.PixelData) < expected:
        raise ScanError("a slice is truncated: it holds fewer pixels than its header says")
    with quiet():
        try:
            pixels = np.asarray(dataset.pixel_array)
        except Exception as error:
            raise ScanError(f"a slice cannot be decoded ({type(error).__name__})") from None
    if pixels.shape != (rows, columns):
        raise ScanError("a slice decodes to another size than its header says")
    return pixels


def _rescale(dataset: Any, stored: np.ndarray, modality: str) -> np.ndarray:
    """This slice's own rescale; whole numbers stay whole."""
    slope, intercept = (number(dataset, tag) for tag in ("RescaleSlope", "RescaleIntercept"))
    if modality == "CT" and (slope is None or intercept is None):
        raise ScanError("CT without a rescale: its Hounsfield units are unknown")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 1 and intercept.is_integer():
        return stored.astype(np.int64) + int(intercept)
    return np.asarray(stored * slope + intercept)


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray | None:
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return np.asarray((stored >= low) & (stored <= high))
