"""Sequences and masks of one visit share a grid, or are refused with the numbers."""

from datetime import date
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shards.policy import LENIENT
from shards.scan import Origin, Scan, ScanError
from shards.sources.visit import Part, Visit, at_spacing, check_registration, labels_of, read_visits

SHAPE = (6, 8, 9)  # (D, H, W)


def _affine(spacing_mm: tuple[float, float, float] = (3.0, 1.0, 2.0)) -> np.ndarray:
    """Upright: (d, h, w) to (x, y, z) in LPS."""
    d, h, w = spacing_mm
    return np.array([[0, 0, w, -5], [0, h, 0, 7], [d, 0, 0, 11], [0, 0, 0, 1]], float)


def _scan(
    affine: np.ndarray | None, *, frame: str | None = None, shape: tuple[int, ...] = SHAPE
) -> Scan:
    origin = Origin(frame_of_reference=frame, date=date(2024, 1, 31))
    return Scan(np.ones(shape, np.int16), (3.0, 1.0, 2.0), "MR", affine, origin)


def _turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found: np.ndarray = turn @ _affine()
    return found


def _moved(shift_mm: float) -> np.ndarray:
    affine = _affine()
    affine[2, 3] += shift_mm
    return affine


def test_one_grid_up_to_rounding() -> None:
    first = _scan(_affine(), frame="1.2")
    for other in (
        _scan(_affine() + 1e-5, frame="1.2"),
        _scan(_moved(0.09)),  # a tenth of the smallest edge, 1 mm, is allowed
        _scan(_turned(0.2)),
    ):
        check_registration(first, other)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (_scan(_moved(0.11)), r"0\.11 mm from the grid of the first sequence, at most 0\.10"),
        (_scan(_turned(1.0)), r"not registered: 0\.\d\d mm from the grid"),
        (_scan(_affine((3.1, 1.0, 2.0))), r"not registered: 0\.50 mm"),  # 5 steps of 0.1 mm
        (_scan(_affine(), frame="1.3"), "another frame of reference"),
        (_scan(_affine(), shape=(6, 9, 8)), "6 x 9 x 8 voxels, the first sequence has 6 x 8 x 9"),
        (_scan(None), "no geometry"),
    ],
)
def test_another_grid_is_refused(other: Scan, reason: str) -> None:
    with pytest.raises(ScanError, match=reason):
        check_registration(_scan(_affine(), frame="1.2"), other)


def test_shapes_without_geometry_need_only_be_alike() -> None:
    check_registration(_scan(None), _scan(None))


def _save(path: Path, voxels: np.ndarray, shift: float = 0.0) -> None:
    """(D, H, W) voxels as an RAS file of 3 x 1 x 2 mm."""
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    affine[0, 3] = shift
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0)[::-1, ::-1], affine)
    nibabel.save(image, path)


def _parts(*names: str) -> list[Part]:
    return [Part(name, f"{name}.nii", "MR") for name in names]


def test_a_visit_of_two_sequences_and_a_mask(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    volumes = {name: random.integers(0, 99, SHAPE, np.int16) for name in ("t1w", "flair")}
    for name, voxels in volumes.items():
        _save(tmp_path / f"{name}.nii", voxels)
    labels = random.integers(0, 4, SHAPE).astype(np.float32)
    _save(tmp_path / "lesion.nii", labels)
    (visit,) = read_visits(_parts("t1w", "flair"), _parts("lesion"), root=tmp_path, policy=LENIENT)
    assert list(visit.scans) == ["t1w", "flair"]
    for name, voxels in volumes.items():
        np.testing.assert_array_equal(visit.scans[name].voxels, voxels)
    assert visit.masks["lesion"].dtype == np.uint8
    np.testing.assert_array_equal(visit.masks["lesion"], labels)


def test_the_sequence_that_does_not_fit_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "t1w.nii", np.ones(SHAPE, np.int16))
    _save(tmp_path / "flair.nii", np.ones(SHAPE, np.int16), shift=5)
    _save(tmp_path / "face.nii", np.full(SHAPE, 0.5, np.float32))
    _save(tmp_path / "small.nii", np.ones((5, 8, 9), np.int16))
    (tmp_path / "seg").mkdir()

    def read(sequences: list[Part], masks: list[Part]) -> None:
        list(read_visits(sequences, masks, root=tmp_path, policy=LENIENT))

    with pytest.raises(ScanError, match=r"^flair: not registered: 5\.00 mm"):
        read(_parts("t1w", "flair"), [])
    with pytest.raises(ScanError, match=r"^face: a mask with values that are no whole numbers"):
        read(_parts("t1w"), _parts("face"))
    with pytest.raises(ScanError, match=r"^small: not on one grid: 5 x 8 x 9"):
        read(_parts("t1w"), _parts("small"))
    with pytest.raises(ScanError, match=r"^tumour: a mask that is no NIfTI.*DICOM-SEG is not read"):
        read(_parts("t1w"), [Part("tumour", "seg")])
    with pytest.raises(ScanError, match=r"^gone: the file or folder does not exist"):
        read(_parts("t1w", "gone"), [])


