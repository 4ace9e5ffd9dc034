"""Masks in the scan's own space: their geometry, their files, what is measured on them."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.finetuning.mask_space import (
    classes_of,
    labels_of,
    mean_entropy,
    volumes_ml,
    write_mask,
)
from foundation.finetuning.target import Target
from shards.phantom.files import write_nifti
from shards.phantom.space import Grid
from shards.scan import Scan, ScanError, read_scan, resample

SHAPE, SPACING = (11, 14, 9), (2.0, 1.0, 1.5)
TARGETS = [
    (1.5, 1.5, 1.5),
    (3.0, 0.75, 1.1),  # leaves out a part of a voxel at the rim
    (0.8, 2.3, 1.5),
]


def scan(voxels: NDArray[np.generic], spacing: tuple[float, float, float] = SPACING) -> Scan:
    return Scan(voxels.astype(np.float32), spacing_mm=spacing, modality="OT")


def one_hot(classes: NDArray[np.integer], num: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(classes).long(), num).movedim(-1, 0).float()


def centres_mm(
    shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> list[NDArray[np.float64]]:
    """Of voxels about the centre of the volume, for each axis."""
    return [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]


@pytest.mark.parametrize("target_mm", TARGETS)
def test_a_plane_in_millimetres_stays_where_it_is(target_mm: tuple[float, float, float]) -> None:
    """A shift by a fifth of a voxel would move voxels across the plane."""
    whole = scan(np.zeros(SHAPE))
    new = resample(whole, target_mm).voxels.shape
    rng = np.random.default_rng(0)
    for axis in range(3):
        for offset in rng.uniform(-3, 3, 12):
            d, h, w = np.meshgrid(*centres_mm(new, target_mm), indexing="ij")
            distance = (d, h, w)[axis] - offset
            # Linear in space, so that interpolation is exact within the outermost centres.
            shares = np.stack([0.5 - distance / 40, 0.5 + distance / 40])
            found = classes_of(torch.from_numpy(shares).float(), whole, spacing_mm=target_mm)
            own = centres_mm(SHAPE, SPACING)[axis]
            limit = (new[axis] - 1) / 2 * target_mm[axis]
            expected = own.clip(-limit, limit) > offset
            sure = np.abs(own - offset) > 1e-3
            got = np.moveaxis(found, axis, 0)
            assert (got == got[:, :1, :1]).all()
            assert np.array_equal(got[sure, 0, 0], expected[sure])


@pytest.mark.parametrize("target_mm", TARGETS)
def test_interpolation_is_that_of_an_independent_reference(
    target_mm: tuple[float, float, float],
) -> None:
    """Voxel by voxel, with the affine that resampling gives the scan."""
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = 7.0, -3.0, 5.0
    own = Scan(np.zeros(SHAPE, np.float32), SPACING, "OT", affine)
    moved = resample(own, target_mm)
    assert moved.affine is not None
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn(3, *moved.voxels.shape, generator=generator).mul(3).softmax(dim=0)
    values, last = shares.double().numpy(), np.array(moved.voxels.shape) - 1
    expected = np.empty((3, *SHAPE))
    for place in np.ndindex(*SHAPE):
        at = (np.linalg.inv(moved.affine) @ affine @ [*place, 1])[:3].clip(0, last)
        below = np.floor(at).astype(int)
        total = np.zeros(3)
        for corner in np.ndindex(2, 2, 2):
            index = np.minimum(below + corner, last)
            weight = np.where(corner, at - below, 1 - (at - below)).prod()
            total += weight * values[(slice(None), *index)]
        expected[(slice(None), *place)] = total
    found = classes_of(shares, own, spacing_mm=target_mm)
    margin = np.diff(np.sort(expected, axis=0)[1:], axis=0)[0]
    assert np.array_equal(found[margin > 1e-5], expected.argmax(axis=0)[margin > 1e-5])


def test_a_mask_comes_back_from_a_finer_grid() -> None:
    classes = np.zeros(SHAPE, np.uint8)
    classes[2:7, 3:9, 1:4] = 1
    classes[5:10, 9:13, 5:8] = 2
    finer_mm = (1.0, 0.5, 0.75)
    shares = torch.stack(
        [
            torch.from_numpy(resample(scan(classes == number), finer_mm).voxels)
            for number in range(3)
        ]
    )
    assert np.array_equal(classes_of(shares, scan(classes), spacing_mm=finer_mm), classes)


@pytest.mark.parametrize("spacing_mm", [None, SPACING, (2.0005, 1.0, 1.5)])
def test_the_scans_own_grid_is_left_alone(spacing_mm: tuple[float, float, float] | None) -> None:
    classes = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    assert np.array_equal(
        classes_of(one_hot(classes, 4), scan(classes), spacing_mm=spacing_mm), classes
    )


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, target_mm = scan(np.zeros(SHAPE)), TARGETS[0]
    shape = resample(whole, target_mm).voxels.shape
    shares = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    expected = classes_of(shares, whole, spacing_mm=target_mm)
    monkeypatch.setattr("foundation.finetuning.mask_space._VALUES_AT_ONCE", 2 * 3 * 14 * 9)
    assert np.array_equal(classes_of(shares, whole, spacing_mm=target_mm), expected)


def test_one_slice_stays_one() -> None:
    flat = scan(np.zeros((1, 8, 6)), (5.0, 1.0, 1.0))
    shape = resample(flat, (2.0, 2.0, 2.0)).voxels.shape
    shares = torch.zeros(2, *shape)
    shares[0, :, 0], shares[1, :, 1:] = 1, 1
    found = classes_of(shares, flat, spacing_mm=(2.0, 2.0, 2.0))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def target(values: dict[str, int]) -> Target:
    return Target(
        task="t",
        kind="segmentation",
        outputs=tuple(values),
        classes=tuple(values),
        mask_values=values,
    )


def test_labels_are_the_values_of_the_tasks_masks() -> None:
    classes = np.array([[[0, 1, 2]]], np.uint8)
    small = labels_of(classes, target({"liver": 6, "spleen": 1}))
    assert small.dtype == np.uint8
    assert small.tolist() == [[[0, 6, 1]]]
    large = labels_of(classes, target({"liver": 600, "spleen": 1}))
    assert large.dtype == np.uint16
    assert large.tolist() == [[[0, 600, 1]]]


ORIENTATIONS = ["LPS", "RAS", "PIR", "SAL", "IRP"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_beside_a_nifti_file_has_its_very_grid(
    tmp_path: Path, orientation: str, suffix: str
) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", voxels, Grid(SHAPE, SPACING), orientation=orientation)
    source = tmp_path / f"source{suffix}"
    nib.save(oblique(nib.load(tmp_path / "scan.nii.gz")), source)
    read = read_scan(source, modality="OT")
    labels = (read.voxels > 100).astype(np.uint8) * 7
    write_mask(tmp_path / "new" / "mask.nii.gz", labels, read, source=source)
    image, written = nib.load(source), nib.load(tmp_path / "new" / "mask.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, image.affine)
    for kind in ("qform", "sform"):
        mine, code = getattr(written, f"get_{kind}")(coded=True)
        theirs, expected = getattr(image, f"get_{kind}")(coded=True)
        assert code == expected > 0
        assert np.array_equal(mine, theirs)
    assert np.array_equal(written.get_fdata() == 7, image.get_fdata() > 100)
    again = read_scan(tmp_path / "new" / "mask.nii.gz", modality="OT")
    assert np.array_equal(again.voxels, labels)
    assert b"Anna" not in bytes(written.header.binaryblock)


def oblique(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Turned by some degrees, with a name in its header."""
    c, s = math.cos(0.2), math.sin(0.2)
    turn = np.array([[c, -s, 0, 4.0], [s, c, 0, -30.0], [0, 0, 1, 2.5], [0, 0, 0, 1]])
    turned = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
    turned.set_qform(turn @ image.affine, code=1)
    turned.set_sform(turn @ image.affine, code=2)
    turned.header["descrip"] = b"Anna"
    return turned


