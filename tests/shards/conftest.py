"""Shared by the shard tests: DICOM series of known truth, and small folders of shards."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from recipes.load import parse
from shards import build
from shards.build import BuildConfig

AXIAL = (1, 0, 0, 0, 1, 0)


def _slice_file(
    path: Path,
    pixels: np.ndarray,
    *,
    position: tuple[float, ...],
    changes: dict[str, Any],
    syntax: str = ExplicitVRLittleEndian,
    private: Iterable[tuple[int, str, int, str, Any]] = (),
) -> None:
    """One CT slice of (rows, columns) stored values.

    ``changes`` replace or (None) drop tags; ``syntax`` is its transfer syntax; ``private`` holds
    (group, creator, element, value representation, value).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = UID(syntax)
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
    uid = UID(syntax)
    dataset = FileDataset(
        None,
        {},
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=uid.is_implicit_VR,
        is_little_endian=uid.is_little_endian,
    )
    for tag, value in tags.items():
        if value is not None:
            setattr(dataset, tag, value)
    for group, creator, element, representation, value in private:
        block = dataset.private_block(group, creator, create=True)
        block.add_new(element, representation, value)
    _encode_pixels(dataset, uid)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _encode_pixels(dataset: Dataset, uid: UID) -> None:
    """From little endian to what the transfer syntax asks for."""
    if "PixelData" not in dataset:
        return
    if uid.is_encapsulated:
        size = dataset.Rows * dataset.Columns * 2
        plain = dataset.PixelData
        frames = [plain[at : at + size] for at in range(0, len(plain), size)]
        dataset.PixelData = encapsulate([_compressed(one, dataset) for one in frames])
        dataset["PixelData"].VR = "OB"
    elif not uid.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()


def _compressed(frame: bytes, dataset: Dataset) -> bytes:
    """One frame of 16 bits in the dataset's transfer syntax, through gdcm."""
    import gdcm

    writer = gdcm.ImageWriter()  # it owns the image
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 16, 15, dataset.PixelRepresentation))
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetByteStringValue(frame)
    image.SetDataElement(pixels)
    change = gdcm.ImageChangeTransferSyntax()
    kind = gdcm.TransferSyntax.GetTSType(str(dataset.file_meta.TransferSyntaxUID))
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(image)
    assert change.Change()
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    assert fragments.GetNumberOfFragments() == 1
    content: str = fragments.GetFragment(0).GetByteValue().GetBuffer()
    return content.encode("utf-8", "surrogateescape")


@pytest.fixture(scope="session")
def slice_file() -> Callable[..., None]:
    """``slice_file(path, pixels, position=(x, y, z), changes={...})``."""
    return _slice_file


def _multi_frame(
    path: Path,
    frames: Sequence[tuple[np.ndarray, dict[str, dict[str, Any]]]],
    *,
    shared: dict[str, dict[str, Any]],
    changes: dict[str, Any],
    syntax: str = ExplicitVRLittleEndian,
) -> None:
    """An enhanced object.

    Each frame is (rows, columns) stored values with its functional groups, such as
    ``{"PlanePosition": {"ImagePositionPatient": [0, 0, 4]}}``; ``shared`` are those of all.
    """
    pixels = np.stack([one for one, _ in frames])
    per_frame = [_groups(groups) for _, groups in frames]
    _slice_file(
        path,
        pixels[0],
        position=(0, 0, 0),
        syntax=syntax,
        changes={
            "NumberOfFrames": len(frames),
            "ImagePositionPatient": None,
            "ImageOrientationPatient": None,
            "PixelSpacing": None,
            "SliceThickness": None,
            "RescaleSlope": None,
            "RescaleIntercept": None,
            "SharedFunctionalGroupsSequence": [_groups(shared)],
            "PerFrameFunctionalGroupsSequence": per_frame,
            "PixelData": pixels.astype("<i2").tobytes(),
            **changes,
        },
    )


def _groups(groups: dict[str, dict[str, Any]]) -> Dataset:
    found = Dataset()
    for name, values in groups.items():
        item = Dataset()
        for tag, value in values.items():
            setattr(item, tag, value)
        setattr(found, f"{name}Sequence", [item])
    return found


@pytest.fixture(scope="session")
def multi_frame() -> Callable[..., None]:
    """``multi_frame(path, [(pixels, groups), ...], shared={...}, changes={...})``."""
    return _multi_frame


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
        "workers": 0,
        "if_changed": "rebuild",
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
