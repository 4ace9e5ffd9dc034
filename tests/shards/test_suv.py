"""Uptake values against numbers worked out here from the definition, for each vendor's way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from shards.scan import Scan, ScanError, read_scan

Write = Callable[..., None]
HALF_LIFE = 6586.2  # F-18, seconds
DOSE = 3.7e8
WEIGHT = 82.0
PHILIPS = "Philips PET Private Group"


def tracer(**changes: Any) -> list[Dataset]:
    item = Dataset()
    values = {
        "RadiopharmaceuticalStartTime": "100000.00",
        "RadionuclideTotalDose": DOSE,
        "RadionuclideHalfLife": HALF_LIFE,
        **changes,
    }
    for tag, value in values.items():
        if value is not None:
            setattr(item, tag, value)
    return [item]


def header(**changes: Any) -> dict[str, Any]:
    """Injected at 10:00, scanned from 11:00, beds of two minutes."""
    return {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PatientWeight": WEIGHT,
        "SeriesDate": "20240305",
        "SeriesTime": "110000",
        "AcquisitionDate": "20240305",
        "RadiopharmaceuticalInformationSequence": tracer(),
        "RescaleIntercept": 0,
        **changes,
    }


def read(folder: Path, slice_file: Write, changes: dict[str, Any], *, private: Any = ()) -> Scan:
    """Five slices of 1000 stored; the slopes differ by slice, as GE writes them."""
    for number in range(5):
        slice_file(
            folder / f"{number}",
            np.full((4, 3), 1000) + np.arange(3),
            position=(0, 0, 3.0 * number),
            changes={
                "AcquisitionTime": f"11{2 * (number // 2):02d}00",
                "RescaleSlope": 2.0 + number,
                **changes,
            },
            private=private,
        )
    return read_scan(folder)


def expect(scan: Scan, factor: float) -> None:
    stored = (1000 + np.arange(3)) * (2.0 + np.arange(5))[:, None]
    assert scan.voxels.dtype == np.float32
    assert scan.modality == "PT"
    np.testing.assert_allclose(scan.voxels[:, 0], stored * factor, rtol=1e-6)


def decayed(seconds: float) -> float:
    """g/Bq, an independent form of the same law."""
    return WEIGHT * 1000 / (DOSE * np.exp(-np.log(2) * seconds / HALF_LIFE))


def test_decay_to_the_start_of_the_series(tmp_path: Path, slice_file: Write) -> None:
    expect(read(tmp_path, slice_file, header()), decayed(3600))


def test_decay_to_administration(tmp_path: Path, slice_file: Write) -> None:
    changes = header(DecayCorrection="ADMIN", SeriesTime=None)
    expect(read(tmp_path, slice_file, changes), WEIGHT * 1000 / DOSE)


def test_an_injection_before_midnight(tmp_path: Path, slice_file: Write) -> None:
    changes = header(
        SeriesTime="001000",
        RadiopharmaceuticalInformationSequence=tracer(RadiopharmaceuticalStartTime="233000"),
    )
    expect(read(tmp_path, slice_file, changes), decayed(40 * 60))


def test_the_date_of_the_injection(tmp_path: Path, slice_file: Write) -> None:
    """Days ahead for a long-lived tracer; a date shifted by de-identification does not count."""
    days = tracer(
        RadiopharmaceuticalStartDateTime="20240302100000.000000+0100",
        RadionuclideHalfLife=282276.0,
    )
    changes = header(RadiopharmaceuticalInformationSequence=days)
    expected = WEIGHT * 1000 / (DOSE * 0.5 ** ((3 * 86400 + 3600) / 282276.0))
    expect(read(tmp_path / "long", slice_file, changes), expected)
    shifted = tracer(RadiopharmaceuticalStartDateTime="19991231100000")
    changes = header(RadiopharmaceuticalInformationSequence=shifted)
    expect(read(tmp_path / "shifted", slice_file, changes), decayed(3600))
    only = tracer(
        RadiopharmaceuticalStartDateTime="19991231100000", RadiopharmaceuticalStartTime=None
    )
    changes = header(RadiopharmaceuticalInformationSequence=only)
    expect(read(tmp_path / "only", slice_file, changes), decayed(3600))


def test_a_series_made_after_the_scan(tmp_path: Path, slice_file: Write) -> None:
    """GE's own scan time; or back from the time to which each bed's pixels refer; or the first
    acquisition."""
    late = header(SeriesTime="150000")
    ge = [(0x0009, "GEMS_PETD_01", 0x0D, "DT", "20240305105500.00")]
    expect(read(tmp_path / "ge", slice_file, late, private=ge), decayed(55 * 60))
    # The first bed starts 30 s behind the reference; its average lies near the middle of 120 s.
    duration = 120.0
    decay = np.log(2) / HALF_LIFE
    times = np.linspace(0, duration, 200_001)
    mean_rate = np.exp(-decay * times).mean()
    middle = -np.log(mean_rate) / decay
    framed = late | {
        "FrameReferenceTime": (30 + middle) * 1000,
        "ActualFrameDuration": int(duration * 1000),
    }
    expect(read(tmp_path / "framed", slice_file, framed), decayed(3600 - 30))
    expect(read(tmp_path / "plain", slice_file, late), decayed(3600))


def test_philips_counts(tmp_path: Path, slice_file: Write) -> None:
    counts = header(Units="CNTS")
    to_suv = [(0x7053, PHILIPS, 0x00, "DS", "0.00025")]
    scan = read(tmp_path / "suv", slice_file, counts, private=to_suv)
    expect(scan, 0.00025)
    to_activity = [(0x7053, PHILIPS, 0x00, "DS", "0"), (0x7053, PHILIPS, 0x09, "DS", "1.5")]
    scan = read(tmp_path / "activity", slice_file, counts, private=to_activity)
    expect(scan, 1.5 * decayed(3600))
    with pytest.raises(ScanError, match="counts without a factor"):
        read(tmp_path / "none", slice_file, counts)
    other = [(0x7053, "SOMEBODY ELSE", 0x00, "DS", "0.00025")]
    with pytest.raises(ScanError, match="counts without a factor"):
        read(tmp_path / "other", slice_file, counts, private=other)


def test_uptake_values_as_they_are(tmp_path: Path, slice_file: Write) -> None:
    expect(read(tmp_path / "a", slice_file, header(Units="GML")), 1.0)
    with pytest.raises(ScanError, match="not normalised by body weight"):
        read(tmp_path / "b", slice_file, header(Units="GML", SUVType="LBM"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PatientWeight": None}, "valid PatientWeight"),
        ({"PatientWeight": 0}, "valid PatientWeight"),
        ({"DecayCorrection": "NONE"}, "not corrected for decay"),
        ({"DecayCorrection": None}, "not corrected for decay"),
        ({"CorrectedImage": ["DECY", "SCAT"]}, "not corrected for attenuation"),
        ({"Units": "PROPCPS"}, "units that do not lead to"),
        ({"Units": None}, "units that do not lead to"),
        ({"RadiopharmaceuticalInformationSequence": None}, "RadiopharmaceuticalInformation"),
        (tracer(RadionuclideTotalDose=None), "RadionuclideTotalDose"),
        (tracer(RadionuclideTotalDose=370.0), "RadionuclideTotalDose"),
        (tracer(RadionuclideHalfLife=0), "RadionuclideHalfLife"),
        (tracer(RadiopharmaceuticalStartTime=None), "time of injection"),
        (tracer(RadionuclideHalfLife=110.0), "half-lives after injection"),
        ({"SeriesDate": None, "AcquisitionDate": None}, "time of the scan"),
    ],
)
def test_what_leads_to_no_uptake_values(
    tmp_path: Path, slice_file: Write, changes: Any, reason: str
) -> None:
    if isinstance(changes, list):
        changes = {"RadiopharmaceuticalInformationSequence": changes}
    with pytest.raises(ScanError, match=reason):
        read(tmp_path, slice_file, header(**changes))


def test_an_enhanced_object(tmp_path: Path, multi_frame: Write) -> None:
    """Its dose is in MBq, its unit a code, and it names the moment of its pixels."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "Bq/ml", "UCUM", "Bq/ml"
    shared = {
        "PlaneOrientation": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        "PixelMeasures": {"PixelSpacing": [2.0, 1.5], "SliceThickness": 3.0},
        "PixelValueTransformation": {"RescaleSlope": 4.0, "RescaleIntercept": 0},
        "RealWorldValueMapping": {"MeasurementUnitsCodeSequence": [code]},
    }
    frames = [
        (np.full((4, 3), 500), {"PlanePosition": {"ImagePositionPatient": [0, 0, 3.0 * n]}})
        for n in range(4)
    ]
    changes = {
        "Modality": "PT",
        "PatientWeight": WEIGHT,
        "DecayCorrected": "YES",
        "DecayCorrectionDateTime": "20240305110000",
        "RadiopharmaceuticalInformationSequence": tracer(
            RadionuclideTotalDose=DOSE / 1e6, RadiopharmaceuticalStartDateTime="20240305100000"
        ),
    }
    multi_frame(tmp_path / "a/pet", frames, shared=shared, changes=changes)
    np.testing.assert_allclose(read_scan(tmp_path / "a").voxels, 2000 * decayed(3600), rtol=1e-6)
    multi_frame(
        tmp_path / "b/pet", frames, shared=shared, changes=changes | {"DecayCorrected": "NO"}
    )
    with pytest.raises(ScanError, match="not corrected for decay"):
        read_scan(tmp_path / "b")
