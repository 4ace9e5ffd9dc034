"""From slices wherever they lie to one even grid of perpendicular axes.

Slices that a tilted gantry has shifted are sheared back in their own plane; gaps and uneven
distances are interpolated between the two slices around. Each is done only where the policy allows.
"""

from typing import NamedTuple

import numpy as np

from shards.policy import Policy
from shards.scan import MAX_SHEAR, ScanError

GAP_TOLERANCE = 0.05  # of the slice distance
SAME_PLACE_MM = 0.01
DRIFT_TOLERANCE = 0.25  # of the slice distance: of a slice from its place on the even grid
RARE_SHARE = 0.1  # of the distances: wider ones up to this share are gaps, more are uneven spacing
MAX_FILLED = 3  # slices in one gap, of any kind: across more, anatomy would be invented
MAX_TILT = 0.7  # tangent of 35 degrees; gantries tilt by 30 at most
TILTED, FILLED, UNEVEN = "tilt corrected", "missing slices filled", "uneven slices resampled"


class Plane(NamedTuple):
    """What all slices share: unit vectors (LPS) along columns and rows, pixel distances in mm."""

    along_columns: np.ndarray
    along_rows: np.ndarray
    row_mm: float
    column_mm: float

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slices."""
        normal: np.ndarray = np.cross(self.along_columns, self.along_rows)
        return normal


class Grid(NamedTuple):
    """An even grid, and how the slices come to lie on it.

    Attributes:
        origin: Of the first pixel of the first slice, LPS mm.
        step: From one slice to the next, LPS mm.
        num_slices: Of the grid.
        heights: (N,) place of each measured slice, in slices of the grid.
        shifts: (N, 2) rows and columns by which each is moved within its plane, or None.
        changes: What is interpolated, of a fixed vocabulary.
    """

    origin: np.ndarray
    step: np.ndarray
    num_slices: int
    heights: np.ndarray
    shifts: np.ndarray | None
    changes: tuple[str, ...]

    def affine(self, plane: Plane) -> np.ndarray:
        """(4, 4), from indices (slice, row, column) to millimetres in RAS."""
        affine = np.eye(4)
        axes = self.step, plane.along_rows * plane.row_mm, plane.along_columns * plane.column_mm
        affine[:3, :3] = np.stack(axes, axis=1)
        affine[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def plan_grid(
    positions: np.ndarray, *, plane: Plane, thickness_mm: float | None, policy: Policy
) -> Grid:
    """The grid of slices at ``positions``, (N, 3) LPS mm in order along the normal.

    Raises:
        ScanError: They leave no grid, or the policy refuses what that takes.
    """
    normal = plane.normal
    if len(positions) == 1:
        if not thickness_mm or thickness_mm <= 0:
            raise ScanError("a single slice without thickness: its geometry is unknown")
        return Grid(positions[0], normal * thickness_mm, 1, np.zeros(1), None, ())
    along = positions @ normal
    heights, step_mm, changes = _spread(along, policy)
    drift = positions - positions[0] - np.outer(along - along[0], normal)
    slope = _slope(along, drift, plane)
    num_slices = int(np.floor(heights[-1] + 1e-6)) + 1
    if np.linalg.norm(slope) <= MAX_SHEAR:
        step = (normal + slope) * step_mm
        if not changes:  # no slice is interpolated: the ends fix the grid exactly
            step = (positions[-1] - positions[0]) / heights[-1]
        return Grid(positions[0], step, num_slices, heights, None, changes)
    if policy.tilt == "reject":
        degrees = np.degrees(np.arctan(np.linalg.norm(slope)))
        raise ScanError(f"gantry tilt of {degrees:.1f} degrees")
    middle = drift[len(drift) // 2]  # this slice stays where it is
    rows = (drift - middle) @ plane.along_rows / plane.row_mm
    columns = (drift - middle) @ plane.along_columns / plane.column_mm
    shifts = np.stack([rows, columns], axis=1)
    origin = positions[0] - drift[0] + middle
    return Grid(origin, normal * step_mm, num_slices, heights, shifts, (TILTED, *changes))


def _slope(along: np.ndarray, drift: np.ndarray, plane: Plane) -> np.ndarray:
    """In-plane millimetres for each millimetre along the normal, (3,); it must be steady."""
    centred = along - along.mean()
    slope: np.ndarray = centred @ (drift - drift.mean(axis=0)) / (centred @ centred)
    rest = drift - drift.mean(axis=0) - np.outer(centred, slope)
    unsteady = np.linalg.norm(rest, axis=1).max() > max(plane.row_mm, plane.column_mm) / 2
    if unsteady or np.linalg.norm(slope) > MAX_TILT:
        raise ScanError("slices are shifted against each other")
    return slope


def _spread(along: np.ndarray, policy: Policy) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Places on the grid, its distance in mm, and what must be interpolated."""
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    tolerance = max(SAME_PLACE_MM, GAP_TOLERANCE * usual)
    if gaps.min() < tolerance:
        raise ScanError("two slices at nearly the same position")
    multiples = np.rint(gaps / usual)
    whole = bool((np.abs(gaps - multiples * usual) <= tolerance).all())
    places = np.concatenate([[0.0], np.cumsum(multiples)])
    step_mm = float((along[-1] - along[0]) / places[-1])
    whole &= bool(np.abs(along - along[0] - places * step_mm).max() <= DRIFT_TOLERANCE * usual)
    wide = gaps > 1.5 * usual
    missing = wide.any() and wide.sum() <= max(1, RARE_SHARE * len(gaps))
    too_wide = gaps.max() > (MAX_FILLED + 1.5) * usual
    if too_wide or (missing and policy.missing_slices == "reject"):
        raise ScanError(f"a missing slice: a gap of {gaps.max():.2f} mm where {usual:.2f} is usual")
    if whole and (missing or not wide.any()):
        return places, step_mm, (FILLED,) if missing else ()
    if policy.uneven_slices == "reject":
        raise ScanError(f"uneven slices: {gaps.min():.2f} to {gaps.max():.2f} mm apart")
    return (along - along[0]) / usual, usual, (FILLED, UNEVEN) if missing else (UNEVEN,)


