"""Write a phantom scan as a hospital would: a folder of DICOM slices, or one NIfTI file.

Identities are invented, but complete: what must never leave a scan is there to be found. The same
scan gives the same bytes, UIDs included.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from shards.phantom.simulate import PhantomScan
from shards.phantom.space import Array, Grid
from shards.phantom.subject import Subject

_FAMILY = ("Abernathy", "Birkeland", "Castellan", "Drozdov", "Eriksen", "Fontaine", "Grimaldi")
_GIVEN = (
    "Ada",
    "Bruno",
    "Clara",
    "Dmitri",
    "Elsa",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kaya",
)
_STUDY_YEAR = 2024


def write_nifti(path: Path, voxels: Array, grid: Grid, *, orientation: str) -> None:
    """Write a (D, H, W) LPS volume as ``.nii.gz`` whose axes are stored in ``orientation``.

    Args:
        orientation: Three letters, what each stored axis points to; ``RAS`` is right, front, up.
    """
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, ornt_transform

    d, h, w = grid.spacing_mm
    affine = np.diag([-w, -h, d, 1.0])
    affine[:3, 3] = -grid.axis(2)[0], -grid.axis(1)[0], grid.axis(0)[0]
    image = nib.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine)
    image = image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(orientation)))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    # No time and no name in the gzip header: two runs write the same bytes.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_dicom(folder: Path, scan: PhantomScan, subject: Subject) -> None:
    """Write a CT as one DICOM series, a file per slice.

    File names say nothing about the order of the slices, and half of the scanners number them from
    above: only the position along the slice normal tells.
    """
    folder.mkdir(parents=True)
    header = _series(scan, subject)
    places = [scan.grid.axis(number) for number in range(3)]
    count = len(places[0])
    from_above = scan.scanner.orientation != "LPS"
    for number, slice_hu in enumerate(scan.voxels):
        position = (places[2][0], places[1][0], places[0][number])
        uid = _uid(header.SeriesInstanceUID, str(number))
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
        header.InstanceNumber = count - number if from_above else number + 1
        header.ImagePositionPatient = [round(float(value), 4) for value in position]
        header.SliceLocation = round(float(position[2]), 4)
        stored = slice_hu.astype(np.int32) - scan.scanner.rescale_intercept
        header.PixelData = stored.astype("<i2").tobytes()
        name = hashlib.sha256(uid.encode()).hexdigest()[:8].upper()
        header.save_as(folder / f"IM{name}.dcm", enforce_file_format=True)


def _series(scan: PhantomScan, subject: Subject) -> Any:
    """What all slices of a series share."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    index = int(subject.name.rsplit("-", 1)[1])
    day = f"{_STUDY_YEAR}{1 + index % 12:02d}{1 + index % 28:02d}"
    (rows, columns), (d, h, w) = scan.grid.shape[1:], scan.grid.spacing_mm
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.ImplementationVersionName = "SCANFM"
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.StudyInstanceUID = _uid(subject.name, scan.body_part)
    header.SeriesInstanceUID = _uid(header.StudyInstanceUID, "1")
    header.FrameOfReferenceUID = _uid(header.StudyInstanceUID, "frame")
    header.StudyID, header.SeriesNumber, header.AcquisitionNumber = str(index), 1, 1
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day
    header.StudyTime = header.SeriesTime = header.ContentTime = f"{8 + index % 10:02d}1500"
    header.AccessionNumber = f"A{index:07d}"
    header.Modality = "CT"
    header.BodyPartExamined = scan.body_part.upper()
    header.SeriesDescription = f"{scan.body_part} phantom"
    header.Manufacturer = scan.scanner.manufacturer
    header.StationName = scan.scanner.name
    header.InstitutionName = f"{scan.scanner.name.split('-')[0].title()} Hospital"
    header.ReferringPhysicianName = "Whitlock^Marie"
    header.PatientID = subject.name
    header.PatientName = f"{_FAMILY[index % len(_FAMILY)]}^{_GIVEN[index % len(_GIVEN)]}"
    header.PatientBirthDate = f"{_STUDY_YEAR - subject.age}0{1 + index % 9}17"
    header.PatientSex = subject.sex
    header.PatientAge = f"{subject.age:03d}Y"
    header.PatientAddress = f"{1 + index} Orchard Lane"
    header.PatientPosition = "HFS"
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [h, w]
    header.SliceThickness = header.SpacingBetweenSlices = d
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = rows, columns
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.RescaleIntercept, header.RescaleSlope = scan.scanner.rescale_intercept, 1
    header.RescaleType = "HU"
    header.KVP = 120
    return header


def _uid(*parts: str) -> str:
    """A UID that follows from ``parts``, under the root for UUIDs (2.25)."""
    return f"2.25.{int(hashlib.sha256('/'.join(parts).encode()).hexdigest()[:31], 16)}"
