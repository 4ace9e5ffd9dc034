"""Whole files that the fuzz cases damage, each as bytes; in all, who and where is planted."""

import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import gdcm
import nibabel
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SECRETS = ("Zebedee", "ZEB-4711", "1.2.826.0.1.4711", "Quuxville")
SLICES = (9, 16, 12)
GDCM_SYNTAXES = {
    "rle": gdcm.TransferSyntax.RLELossless,
    "jpeg": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpegls": gdcm.TransferSyntax.JPEGLSLossless,
    "j2k": gdcm.TransferSyntax.JPEG2000Lossless,
}

Files = dict[str, bytes]


def volume(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A bright box off centre in noise, int16."""
    found = np.random.default_rng(seed).normal(-900, 20, shape)
    found[2:7, 3:12, 2:8] += 950 + seed
    return found.astype(np.int16)


def dicom_series(seed: int, *, syntax: str = ExplicitVRLittleEndian) -> Files:
    """An axial CT, a file per slice."""
    files = {}
    for number, plane in enumerate(volume(seed, SLICES)):
        dataset = _header(seed, CTImageStorage, syntax, plane.shape)
        dataset.SOPInstanceUID = f"{SECRETS[2]}.{seed}.{number}"
        dataset.ImagePositionPatient = [-10.0, -20.0, 30.0 + 4.0 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [2.0, 1.5]
        dataset.SliceThickness = 4.0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (plane + 1024).astype("<i2").tobytes()
        files[f"IM{number:03d}"] = _bytes(dataset)
    return files


def compressed_series(seed: int, *, syntax: str, folder: Path) -> Files:
    """:func:`dicom_series` through gdcm's encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, content in dicom_series(seed).items():
        plain, packed = folder / "plain", folder / "packed"
        plain.write_bytes(content)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(GDCM_SYNTAXES[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change(), syntax
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(packed))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        files[name] = packed.read_bytes()
    return files


def enhanced_file(seed: int) -> Files:
    """An enhanced multi-frame CT."""
    voxels = volume(seed, SLICES)
    dataset = _header(seed, EnhancedCTImageStorage, ExplicitVRLittleEndian, voxels.shape[1:])
    dataset.SOPInstanceUID = f"{SECRETS[2]}.{seed}.0"
    dataset.NumberOfFrames = len(voxels)
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence = [_of(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [_of(PixelSpacing=[2.0, 1.5], SliceThickness=4.0)]
    shared.PixelValueTransformationSequence = [
        _of(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    ]
    for number in range(len(voxels)):
        frame = Dataset()
        place = [-10.0, -20.0, 30.0 + 4.0 * number]
        frame.PlanePositionSequence = [_of(ImagePositionPatient=place)]
        frame.FrameContentSequence = [_of(InStackPositionNumber=number + 1, StackID="1")]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = (voxels + 1024).astype("<i2").tobytes()
    return {"IM000": _bytes(dataset)}


def nifti_file(seed: int, *, suffix: str, dtype: str = "<i2", times: int = 1) -> Files:
    """``scan.nii`` or ``scan.nii.gz``."""
    voxels = np.stack([volume(seed + time, (12, 15, 10)) for time in range(times)], axis=-1)
    stored = voxels.astype(dtype) * (1.25 if dtype == "<f4" else 1)
    affine = np.array([[-1.5, 0, 0, 9], [0, 2, 0, -4], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(stored.squeeze().astype(dtype), affine)
    image.header["descrip"] = SECRETS[0].encode()
    content = image.to_bytes()
    if suffix == ".nii.gz":
        import gzip

        content = gzip.compress(content, 1, mtime=0)
    return {f"scan{suffix}": content}


def itk_file(seed: int, *, suffix: str, folder: Path) -> Files:
    """``scan.nrrd``, ``scan.mha``, or ``scan.mhd`` and its voxels; compressed if seed is even."""
    folder.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(volume(seed, (11, 14, 10)))
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetMetaData("Who", SECRETS[0])
    path = folder / f"scan{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=seed % 2 == 0)
    voxels = {each.name: each.read_bytes() for each in folder.glob("*raw")}
    return {path.name: path.read_bytes(), **(voxels if suffix == ".mhd" else {})}


def cohort_table() -> Files:
    """``table.csv`` of eight rows, with dates and free columns."""
    rows = ["case,split,age,sex,date"]
    rows += [f"{number},train,{50 + number},F,2020-01-{10 + number}" for number in range(8)]
    return {"table.csv": ("\n".join(rows) + "\n").encode()}


def parquet_table() -> Files:
    """The same as ``table.parquet``."""
    content = io.BytesIO()
    table = pyarrow.csv.read_csv(io.BytesIO(cohort_table()["table.csv"]))
    pyarrow.parquet.write_table(table, content)
    return {"table.parquet": content.getvalue()}


def npz_file() -> Files:
    """``scan.npz`` of three volumes, as MedMNIST keeps them."""
    content = io.BytesIO()
    images = np.stack([volume(90 + number, (9, 14, 10)) for number in range(3)])
    np.savez_compressed(content, train_images=images.astype(np.uint8))
    return {"scan.npz": content.getvalue()}


def webdataset_tar() -> Files:
    """``source.tar`` of three NIfTI files, each with metadata beside it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(3):
            (packed,) = nifti_file(40 + number, suffix=".nii.gz").values()
            about = json.dumps({"age": 50 + number, "who": SECRETS[0]}).encode()
            for name, data in ((f"s{number}.t1w.nii.gz", packed), (f"s{number}.json", about)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return {"source.tar": content.getvalue()}


def _header(seed: int, kind: str, syntax: str, shape: tuple[int, ...]) -> Any:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kind, syntax
    meta.MediaStorageSOPInstanceUID = f"{SECRETS[2]}.{seed}"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = kind
    dataset.PatientName, dataset.PatientID = f"{SECRETS[0]}^Ada", f"{SECRETS[1]}-{seed}"
    dataset.InstitutionName = SECRETS[3]
    dataset.StudyInstanceUID = f"{SECRETS[2]}.9.{seed}"
    dataset.SeriesInstanceUID = f"{SECRETS[2]}.8.{seed}"
    dataset.FrameOfReferenceUID = f"{SECRETS[2]}.7.{seed}"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    return dataset


def _of(**values: Any) -> Dataset:
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def _bytes(dataset: Any) -> bytes:
    content = io.BytesIO()
    pydicom.dcmwrite(content, dataset, enforce_file_format=True)
    return content.getvalue()


def dicom_seeds(folder: Path) -> dict[str, Files]:
    """Every way a CT series is kept, by name."""
    numbers = itertools.count(1)
    found = {
        "explicit": dicom_series(next(numbers)),
        "implicit": dicom_series(next(numbers), syntax=ImplicitVRLittleEndian),
        "deflated": dicom_series(next(numbers), syntax=DeflatedExplicitVRLittleEndian),
        "enhanced": enhanced_file(next(numbers)),
    }
    for syntax in GDCM_SYNTAXES:
        found[syntax] = compressed_series(next(numbers), syntax=syntax, folder=folder / syntax)
    return found
