"""PET as standardised uptake values, normalised by body weight, from the header alone.

After the vendor-neutral pseudo-code of the Quantitative Imaging Biomarkers Alliance (QIBA wiki,
"Standardized Uptake Value (SUV)", vendor-neutral pseudo-code by D. Clunie):

    SUV = activity in Bq/ml x weight in g / dose in Bq, decayed to the time the pixels refer to

Departures: a file without CorrectedImage is taken at its DecayCorrection, and the date of the
injection counts where it is plausible, because a long-lived tracer is given days ahead.
"""

import datetime
import math
from collections.abc import Sequence
from typing import Any

from shards.dicom.values import View, clock, moment, number, text, timestamp, words
from shards.scan import ScanError

PHILIPS, PHILIPS_SUV, PHILIPS_ACTIVITY = "Philips PET Private Group", 0x00, 0x09
GE, GE_SCAN_TIME = "GEMS_PETD_01", 0x0D
# Private elements lie in a block that the file itself reserves, in use the first or second one.
PRIVATE_TAGS = (
    *(0x70530010, 0x70530011, 0x70531000, 0x70531009, 0x70531100, 0x70531109),
    *(0x00090010, 0x00090011, 0x0009100D, 0x0009110D),
)
SUV_TAGS = (
    *("Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight", "SeriesDate"),
    *("SeriesTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime"),
    *("FrameReferenceTime", "ActualFrameDuration", "RadiopharmaceuticalInformationSequence"),
    *("DecayCorrected", "DecayCorrectionDateTime", "AttenuationCorrected"),
)
MAX_WEIGHT_KG = 500
MIN_DOSE_BQ = 1e4  # less is a dose given in MBq by mistake
MAX_HALF_LIVES = 10
DAY = datetime.timedelta(days=1)
ACTIVITY_CODES, SUV_CODES = ("BQ/ML",), ("G/ML{SUVBW}", "{SUVBW}G/ML")


def suv_factor(headers: Sequence[View]) -> float:
    """What the rescaled values of a PET volume are multiplied by to be SUV (body weight).

    Args:
        headers: Of all its slices: beds are acquired one after the other, but the pixels of all
            refer to one moment, that of the first.

    Raises:
        ScanError: A value that the calculation needs is missing or impossible.
    """
    first = min(headers, key=lambda one: _acquired(one) or datetime.datetime.max)
    units = text(first, "Units").upper()
    code = text(first, "CodeValue").upper()
    corrected = words(first, "CorrectedImage")
    if (corrected and "ATTN" not in corrected) or words(first, "AttenuationCorrected") == ("NO",):
        raise ScanError("PET that is not corrected for attenuation: no uptake values")
    if units == "GML" or code in SUV_CODES:
        if text(first, "SUVType").upper() not in ("", "BW"):
            raise ScanError("PET in uptake values that are not normalised by body weight")
        return 1.0
    if units == "BQML":
        return _per_activity(first, _decayed_dose(first))
    if units == "CNTS":
        return _philips(first)
    if code in ACTIVITY_CODES:
        return _per_activity(first, _enhanced_dose(first))
    raise ScanError("PET in units that do not lead to standardised uptake values")


def _philips(header: View) -> float:
    """Counts: the vendor's own factor to SUV, or its factor to Bq/ml."""
    to_suv = _private(header, 0x7053, PHILIPS, PHILIPS_SUV)
    if to_suv:
        return to_suv
    to_activity = _private(header, 0x7053, PHILIPS, PHILIPS_ACTIVITY)
    if not to_activity:
        raise ScanError("PET in counts without a factor to uptake values")
    return to_activity * _per_activity(header, _decayed_dose(header))


def _per_activity(header: View, dose_bq: float) -> float:
    weight = number(header, "PatientWeight")
    if weight is None or not 0 < weight <= MAX_WEIGHT_KG:
        raise ScanError("PET without a valid PatientWeight: no uptake values")
    return weight * 1000 / dose_bq


def _decayed_dose(header: View) -> float:
    """Bq, at the moment that the pixels are corrected to."""
    correction = text(header, "DecayCorrection").upper()
    if correction not in ("START", "ADMIN"):
        raise ScanError("PET whose pixels are not corrected for decay: no uptake values")
    tracer = _tracer(header)
    dose = _dose(tracer, unit_bq=1)
    if correction == "ADMIN":
        return dose
    half_life = _half_life(tracer)
    scan = _scan_time(header, half_life)
    return dose * _remaining(scan - _injected(tracer, scan, half_life), half_life)


