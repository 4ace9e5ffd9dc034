"""Identities planted wherever an archive can hold them are nowhere in what a build writes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary

from recipes.load import to_yaml

NAME = "Zyxwvutsrq"
NUMBER = "84736251"
BORN = "19530719"
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
# What a reader needs to see a scan at all; none of it can name a person.
NEEDED = {
    "BurnedInAnnotation",
    "ImageType",
    "Modality",
    "PhotometricInterpretation",
    "RescaleType",
    "SOPClassUID",
    "SpecificCharacterSet",
    "Units",
}


def _planted() -> dict[str, str]:
    """Every text, date and UID element of the DICOM dictionary, holding an identity."""
    found = {}
    for tag, (vr, multiplicity, _, retired, keyword) in DicomDictionary.items():
        if not keyword or keyword in NEEDED or retired or tag >> 16 in (0x0000, 0x0002, 0x7FE0):
            continue
        if multiplicity not in ("1", "1-n"):
            continue
        if vr in TEXT:
            text = f"{NAME[:7]} {NUMBER}"  # 16 letters, as many as the shortest takes
            found[keyword] = text.upper() if vr == "CS" else text
        elif vr in ("DA", "DT"):
            found[keyword] = BORN
        elif vr == "UI":
            found[keyword] = f"1.2.{NUMBER}.{tag}"
    return found


def _with_private_and_nested(path: Path) -> None:
    """Private elements, and a sequence in a sequence."""
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x0011, f"{NAME} PRIVATE", create=True)
    block.add_new(0x01, "LO", f"{NAME} {NUMBER}")
    inner, outer = pydicom.Dataset(), pydicom.Dataset()
    inner.PatientName = f"{NAME}^{NUMBER}"
    outer.ReferencedStudySequence = [inner]
    dataset.RequestAttributesSequence = [outer]
    dataset.file_meta.SourceApplicationEntityTitle = NAME.upper()
    dataset.save_as(path)


def _archive(root: Path, series: Callable[..., None], volume: Callable[..., np.ndarray]) -> None:
    tags = _planted()
    assert len(tags) > 1500
    del tags["SOPInstanceUID"]
    for number in range(2):
        tags["SeriesInstanceUID"] = f"1.{number}.{NUMBER}"
        folder = root / f"dicom/{NAME}_{NUMBER}/visit{number}"
        series(folder, volume(number), **tags)
        for path in folder.iterdir():
            _with_private_and_nested(path)
            path.rename(path.with_name(f"{NAME}_{path.name}"))
    (root / f"dicom/{NAME}.txt").write_text(f"{NAME} {NUMBER}")
    gap = root / f"dicom/{NAME}_gap"
    series(gap, volume(5), **tags | {"SeriesInstanceUID": f"1.5.{NUMBER}"})
    (gap / "IM004").unlink()
    (root / "cohort").mkdir()
    series(root / f"cohort/{NAME}_{NUMBER}", volume(7), **tags)
    (root / "cohort/table.csv").write_text(f"who,scan\n{NAME},{NAME}_{NUMBER}\n{NAME},gone\n")
    (root / "cohort.yaml").write_text(
        "name: table\ntable: cohort/table.csv\nsubject: '{who}'\nscan: '{scan}'\n"
        "licence: CC0\nsource: written by a test\n"
    )


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_no_identity_is_written(
    tmp_path: Path,
    project: Path,
    series: Callable[..., None],
    toy_volume: Callable[..., np.ndarray],
    toy_recipe: Callable[..., object],
) -> None:
    _archive(tmp_path, series, toy_volume)
    config = toy_recipe(
        tmp_path,
        sources=[
            {"dicom": "dicom", "name": "tree", "licence": "CC0", "source": "a test"},
            {"cohort": str(tmp_path / "cohort.yaml")},
        ],
        max_rejected_fraction=1,
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "shards.build", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, cwd=project, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"6 inputs = 3 accepted + 2 rejected + 1 skipped" in done.stdout
    page = [sys.executable, "-m", "shards.inspect", str(tmp_path / "shards"), "--out"]
    seen = subprocess.run(
        [*page, str(tmp_path / "page.html")], cwd=project, capture_output=True, check=False
    )
    assert seen.returncode == 0, seen.stderr.decode()
    written = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    written["page.html"] = (tmp_path / "page.html").read_bytes()
    assert len(written) >= 6
    for name, content in {**written, "stdout": done.stdout, "stderr": done.stderr}.items():
        for secret in (NAME[:7], NUMBER, BORN, "visit1"):
            assert secret.lower().encode() not in content.lower(), f"{secret} in {name}"
    for name, content in written.items():
        assert str(tmp_path).encode() not in content, name
