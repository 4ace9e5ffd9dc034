"""Every frame of a DICOM file with its place in the patient, before its pixels are read.

A plain file is one frame. An enhanced multi-frame object keeps what differs between its frames in
nested functional groups (DICOM PS3.3 C.7.6.16); here they become one flat header a frame, so that
all that follows treats both alike.
"""

import sys
from collections import ChainMap
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.dicom.facts import FACT_TAGS, NUMBERS, is_burned_in, is_localiser, is_secondary_capture
from shards.dicom.suv import PRIVATE_TAGS, SUV_TAGS
from shards.dicom.tree import quiet, read_dataset
from shards.dicom.values import View, number, numbers, text, words
from shards.policy import Policy
from shards.scan import ScanError

MAX_FRAME_PIXELS = 2**26
MAX_VOXELS = 2**31
MAX_PIXEL_MM = 1000.0
MAX_POSITION_MM = 1e6
FRAME_BYTES = 16  # no frame with its functional groups takes less of a file
SHARED, OWN = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GREY = ("", "MONOCHROME1", "MONOCHROME2")
UNITS_CT = ("", "HU", "HU_MOD", "US")
# What can tell apart the images of one place, what is surest first.
LABELS = (
    *("TemporalPositionIndex", "TemporalPositionIdentifier", "EffectiveEchoTime", "EchoTime"),
    *("EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation", "InversionTime"),
    *("InversionTimes", "FrameType", "ImageType", "ComplexImageComponent", "ConvolutionKernel"),
    *("KVP", "NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    *("FrameReferenceTime", "AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionDateTime"),
    *("FrameAcquisitionDateTime", "AcquisitionTime"),
)
TAGS: tuple[str | int, ...] = (
    *dict.fromkeys((*FACT_TAGS, *LABELS, *SUV_TAGS, *(tag for _, tag in NUMBERS))),
    *PRIVATE_TAGS,
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "InstanceNumber", "SOPInstanceUID"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ContrastBolusAgent", "Manufacturer"),
)
GROUPS = (
    *("FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence"),
    *("PixelMeasuresSequence", "PixelValueTransformationSequence", "MREchoSequence"),
    *("MRDiffusionSequence", "MRImageFrameTypeSequence", "CTImageFrameTypeSequence"),
    *("PETFrameTypeSequence", "MRTimingAndRelatedParametersSequence", "MRModifierSequence"),
    *("CTXRayDetailsSequence", "CTReconstructionSequence", "CardiacSynchronizationSequence"),
    *("TemporalPositionSequence", "DiffusionGradientDirectionSequence"),
    *("RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence"),
    *("UnassignedPerFrameConvertedAttributesSequence",),
    *("UnassignedSharedConvertedAttributesSequence",),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, not yet decoded.

    Attributes:
        path, index: The file, and the number of the frame in it.
        header: What its header says, in plain values.
        shape: Rows, columns.
        position: Of the first pixel's centre, LPS mm.
        along_columns, along_rows: Unit vectors (LPS) in which the column and the row index grow.
        pixel_mm: Distance of two rows, and of two columns.
        order: Of acquisition: instance and frame number.
    """

    path: Path
    index: int
    header: View
    shape: tuple[int, int]
    position: np.ndarray
    along_columns: np.ndarray
    along_rows: np.ndarray
    pixel_mm: tuple[float, float]
    order: tuple[float, int]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice."""
        normal: np.ndarray = np.cross(self.along_columns, self.along_rows)
        return normal


def frames_of(path: Path, *, modality: str, policy: Policy) -> list[Frame]:
    """The frames of one file.

    Raises:
        ScanError: They are no slices of a scan, cannot be placed, or claim an impossible size.
    """
    dataset = read_dataset(path, tags=(*TAGS, SHARED, OWN))
    with quiet():
        try:
            _check_size(dataset, path)
            return [
                _frame(path, place, header, modality=modality, policy=policy)
                for place, header in enumerate(_headers(dataset))
            ]
        except ScanError:
            raise
        # The parser raises many types for a damaged header, most of them at the first look.
        except Exception as error:
            raise ScanError(f"a slice cannot be read ({type(error).__name__})") from None


def _check_size(dataset: View, path: Path) -> None:
    """What the header claims must be plausible and, uncompressed, fit into the file."""
    rows, columns = number(dataset, "Rows") or 0, number(dataset, "Columns") or 0
    frames = number(dataset, "NumberOfFrames") or 1
    bits = number(dataset, "BitsAllocated") or 0
    if min(rows, columns, frames) < 1 or bits not in (8, 16, 32, 64):
        raise ScanError("a slice without a valid size")
    size = path.stat().st_size
    if rows * columns > MAX_FRAME_PIXELS or rows * columns * frames > MAX_VOXELS:
        raise ScanError("a slice that claims an impossible size")
    if frames * FRAME_BYTES > size:
        raise ScanError("a truncated file: it cannot hold the frames that its header claims")
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    native = syntax is not None and not (syntax.is_encapsulated or syntax.is_deflated)
    if native and rows * columns * frames * bits / 8 > size:
        raise ScanError("a truncated file: it holds fewer pixels than its header says")


def _headers(dataset: Any) -> list[View]:
    """One header a frame: its own functional groups, then the shared ones, then the object's."""
    count = int(number(dataset, "NumberOfFrames") or 1)
    own, shared = dataset.get(OWN), dataset.get(SHARED)
    if count == 1 and not own:
        return [_top(dataset)]
    if not own or len(own) != count:
        raise ScanError("several frames in one file that does not tell the place of each")
    common = {**_top(dataset), **(_values(shared[0]) if shared else {})}
    return [ChainMap(_values(item), common) for item in own]


def _top(dataset: Any) -> dict[Any, Any]:
    """Plain values of ``TAGS``, by keyword or (group, element): a tenth of a dataset's memory."""
    found: dict[Any, Any] = {}
    for tag in TAGS:
        value = dataset.get(tag)
        if isinstance(tag, int) and value is not None:
            found[tag >> 16, tag & 0xFFFF] = _plain(value.value)
        elif value is not None:
            found[tag] = _plain(value)
    return found


def _values(groups: Any) -> dict[Any, Any]:
    """Values of the known functional groups of one frame, by keyword."""
    found: dict[Any, Any] = {}
    for group in groups:
        if group.keyword in GROUPS and group.value:
            for element in group.value[0]:
                if element.keyword:
                    found[element.keyword] = _plain(element.value)
            found |= _values(group.value[0])
    return found


def _plain(value: Any) -> Any:
    """The parser's numbers, texts and lists as Python's own; sequences stay as they are."""
    if isinstance(value, str):
        return sys.intern(str(value))
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, MutableSequence) and not hasattr(value, "is_undefined_length"):
        return tuple(_plain(one) for one in value)
    return value


def _frame(path: Path, index: int, header: View, *, modality: str, policy: Policy) -> Frame:
    _refuse(header, modality=modality, policy=policy)
    cosines = np.asarray(_required(header, "ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(cosines[0] @ cosines[1]) > 0.01:
        raise ScanError("a slice without a valid ImageOrientationPatient")
    row_mm, column_mm = _required(header, "PixelSpacing", 2)
    if not 0 < min(row_mm, column_mm) <= max(row_mm, column_mm) <= MAX_PIXEL_MM:
        raise ScanError("a slice without a valid PixelSpacing")
    position = np.asarray(_required(header, "ImagePositionPatient", 3))
    if np.abs(position).max() > MAX_POSITION_MM:
        raise ScanError("a slice without a valid ImagePositionPatient")
    return Frame(
        path=path,
        index=index,
        header=header,
        shape=(int(number(header, "Rows") or 0), int(number(header, "Columns") or 0)),
        position=position,
        along_columns=cosines[0] / lengths[0],
        along_rows=cosines[1] / lengths[1],
        pixel_mm=(row_mm, column_mm),
        order=(number(header, "InstanceNumber") or 0.0, index),
    )


def _refuse(header: View, *, modality: str, policy: Policy) -> None:
    """Stop at an object that is no slice of a scan."""
    samples = number(header, "SamplesPerPixel")
    if samples not in (None, 1.0) or text(header, "PhotometricInterpretation") not in GREY:
        raise ScanError("a colour image, not a scan of one intensity")
    if is_secondary_capture(header) and policy.secondary_captures == "reject":
        raise ScanError("a secondary capture, not a scan")
    if is_burned_in(header) and policy.burned_in_annotation == "reject":
        raise ScanError("annotation is burned into the image")
    if is_localiser(header) and policy.localisers == "reject":
        raise ScanError("a localiser, not a scan")
    if "MOSAIC" in words(header, "ImageType"):
        raise ScanError("a mosaic: the slices of a volume tiled into one image")
    if header.get("ModalityLUTSequence"):
        raise ScanError("intensities behind a look-up table, which is not supported")
    if modality == "CT" and text(header, "RescaleType").upper() not in UNITS_CT:
        raise ScanError("CT whose values are not in Hounsfield units, by its RescaleType")


def _required(header: View, tag: str, count: int) -> list[float]:
    values = numbers(header, tag, count)
    if not values:
        raise ScanError(f"a slice without a valid {tag}")
    return values


def label(header: View, tag: str) -> str:
    """One of ``LABELS`` as text that can be compared; empty where there is none."""
    value = header.get(tag)
    if value is None:
        return ""
    return "\\".join(str(one).strip() for one in (value if isinstance(value, tuple) else [value]))