def regrid(stack: np.ndarray, *, grid: Grid) -> np.ndarray:
    """Bring a stack (slices, rows, columns) onto its grid; integers stay integers.

    Linear, first within each slice, then between slices. Where a sheared slice leaves the field of
    view open, the lowest value of the stack fills it.
    """
    lowest = stack.min()
    outside = None if grid.shifts is None else _shear(stack, grid.shifts, lowest)
    if len(grid.heights) == grid.num_slices and (np.diff(grid.heights) == 1).all():
        return stack
    out = np.empty((grid.num_slices, *stack.shape[1:]), stack.dtype)
    for place in range(grid.num_slices):
        below, weight = _between(grid.heights, place)
        ends = slice(below, below + (2 if weight else 1))
        mixed = stack[ends][0] * (1 - weight) + stack[ends][-1] * weight
        out[place] = np.rint(mixed) if stack.dtype.kind in "iu" else mixed
        if outside is not None:
            out[place][outside[ends].any(axis=0)] = lowest
    return out


def _shear(stack: np.ndarray, shifts: np.ndarray, lowest: float) -> np.ndarray:
    """Move each slice in place; returns where its field of view does not reach."""
    outside = np.zeros(stack.shape, dtype=bool)
    for place, shift in enumerate(shifts):
        moved, outside[place] = _shifted(stack[place], shift)
        stack[place] = np.rint(moved) if stack.dtype.kind in "iu" else moved
    stack[outside] = lowest
    return outside


def _between(heights: np.ndarray, place: int) -> tuple[int, float]:
    """The slice below a place of the grid, and the weight of the one above it."""
    below = int(np.clip(np.searchsorted(heights, place, side="right") - 1, 0, len(heights) - 1))
    if below == len(heights) - 1:
        return below, 0.0
    weight = (place - heights[below]) / (heights[below + 1] - heights[below])
    return below, float(np.clip(weight, 0, 1))


def _shifted(image: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The content moved by ``shift`` (rows, columns), and where nothing has come to lie."""
    moved, outside = image.astype(np.float64), np.zeros(image.shape, dtype=bool)
    for axis, length in enumerate(image.shape):
        source = np.round(np.arange(length) - shift[axis], 6)
        below = np.floor(source).astype(int)
        shape = (-1, 1) if axis == 0 else (1, -1)
        weight = (source - below).reshape(shape)
        low = moved.take(below.clip(0, length - 1), axis=axis)
        high = moved.take((below + 1).clip(0, length - 1), axis=axis)
        moved = low * (1 - weight) + high * weight
        outside |= ((source < 0) | (source > length - 1)).reshape(shape)
    return moved, outside