def test_a_file_that_places_itself_by_its_qform_alone_does_so_in_its_mask(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), None)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 3.3, 4.4, 5.5
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "scan.nii.gz")
    read = read_scan(tmp_path / "scan.nii.gz", modality="OT")
    labels = np.ones(read.voxels.shape, np.uint8)
    write_mask(tmp_path / "mask.nii", labels, read, source=tmp_path / "scan.nii.gz")
    written = nib.load(tmp_path / "mask.nii")
    assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert written.get_sform(coded=True)[1] == 0
    assert written.shape == (5, 6, 7)


def test_a_compressed_source_may_be_called_as_if_it_were_not(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    source = (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    read = read_scan(source, modality="OT")
    write_mask(tmp_path / "mask.nii", np.ones(read.voxels.shape, np.uint8), read, source=source)
    assert nib.load(tmp_path / "mask.nii").shape == (5, 6, 7)
    source.write_bytes(source.read_bytes()[:40])
    with pytest.raises(ScanError, match="truncated or damaged"):
        write_mask(tmp_path / "mask.nii", np.ones(read.voxels.shape, np.uint8), read, source=source)


def test_a_channel_of_a_file_has_a_mask_of_three_axes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, (5, 6, 7, 3)).astype(np.int16)
    nib.save(nib.Nifti2Image(values, np.diag([-1.0, 2.0, -3.0, 1.0])), tmp_path / "scan.nii.gz")
    where = f"{tmp_path}/scan.nii.gz#1"
    read = read_scan(where, modality="MR")
    write_mask(tmp_path / "mask.nii.gz", (read.voxels > 4).astype(np.uint8), read, source=where)
    written = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    assert np.array_equal(written.get_fdata(), values[..., 1] > 4)
    assert np.array_equal(written.affine, np.diag([-1.0, 2.0, -3.0, 1.0]))


@pytest.mark.parametrize("has_affine", [True, False])
def test_without_a_nifti_file_the_scans_affine_places_the_mask(
    tmp_path: Path, has_affine: bool
) -> None:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 2.0, 1.0, 1.5, 1.0
    affine[:3, 3] = (10.0, -20.0, 30.0) if has_affine else 0
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    given = Scan(labels, SPACING, "CT", affine if has_affine else None)
    write_mask(tmp_path / "mask.nii.gz", labels, given, source=tmp_path / "dicom")
    again = read_scan(tmp_path / "mask.nii.gz", modality="OT")
    assert np.array_equal(again.voxels, labels)
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)
    first = (tmp_path / "mask.nii.gz").read_bytes()
    write_mask(tmp_path / "mask.nii.gz", labels, given)
    assert (tmp_path / "mask.nii.gz").read_bytes() == first


def test_volumes_are_millilitres() -> None:
    classes = np.zeros((4, 5, 6), np.uint8)
    classes[0], classes[1, :2] = 1, 3
    found = volumes_ml(classes, spacing_mm=(5.0, 2.0, 10.0), num_classes=3)
    np.testing.assert_allclose(found, [3.0, 0.0, 1.2])


def test_entropy_is_that_of_voxels_that_may_be_foreground() -> None:
    shares = torch.zeros(3, 2, 3, 4)
    shares[0] = 1
    assert mean_entropy(shares) == 0
    shares[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert mean_entropy(shares) == 0
    shares[:, 0, 0, 1] = torch.tensor([0.5, 0.25, 0.25])
    unsure = 1.5 * math.log(2) / math.log(3)
    assert mean_entropy(shares) == pytest.approx(0.5 * unsure / 1.5, rel=1e-6)
    assert mean_entropy(torch.full((3, 2, 3, 4), 1 / 3)) == pytest.approx(1, rel=1e-6)
