"""Coordinates of a body inside a scan's grid, and the shapes that are drawn in them.

All arrays are (D, H, W) in the LPS frame: z grows upwards, y towards the back, x towards the
subject's left. Everything is float64: a difference in the last bit between two machines is then
1e-12 of a grey value, and rounding to integers gives the same volume on both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Point = tuple[float, float, float]
"""(x, y, z) in mm of the body's own frame."""


def to_point(values: Array) -> Point:
    """Three numbers of an array as plain floats."""
    x, y, z = (float(value) for value in values)
    return x, y, z


@dataclass(frozen=True)
class Grid:
    """Where a scanner samples: voxels (D, H, W), their edges in mm, the scan's centre at 0."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        d, h, w = self.spacing_mm
        return d * h * w / 1000

    def axis(self, number: int) -> Array:
        """Centres of the voxels along one axis (0 is D), mm."""
        count = self.shape[number]
        return (np.arange(count) - (count - 1) / 2) * self.spacing_mm[number]


class Pose(NamedTuple):
    """How a subject lies in the scanner, and how large it is."""

    scale: float
    rotation: Array
    """(3, 3), acts on (x, y, z)."""
    shift_mm: Array
    """(3,), (x, y, z)."""
    warp_mm: float
    """Standard deviation of a smooth deformation."""


def draw_pose(
    rng: np.random.Generator,
    *,
    scale: float,
    turn_deg: float,
    shift_mm: float,
    warp_mm: float,
) -> Pose:
    """Draw a pose; ``turn_deg`` and ``shift_mm`` are standard deviations, cut at two of them."""
    turns = np.clip(rng.standard_normal(3), -2, 2) * np.radians(turn_deg)
    shift = np.clip(rng.standard_normal(3), -2, 2) * shift_mm
    rotation = np.eye(3)
    for axis, turn in enumerate(turns):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(turn)
        step[first, second], step[second, first] = -np.sin(turn), np.sin(turn)
        rotation = rotation @ step
    return Pose(scale=scale, rotation=rotation, shift_mm=shift, warp_mm=warp_mm)


class Frame(NamedTuple):
    """Body coordinates of every voxel, mm, each (D, H, W)."""

    z: Array
    y: Array
    x: Array

    def window(self, box: tuple[slice, slice, slice]) -> "Frame":
        return Frame(self.z[box], self.y[box], self.x[box])


def field(grid: Grid, rng: np.random.Generator, *, wavelength_mm: float | Point) -> Array:
    """A smooth Gaussian random field of mean 0 and variance 1 at every voxel.

    Args:
        wavelength_mm: Size of a light and a dark patch together; one number or (d, h, w).
    """
    lengths = np.broadcast_to(np.asarray(wavelength_mm, float), (3,))
    weights = []
    for number, length in enumerate(lengths):
        axis = grid.axis(number)
        step = length / 3
        nodes = np.arange(axis[0] - length, axis[-1] + length + step, step)
        bumps = np.exp(-0.5 * ((axis[:, None] - nodes[None]) / (length / 5)) ** 2)
        # Rows of unit length: then every voxel has variance 1, wherever the nodes lie.
        weights.append(bumps / np.sqrt((bumps**2).sum(axis=1, keepdims=True)))
    noise = rng.standard_normal(tuple(matrix.shape[1] for matrix in weights))
    for matrix in weights:
        noise = np.moveaxis(np.tensordot(noise, matrix, axes=(0, 1)), -1, 2)
    return np.ascontiguousarray(noise)


def body_frame(grid: Grid, pose: Pose, rng: np.random.Generator) -> Frame:
    """The body's coordinates at every voxel of ``grid`` for a subject in ``pose``."""
    z, y, x = np.meshgrid(*(grid.axis(number) for number in range(3)), indexing="ij", sparse=True)
    moved = (x - pose.shift_mm[0], y - pose.shift_mm[1], z - pose.shift_mm[2])
    turned = [
        sum(float(r) * part for r, part in zip(row, moved, strict=True)) for row in pose.rotation
    ]
    warps = [pose.warp_mm * field(grid, rng, wavelength_mm=110.0) for _ in range(3)]
    bx, by, bz = ((part + warp) / pose.scale for part, warp in zip(turned, warps, strict=True))
    return Frame(z=bz, y=by, x=bx)


def ellipsoid(frame: Frame, centre: Point, radii: Point) -> Array:
    """Approximate signed distance to an ellipsoid, mm; negative inside."""
    parts = [
        (axis - middle) / radius
        for axis, middle, radius in zip((frame.x, frame.y, frame.z), centre, radii, strict=True)
    ]
    level = np.sqrt(sum(part * part for part in parts)) + 1e-9
    slope = np.sqrt(sum((part / r) ** 2 for part, r in zip(parts, radii, strict=True))) + 1e-9
    return level * (level - 1) / slope


