"""Slices that leave no even grid, against a field that is linear in the patient's space.

Linear interpolation must give such a field back exactly, wherever the slices were measured.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dicom.geometry import Plane, plan_grid, regrid
from shards.policy import Policy
from shards.scan import Scan, ScanError, read_scan

Write = Callable[..., None]
ROWS, COLUMNS = 12, 9
ROW_MM, COLUMN_MM = 2.0, 1.5  # of the fixture
LOWEST = -1000


def field(points: np.ndarray) -> np.ndarray:
    """Hounsfield units at LPS millimetres (..., 3); steep enough to see a hundredth of a pixel."""
    return np.asarray(points @ np.array([20.0, -30.0, 12.0]) + 100)


def grid_points(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(D, H, W, 3) LPS millimetres of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def write_field(
    folder: Path,
    slice_file: Write,
    positions: Sequence[Sequence[float]],
    *,
    cosines: Sequence[float] = (1, 0, 0, 0, 1, 0),
    **changes: Any,
) -> None:
    """Each slice samples the field where it lies."""
    along_columns, along_rows = np.asarray(cosines, float).reshape(2, 3)
    rows = np.arange(ROWS)[:, None, None] * along_rows * ROW_MM
    columns = np.arange(COLUMNS)[None, :, None] * along_columns * COLUMN_MM
    for number, position in enumerate(positions):
        pixels = np.rint(field(np.asarray(position) + rows + columns) + 1024)
        tags = {"ImageOrientationPatient": list(map(float, cosines)), **changes}
        name = f"{(number * 7) % len(positions):03d}-{number}"
        slice_file(folder / name, pixels, position=tuple(position), changes=tags)


def errors(scan: Scan) -> np.ndarray:
    """Difference to the field at each voxel, NaN where the scan is filled up."""
    assert scan.affine is not None
    truth = field(grid_points(scan.affine, scan.voxels.shape))
    filled = scan.voxels == scan.voxels.min()
    return np.where(filled, np.nan, scan.voxels - truth)


@pytest.mark.parametrize("degrees", [-24.0, 5.0, 18.0])
def test_gantry_tilt_is_sheared_back(tmp_path: Path, slice_file: Write, degrees: float) -> None:
    """Rows run down a plane that is tilted about the left-right axis; the table moves along z."""
    angle = np.radians(degrees)
    cosines = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    positions = [(-10.0, -20.0, 30.0 + 3.0 * number) for number in range(7)]
    write_field(tmp_path / "a", slice_file, positions, cosines=cosines)
    scan = read_scan(tmp_path / "a")
    assert scan.voxels.dtype == np.int16
    assert scan.voxels.shape == (7, ROWS, COLUMNS)
    np.testing.assert_allclose(scan.spacing_mm, (3.0 * np.cos(angle), 2.0, 1.5), rtol=1e-9)
    assert scan.metadata["geometry"] == "tilt corrected"
    found = errors(scan)
    assert np.nanmax(np.abs(found)) <= 1.0  # two roundings to whole units
    # The middle slice stays whole; the ends lose what the shear moves out of the field of view.
    lost_rows = 9.0 * abs(np.sin(angle)) / ROW_MM
    assert not np.isnan(found[3]).sum() > 1
    assert np.isnan(found).sum() <= 2 * (1 + 2 + 3) * (np.ceil(lost_rows) + 1) * COLUMNS
    assert np.isnan(found[0]).any(axis=1).sum() == np.ceil(round(lost_rows, 6))


def test_tilt_to_the_side_of_uneven_slices(tmp_path: Path, slice_file: Write) -> None:
    heights = [0.0, 4.0, 8.0, 10.5, 14.5, 18.5]
    write_field(tmp_path / "a", slice_file, [(0.2 * z, 0.0, z) for z in heights])
    scan = read_scan(tmp_path / "a")
    assert scan.metadata["geometry"] == "tilt corrected, uneven slices resampled"
    assert scan.spacing_mm == pytest.approx((4.0, 2.0, 1.5))
    assert np.nanmax(np.abs(errors(scan))) <= 1.5


def test_tilt_can_be_refused(tmp_path: Path, slice_file: Write) -> None:
    write_field(tmp_path / "a", slice_file, [(0, 0.5 * n, 4.0 * n) for n in range(5)])
    with pytest.raises(ScanError, match=r"gantry tilt of 7\.1 degrees"):
        read_scan(tmp_path / "a", policy=Policy(min_slices=1, tilt="reject"))


def test_a_drift_below_any_tilt_stays_in_the_affine(tmp_path: Path, slice_file: Write) -> None:
    write_field(tmp_path / "a", slice_file, [(0.01 * n, 0, 4.0 * n) for n in range(5)])
    scan = read_scan(tmp_path / "a")
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine[:3, 0], [0.01, 0, 4.0], atol=1e-12)
    assert "geometry" not in scan.metadata


@pytest.mark.parametrize(
    "positions",
    [
        [(30.0 * (n == 2), 0, 4.0 * n) for n in range(5)],
        [(0, 4.0 * n, 4.0 * n) for n in range(5)],
        [(0, 0.2 * n * n, 4.0 * n) for n in range(8)],
    ],
)
def test_slices_out_of_line(tmp_path: Path, slice_file: Write, positions: list[Any]) -> None:
    write_field(tmp_path / "a", slice_file, positions)
    with pytest.raises(ScanError, match="shifted against each other"):
        read_scan(tmp_path / "a")


def test_missing_slices_are_filled_or_refused(tmp_path: Path, slice_file: Write) -> None:
    write_field(tmp_path / "a", slice_file, [(0, 0, 4.0 * n) for n in (0, 1, 2, 5, 6)])
    scan = read_scan(tmp_path / "a", policy=Policy(min_slices=1, missing_slices="resample"))
    assert scan.voxels.shape == (7, ROWS, COLUMNS)
    assert scan.spacing_mm == (4.0, 2.0, 1.5)
    assert scan.metadata["geometry"] == "missing slices filled"
    assert scan.affine is not None
    truth = field(grid_points(scan.affine, scan.voxels.shape))
    np.testing.assert_array_equal(scan.voxels, np.rint(truth))
    with pytest.raises(ScanError, match=r"a gap of 12\.00 mm where 4\.00 is usual"):
        read_scan(tmp_path / "a")


def test_a_gap_too_wide_to_fill(tmp_path: Path, slice_file: Write) -> None:
    write_field(tmp_path / "a", slice_file, [(0, 0, 4.0 * n) for n in (0, 1, 2, 8, 9)])
    with pytest.raises(ScanError, match=r"a gap of 24\.00 mm"):
        read_scan(tmp_path / "a", policy=Policy(min_slices=1, missing_slices="resample"))


def test_distances_of_no_proportion_ask_for_no_memory() -> None:
    """Two stacks far apart are not filled up between, however often that happens."""
    along = np.cumsum([0.0, 0.1, 0.1, 0.1, 1e6, 0.1, 1e6])
    plane = Plane(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1.0, 2.0)
    for policy in (Policy(), Policy(missing_slices="resample")):
        with pytest.raises(ScanError, match=r"a gap of 1000000\.00 mm where 0\.10 is usual"):
            plan_grid(np.outer(along, [0, 0, 1.0]), plane=plane, thickness_mm=None, policy=policy)


def test_uneven_slices_are_resampled_or_refused(tmp_path: Path, slice_file: Write) -> None:
    """A head CT: 2.5 mm through the posterior fossa, 5 mm above."""
    heights = [0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0]
    write_field(tmp_path / "a", slice_file, [(0, 0, z) for z in heights])
    scan = read_scan(tmp_path / "a")
    assert scan.spacing_mm == pytest.approx((2.5, 2.0, 1.5))
    assert len(scan.voxels) == 11
    assert scan.metadata["geometry"] == "uneven slices resampled"
    assert scan.affine is not None
    truth = field(grid_points(scan.affine, scan.voxels.shape))
    assert np.abs(scan.voxels - truth).max() <= 1.0
    with pytest.raises(ScanError, match=r"uneven slices: 2\.50 to 5\.00 mm"):
        read_scan(tmp_path / "a", policy=Policy(min_slices=1, uneven_slices="reject"))


def test_distances_that_creep_away_from_the_grid() -> None:
    """Each gap is within tolerance of the usual one, but their sum is slices away."""
    along = np.concatenate([[0.0], np.cumsum([4.0] * 20 + [4.15] * 20)])
    plane = Plane(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1.0, 2.0)
    positions = np.outer(along, [0, 0, 1.0])
    grid = plan_grid(positions, plane=plane, thickness_mm=None, policy=Policy())
    assert grid.changes == ("uneven slices resampled",)
    with pytest.raises(ScanError, match="nearly the same position"):
        plan_grid(positions[[0, 1, 1, 2, 3]], plane=plane, thickness_mm=None, policy=Policy())


def test_rounded_positions_are_no_unevenness(tmp_path: Path, slice_file: Write) -> None:
    heights = [round(0.7003 * number, 2) for number in range(30)]
    write_field(tmp_path / "a", slice_file, [(0, 0, z) for z in heights])
    scan = read_scan(tmp_path / "a")
    assert "geometry" not in scan.metadata
    assert scan.spacing_mm[0] == pytest.approx(heights[-1] / 29)


def test_an_oblique_series_keeps_its_axes(tmp_path: Path, slice_file: Write) -> None:
    """Turned about two axes: the field is met wherever the affine says the voxels are."""
    a, b = np.radians(20), np.radians(-35)
    along_columns = np.array([np.cos(a), np.sin(a), 0])
    along_rows = np.array([-np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    normal = np.cross(along_columns, along_rows)
    write_field(
        tmp_path / "a",
        slice_file,
        [np.array([5.0, 6.0, 7.0]) + normal * 3.0 * number for number in range(6)],
        cosines=(*along_columns, *along_rows),
    )
    scan = read_scan(tmp_path / "a")
    assert scan.affine is not None
    truth = field(grid_points(scan.affine, scan.voxels.shape))
    assert np.abs(scan.voxels - truth).max() <= 0.501
    assert sorted(scan.spacing_mm) == pytest.approx([1.5, 2.0, 3.0])


def test_floats_are_not_rounded_and_the_open_side_takes_the_lowest() -> None:
    plane = Plane(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1.0, 2.0)
    positions = np.array([[0, 0, 0], [0, 0.25, 1.0], [0, 0.5, 2.0]])
    grid = plan_grid(positions, plane=plane, thickness_mm=None, policy=Policy())
    stack = np.tile(np.arange(4.0, dtype=np.float32)[:, None], (3, 1, 2)) + 5
    found = regrid(stack, grid=grid)
    np.testing.assert_allclose(found[0, :, 0], [5.25, 6.25, 7.25, 5.0])
    np.testing.assert_allclose(found[1, :, 0], [5, 6, 7, 8])
    np.testing.assert_allclose(found[2, :, 1], [5, 5.75, 6.75, 7.75])
    assert found.dtype == np.float32
