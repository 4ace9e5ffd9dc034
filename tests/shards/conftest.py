"""Shared by the shard tests: DICOM series of known truth, and small folders of shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from recipes.load import parse
from shards import build
from shards.build import BuildConfig

AXIAL = (1, 0, 0, 0, 1, 0)


def _slice_file(
    path: Path, pixels: np.ndarray, *, position: tuple[float, ...], changes: dict[str, Any]
) -> None:
    """One CT slice of (rows, columns) stored values; ``changes`` replace or (None) drop tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": pydicom.uid.generate_uid(entropy_srcs=[str(path)]),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "PatientID": "PAT-1",
        "Modality": "CT",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": list(position),
        "PixelSpacing": [2.0, 1.5],
        "SliceThickness": 4.0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": pixels.astype("<i2").tobytes(),
        **changes,
    }
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    for tag, value in tags.items():
        if value is not None:
            setattr(dataset, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="session")
def slice_file() -> Callable[..., None]:
    """``slice_file(path, pixels, position=(x, y, z), changes={...})``."""
    return _slice_file


def _series(folder: Path, hounsfield: np.ndarray, **changes: Any) -> None:
    """An axial CT of (D, H, W) Hounsfield units, 4 x 2 x 1.5 mm; file names run from above."""
    for number, pixels in enumerate(hounsfield):
        _slice_file(
            folder / f"IM{len(hounsfield) - number:03d}",
            pixels + 1024,
            position=(-10.0, -20.0, 30.0 + 4.0 * number),
            changes=changes,
        )


@pytest.fixture(scope="session")
def series() -> Callable[..., None]:
    """``series(folder, hounsfield, Tag=value)``."""
    return _series


def phantom_hu(seed: int, shape: tuple[int, int, int] = (9, 14, 11)) -> np.ndarray:
    """A bright box off centre in noise, int16."""
    random = np.random.default_rng(seed)
    volume = random.normal(-900, 20, shape)
    volume[2:7, 3:12, 2:8] += 950
    return volume.astype(np.int16)


def write_archive(root: Path) -> Path:
    """Three DICOM series, a NIfTI cohort of seven MR scans (split 4, 2, 1), and a text file."""
    for number in range(3):
        folder = root / "dicom" / f"p{number}"
        uid = f"1.2.3.{number}"
        _series(folder, phantom_hu(number), PatientID=f"PAT-{number}", SeriesInstanceUID=uid)
    (root / "dicom/notes.txt").write_text("no image")
    (root / "mr").mkdir()
    rows = ["case,split"]
    for number in range(7):
        voxels = phantom_hu(10 + number, (12, 10, 9)).astype(np.float32) * 1.5 + 0.25
        image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
        nibabel.save(image, root / f"mr/case_{number}.nii.gz")
        rows.append(f"{number},{'train' if number < 4 else 'val' if number < 6 else 'test'}")
    (root / "mr/table.csv").write_text("\n".join(rows) + "\n")
    (root / "mr.yaml").write_text(
        "name: mr\ntable: mr/table.csv\nsubject: 'sub-{case}'\nscan: 'case_{case}.nii.gz'\n"
        "modality: MR\nsplit: {column: split}\nlicence: CC0\nsource: written by a test\n"
    )
    return root


def recipe(root: Path, **changes: Any) -> BuildConfig:
    """The recipe that builds :func:`write_archive` into ``root/shards``, without the test part."""
    about = {"name": "ct", "licence": "CC0", "source": "written by a test"}
    tree = {
        "name": "toy",
        "out": str(root / "shards"),
        "data_root": str(root),
        "pseudonym_key": str(root / "key"),
        "sources": [
            {"dicom": "dicom", **about},
            {"cohort": str(root / "mr.yaml"), "splits": ["train", "val"]},
        ],
        "shard_size_mb": 0.01,
        "workers": 1,
        **changes,
    }
    return parse(tree, BuildConfig, where="recipe")


@pytest.fixture(scope="session")
def archive() -> Callable[[Path], Path]:
    return write_archive


@pytest.fixture(scope="session")
def toy_recipe() -> Callable[..., BuildConfig]:
    return recipe


@pytest.fixture(scope="session")
def toy_volume() -> Callable[..., np.ndarray]:
    """``toy_volume(seed, shape)``: what the archive's scans hold, before any rescale."""
    return phantom_hu


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, to be read only: nine scans in several tars."""
    root = write_archive(tmp_path_factory.mktemp("archive"))
    build.main(recipe(root))
    return root / "shards"
