"""What a header tells of a whole series: facts for selection, and the few words that may be kept.

Facts decide before a pixel is read and are never written. Metadata goes into shards: numbers, and
words of fixed vocabularies, because free text may name a person.
"""

import datetime
from dataclasses import dataclass

from shards.dicom.values import View, day, number, text, words
from shards.scan import Origin

BODY_PARTS = frozenset(
    {"ABDOMEN", "BRAIN", "BREAST", "CHEST", "HEAD", "HEART", "KIDNEY", "KNEE", "LIVER", "LUNG"}
    | {"NECK", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE", "WHOLEBODY"}
)
MANUFACTURERS = frozenset(
    {"CANON", "FUJIFILM", "GE", "HITACHI", "PHILIPS", "SHIMADZU", "SIEMENS", "TOSHIBA", "UIH"}
)
NUMBERS = (
    ("slice_thickness_mm", "SliceThickness"),
    ("field_strength_t", "MagneticFieldStrength"),
    ("echo_time_ms", "EchoTime"),
    ("echo_time_ms", "EffectiveEchoTime"),
    ("repetition_time_ms", "RepetitionTime"),
    ("inversion_time_ms", "InversionTime"),
    ("inversion_time_ms", "InversionTimes"),
    ("flip_angle_deg", "FlipAngle"),
    ("kvp", "KVP"),
)
FACT_TAGS = (
    *("Modality", "BodyPartExamined", "SeriesDescription", "SliceThickness", "ImageType"),
    *("SOPClassUID", "BurnedInAnnotation", "StudyDate", "FrameOfReferenceUID", "PatientID"),
    *("StudyInstanceUID", "SeriesInstanceUID"),
)
LOCALISER_SLICES = 10  # a planning scan has at most this many along each of its directions
MAX_DIRECTIONS = 3
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SCREENS = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT"})


@dataclass(frozen=True)
class Facts:
    """For selection rules and for matching the series of one visit; none of it is ever written.

    Attributes:
        modality: As the header has it, so also what is no scan (``SEG``, ``RTDOSE``).
        body_part: One of ``BODY_PARTS``, or None.
        description: SeriesDescription in lower case.
        slice_thickness_mm: None where the header has none (enhanced objects keep it by frame).
        date: Of the study.
        frame_of_reference: FrameOfReferenceUID.
        localiser: Scout images, by their type, or a few slices of two or three directions.
    """

    modality: str = ""
    body_part: str | None = None
    description: str | None = None
    slice_thickness_mm: float | None = None
    date: datetime.date | None = None
    frame_of_reference: str | None = None
    localiser: bool = False
    secondary_capture: bool = False
    burned_in_annotation: bool = False


def facts_of(view: View) -> Facts:
    """The facts of one file's header."""
    origin = origin_of(view)
    return Facts(
        modality=text(view, "Modality").upper(),
        body_part=_body_part(view),
        description=origin.description,
        slice_thickness_mm=number(view, "SliceThickness"),
        date=origin.date,
        frame_of_reference=origin.frame_of_reference,
        localiser=is_localiser(view),
        secondary_capture=is_secondary_capture(view),
        burned_in_annotation=is_burned_in(view),
    )


def origin_of(view: View) -> Origin:
    """Who, when and where; it identifies and is never written."""
    return Origin(
        subject=subject_of(view),
        series=text(view, "SeriesInstanceUID") or None,
        frame_of_reference=text(view, "FrameOfReferenceUID") or None,
        date=day(view, "StudyDate"),
        description=text(view, "SeriesDescription").lower() or None,
    )


def subject_of(view: View) -> str | None:
    """PatientID, or the study where there is none."""
    return text(view, "PatientID") or text(view, "StudyInstanceUID") or None


def is_localiser(view: View) -> bool:
    """The image type says so (the standard's spelling)."""
    return "LOCALIZER" in words(view, "ImageType")


def is_secondary_capture(view: View) -> bool:
    """A photograph of a screen, by its class or its type; a reformatted volume is none."""
    screen = not SCREENS.isdisjoint(words(view, "ImageType"))
    return screen or text(view, "SOPClassUID").startswith(SECONDARY_CAPTURE)


def is_burned_in(view: View) -> bool:
    """The header says that text is part of the pixels."""
    return text(view, "BurnedInAnnotation").upper() == "YES"


def metadata_of(view: View) -> dict[str, str | float | bool]:
    """All that may be kept of a header."""
    found: dict[str, str | float | bool] = {}
    if body_part := _body_part(view):
        found["body_part"] = body_part
    names = text(view, "Manufacturer").upper().replace("-", " ").split()
    if maker := next((word for word in names if word in MANUFACTURERS), None):
        found["manufacturer"] = maker
    for name, tag in NUMBERS:
        value = number(view, tag)
        if value is not None:
            found.setdefault(name, value)
    if text(view, "ContrastBolusAgent").upper() not in ("", "NONE", "NO", "N"):
        found["contrast"] = True
    return found


def _body_part(view: View) -> str | None:
    found = text(view, "BodyPartExamined").upper()
    return found if found in BODY_PARTS else None