def _enhanced_dose(header: View) -> float:
    """Bq, of an enhanced object: its dose is in MBq, and it names the moment of its pixels."""
    tracer = _tracer(header)
    reference = timestamp(header, "DecayCorrectionDateTime")
    start = timestamp(tracer, "RadiopharmaceuticalStartDateTime")
    if text(header, "DecayCorrected").upper() != "YES" or reference is None:
        raise ScanError("PET whose pixels are not corrected for decay: no uptake values")
    if start is None:
        raise ScanError("PET without the time of injection: no uptake values")
    return _dose(tracer, unit_bq=1e6) * _remaining(reference - start, _half_life(tracer))


def _tracer(header: View) -> Any:
    items = header.get("RadiopharmaceuticalInformationSequence")
    if not items:
        raise ScanError("PET without RadiopharmaceuticalInformationSequence: no uptake values")
    return items[0]


def _dose(tracer: View, *, unit_bq: float) -> float:
    dose = number(tracer, "RadionuclideTotalDose")
    if dose is None or dose * unit_bq < MIN_DOSE_BQ:
        raise ScanError("PET without a valid RadionuclideTotalDose: no uptake values")
    return dose * unit_bq


def _half_life(tracer: View) -> float:
    half_life = number(tracer, "RadionuclideHalfLife")
    if half_life is None or half_life <= 0:
        raise ScanError("PET without a valid RadionuclideHalfLife: no uptake values")
    return half_life


def _remaining(after: datetime.timedelta, half_life_s: float) -> float:
    """Share of the dose that is left."""
    half_lives = after.total_seconds() / half_life_s
    if not 0 <= half_lives <= MAX_HALF_LIVES:
        raise ScanError(f"PET {half_lives:.1f} half-lives after injection: no uptake values")
    return float(2.0**-half_lives)


def _injected(tracer: View, scan: datetime.datetime, half_life_s: float) -> datetime.datetime:
    """The date counts where it is plausible: de-identification may have shifted the scan's only."""
    start = timestamp(tracer, "RadiopharmaceuticalStartDateTime")
    if start is not None:
        half_lives = (scan - start).total_seconds() / half_life_s
        if 0 <= half_lives <= MAX_HALF_LIVES:
            return start
    of_day = clock(tracer, "RadiopharmaceuticalStartTime")
    if of_day is None and start is not None:
        of_day = start - datetime.datetime.combine(start.date(), datetime.time())
    if of_day is None:
        raise ScanError("PET without the time of injection: no uptake values")
    injected = datetime.datetime.combine(scan.date(), datetime.time()) + of_day
    return injected if injected <= scan else injected - DAY  # given before midnight


def _scan_time(header: View, half_life_s: float) -> datetime.datetime:
    """The moment that DecayCorrection START refers to.

    That is the start of the series, unless the series was made later by post-processing: then the
    vendor's own scan time, or the acquisition of the first bed less what its pixels are ahead of.
    """
    series, acquired = moment(header, "SeriesDate", "SeriesTime"), _acquired(header)
    if series is not None and (acquired is None or series <= acquired):
        return series
    private = _private_text(header, 0x0009, GE, GE_SCAN_TIME)
    ge_time = timestamp({"scan": private}, "scan")
    if ge_time is not None:
        return ge_time
    if acquired is None:
        raise ScanError("PET without the time of the scan: no uptake values")
    reference_ms, duration_ms = number(header, "FrameReferenceTime"), _duration_ms(header)
    if not reference_ms or reference_ms <= 0 or not duration_ms:
        return acquired
    decay = math.log(2) / half_life_s
    lost = decay * duration_ms / 1000
    mean_s = math.log(lost / -math.expm1(-lost)) / decay  # when the count rate is its average
    return acquired + datetime.timedelta(seconds=mean_s - reference_ms / 1000)


def _duration_ms(header: View) -> float | None:
    found = number(header, "ActualFrameDuration")
    return found if found is not None and found > 0 else None


def _acquired(header: View) -> datetime.datetime | None:
    by_parts = moment(header, "AcquisitionDate", "AcquisitionTime")
    return by_parts or timestamp(header, "AcquisitionDateTime")


def _private(header: View, group: int, creator: str, element: int) -> float | None:
    return number({"value": _private_text(header, group, creator, element)}, "value")


def _private_text(header: View, group: int, creator: str, element: int) -> str:
    """A private element in whichever block its creator has reserved; empty if there is none."""
    for block in (0x10, 0x11):
        reserved = header.get((group, block))
        found = header.get((group, block << 8 | element))
        if reserved is None or found is None:
            continue
        if _plain(reserved).upper() == creator.upper():
            return _plain(found)
    return ""


def _plain(value: Any) -> str:
    """Text of a value whose type the parser may not know."""
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")