def capsule(frame: Frame, start: Point, stop: Point, radii: tuple[float, float]) -> Array:
    """Signed distance to a round tube between two points that tapers from one radius to another."""
    line = np.subtract(stop, start)
    from_start = (frame.x - start[0], frame.y - start[1], frame.z - start[2])
    along = sum(part * float(step) for part, step in zip(from_start, line, strict=True))
    share = np.clip(along / float(line @ line + 1e-9), 0, 1)
    squares = sum(
        (part - share * float(step)) ** 2 for part, step in zip(from_start, line, strict=True)
    )
    return np.sqrt(squares) - (radii[0] + share * (radii[1] - radii[0]))


class Tube(NamedTuple):
    """One segment of a vessel, or a ball when both ends are the same point."""

    start: Point
    stop: Point
    radii: tuple[float, float]


FAR_MM = 1000.0
"""Distance where no shape is near."""


def tubes(frame: Frame, grid: Grid, pose: Pose, segments: Sequence[Tube]) -> Array:
    """Signed distance to the union of many small shapes, exact to 25 mm, ``FAR_MM`` elsewhere."""
    distance = np.full(grid.shape, FAR_MM)
    for start, stop, radii in segments:
        box = _window(grid, pose, (start, stop), reach_mm=max(radii) + 25)
        if box is not None:
            near = capsule(frame.window(box), start, stop, radii)
            distance[box] = np.minimum(distance[box], near)
    return distance


def _window(
    grid: Grid, pose: Pose, points: Sequence[Point], *, reach_mm: float
) -> tuple[slice, slice, slice] | None:
    """Voxels that may lie within ``reach_mm`` of the points; None when the scan ends before."""
    places = (np.asarray(points) * pose.scale) @ pose.rotation + pose.shift_mm
    reach = reach_mm * pose.scale + 3 * pose.warp_mm
    box = []
    for number, coordinate in enumerate((2, 1, 0)):
        spacing, count = grid.spacing_mm[number], grid.shape[number]
        low = (places[:, coordinate].min() - reach) / spacing + (count - 1) / 2
        high = (places[:, coordinate].max() + reach) / spacing + (count - 1) / 2
        first, last = max(0, int(np.floor(low))), min(count, int(np.ceil(high)) + 1)
        if first >= last:
            return None
        box.append(slice(first, last))
    return box[0], box[1], box[2]


def soft(distance: Array, edge_mm: float) -> Array:
    """Share of a voxel inside a shape, 0 to 1, with an edge ``edge_mm`` wide."""
    return np.clip(0.5 - distance / edge_mm, 0, 1)


def region(score: Array, *, inside: Array, volume_ml: float, voxel_ml: float, edge: float) -> Array:
    """The part of an organ where ``score`` is highest, cut so that it has a given volume.

    A lesion and its harmless look-alike are cut to the same volume, so neither the mean nor the
    histogram of a scan tells them apart.

    Args:
        inside: Share of each voxel that belongs to the organ, 0 to 1.
        edge: Width of the soft border, in units of the score.
    """
    if volume_ml <= 0:
        return np.zeros_like(score)
    members = np.flatnonzero(inside > 0.05)
    if members.size == 0:
        return np.zeros_like(score)
    values = score.ravel()[members]
    order = np.argsort(-values, kind="stable")
    volumes = np.cumsum(inside.ravel()[members][order]) * voxel_ml
    cut = values[order[min(int(np.searchsorted(volumes, volume_ml)), members.size - 1)]]
    return np.clip((score - cut) / edge + 0.5, 0, 1) * inside


class Canvas:
    """A volume that tissues are painted on, one over the other, and the mask of its lesions."""

    def __init__(self, grid: Grid, *, background: float) -> None:
        self.grid = grid
        self.edge_mm = float(np.mean(grid.spacing_mm))
        self.voxels = np.full(grid.shape, background)
        self.mask = np.zeros(grid.shape, np.uint8)

    def paint(self, alpha: Array, value: float | Array) -> None:
        """Cover the share ``alpha`` (0 to 1) of each voxel with a tissue of this grey value."""
        self.voxels += alpha * (value - self.voxels)

    def fill(self, distance: Array, value: float | Array) -> Array:
        """Paint a shape given by its signed distance; returns the share it covers."""
        alpha = soft(distance, self.edge_mm)
        self.paint(alpha, value)
        return alpha

    def mark(self, alpha: Array, label: int) -> None:
        """Write a lesion into the mask where it covers half of a voxel or more."""
        self.mask[alpha >= 0.5] = label