def test_time_points_of_a_visit_are_refused(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.ones((9, 8, 6, 2), np.int16), np.eye(4)), tmp_path / "t.nii"
    )
    assert len(list(read_visits(_parts("t"), [], root=tmp_path, policy=LENIENT))) == 2
    with pytest.raises(ScanError, match="several volumes, where all of a visit"):
        list(read_visits(_parts("t", "t"), [], root=tmp_path, policy=LENIENT))


def test_labels_outside_of_a_byte() -> None:
    for value in (-1, 256):
        scan = Scan(np.full(SHAPE, value, np.int16), (1, 1, 1), "OT")
        with pytest.raises(ScanError, match="outside of 0 to 255"):
            labels_of(scan)


def _blocks() -> np.ndarray:
    """A box that is bright and labelled, off centre."""
    voxels = np.zeros((12, 16, 18), np.int16)
    voxels[3:9, 4:10, 6:14] = 100
    return voxels


def _centre(weight: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(x, y, z) mm of the centre of mass."""
    places = np.argwhere(weight > 0)
    mass = weight[tuple(places.T)].astype(float)
    centre = (places * mass[:, None]).sum(axis=0) / mass.sum()
    found: np.ndarray = (affine @ [*centre, 1])[:3]
    return found


@pytest.mark.parametrize("target", [(6.0, 2.0, 4.0), (1.5, 1.0, 3.0), (2.0, 2.5, 1.3)])
def test_a_mask_stays_on_its_structure(target: tuple[float, float, float]) -> None:
    scan = Scan(_blocks(), (3.0, 1.0, 2.0), "MR", _affine())
    labels = (_blocks() > 0).astype(np.uint8) * 7
    placed = at_spacing(
        Visit({"a": scan, "b": scan}, {"m": labels}), spacing_mm=target, max_anisotropy=None
    )
    volume, mask = placed.scans["b"].voxels, placed.masks["m"]
    assert volume.shape == mask.shape
    assert set(np.unique(mask)) == {0, 7}
    assert placed.first.spacing_mm == target
    assert placed.first.affine is not None
    expected = _centre(labels, _affine())
    for found in (_centre(mask, placed.first.affine), _centre(volume, placed.first.affine)):
        assert (np.abs(found - expected) <= np.array(target[::-1]) / 2 + 1e-6).all()
    whole = np.prod(target) * np.count_nonzero(mask)
    assert whole == pytest.approx(6.0 * np.count_nonzero(labels), rel=0.4)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1.0, (3.0, 3.0, 3.0)),
        (2.0, (3.0, 1.5, 2.0)),
        (3.0, (3.0, 1.0, 2.0)),
        (9.0, (3.0, 1.0, 2.0)),
    ],
)
def test_a_limit_of_anisotropy_makes_up_no_voxel(
    limit: float, expected: tuple[float, float, float]
) -> None:
    visit = Visit({"a": Scan(_blocks(), (3.0, 1.0, 2.0), "MR", _affine())}, {})
    placed = at_spacing(visit, spacing_mm=None, max_anisotropy=limit)
    assert placed.first.spacing_mm == expected
    assert all(
        new <= old for new, old in zip(placed.first.voxels.shape, _blocks().shape, strict=True)
    )
    assert (placed is visit) == (expected == (3.0, 1.0, 2.0))
