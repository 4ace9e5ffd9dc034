"""Identities planted wherever an archive can hold them are nowhere in what a build writes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recipes.load import to_yaml

NAME = "Zyxwvutsrq"
NUMBER = "84736251"
TEXT_TAGS = [
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientComments",
    "ReferringPhysicianName",
    "InstitutionName",
    "OperatorsName",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "StationName",
    "DeviceSerialNumber",
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "ImageComments",
]
UIDS = ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]


def _archive(root: Path, series: Callable[..., None], volume: Callable[..., np.ndarray]) -> None:
    tags = dict.fromkeys(TEXT_TAGS, f"{NAME} {NUMBER}"[:16])
    tags |= {tag: f"1.2.{NUMBER}.{place}" for place, tag in enumerate(UIDS)}
    tags |= {"PatientBirthDate": "19530719", "PatientSize": NUMBER}
    for number in range(2):
        tags["SeriesInstanceUID"] = f"1.{number}.{NUMBER}"
        series(root / f"dicom/{NAME}_{NUMBER}/visit{number}", volume(number), **tags)
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
    written = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    assert len(written) >= 5
    for name, content in {**written, "stdout": done.stdout, "stderr": done.stderr}.items():
        for secret in (NAME, NUMBER, "19530719", "visit1"):
            assert secret.lower().encode() not in content.lower(), f"{secret} in {name}"
    for name, content in written.items():
        assert str(tmp_path).encode() not in content, name
