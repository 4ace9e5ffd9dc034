"""What a scanner does to a body: its grid, point spread, noise, bias, and stored integers."""

from typing import NamedTuple

import numpy as np

from shards.phantom.space import Array, Grid, field


class Scanner(NamedTuple):
    """One machine of one site."""

    name: str
    modality: str
    manufacturer: str
    spacing_mm: tuple[float, float, float]
    """(d, h, w)."""
    blur: float
    """Share of a voxel's signal that leaks into each neighbour, per axis."""
    noise: float
    """Standard deviation: HU for CT, share of the brightest tissue for MR."""
    gain: float
    offset: float
    """CT: HU of miscalibration. MR: added before the gain."""
    orientation: str
    """Order in which a NIfTI file of this scanner stores the axes."""
    rescale_intercept: int


SITES = ("north", "harbour", "valley", "lake")

CHEST_SCANNERS = (
    Scanner("north-ct1", "CT", "Aurelia", (5.0, 4.0, 4.0), 0.04, 22, 1.0, 0, "LPS", -1024),
    Scanner("harbour-ct1", "CT", "Borealis", (6.0, 3.5, 3.5), 0.10, 14, 1.0, 6, "RAS", -1024),
    Scanner("valley-ct1", "CT", "Cumulus", (7.0, 4.5, 4.5), 0.02, 30, 1.0, -6, "LAS", 0),
    Scanner("lake-ct1", "CT", "Aurelia", (5.0, 5.0, 5.0), 0.07, 18, 1.0, 3, "LPS", -1000),
)
HEAD_CT_SCANNERS = (
    Scanner("north-ct1", "CT", "Aurelia", (5.0, 3.0, 3.0), 0.04, 7, 1.0, 0, "LPS", -1024),
    Scanner("harbour-ct1", "CT", "Borealis", (4.0, 3.5, 3.5), 0.10, 5, 1.0, 2, "RAS", -1024),
    Scanner("valley-ct1", "CT", "Cumulus", (5.0, 4.0, 4.0), 0.02, 9, 1.0, -2, "LAS", 0),
    Scanner("lake-ct1", "CT", "Aurelia", (4.0, 4.0, 4.0), 0.07, 6, 1.0, 1, "LPS", -1000),
)
HEAD_MR_SCANNERS = (
    Scanner("north-mr1", "MR", "Dipole", (4.0, 3.5, 3.5), 0.04, 0.03, 900, 0.0, "RAS", 0),
    Scanner("harbour-mr1", "MR", "Echo", (5.0, 3.0, 3.0), 0.08, 0.045, 380, 0.03, "LPS", 0),
    Scanner("valley-mr1", "MR", "Dipole", (3.5, 3.5, 5.0), 0.03, 0.06, 1700, 0.0, "ASL", 0),
    Scanner("lake-mr1", "MR", "Echo", (3.5, 4.5, 3.5), 0.06, 0.04, 640, 0.02, "RSA", 0),
)
"""Machines in the order of :data:`SITES`."""

FIELD_OF_VIEW_MM = {"chest": (360.0, 280.0, 320.0), "head": (160.0, 200.0, 160.0)}


def draw_grid(scanner: Scanner, rng: np.random.Generator, *, body_part: str) -> Grid:
    """A field of view within 4% of the usual one, in whole voxels of the scanner."""
    sizes = np.array(FIELD_OF_VIEW_MM[body_part]) * rng.uniform(0.97, 1.04, 3)
    d, h, w = (int(v) for v in np.rint(sizes / scanner.spacing_mm))
    return Grid((d, h, w), scanner.spacing_mm)


def acquire(voxels: Array, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> Array:
    """The scanner's view of a body, as int16: HU for CT, arbitrary units for MR."""
    image = _blur(voxels, scanner.blur)
    if scanner.modality == "CT":
        return _acquire_ct(image, grid, scanner, rng)
    return _acquire_mr(image, grid, scanner, rng)


def _acquire_ct(image: Array, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> Array:
    dose = float(rng.uniform(0.7, 1.5))
    noise = _blur(rng.standard_normal(grid.shape), scanner.blur)
    cupping = scanner.noise * 0.4 * field(grid, rng, wavelength_mm=160.0)
    image = image + scanner.offset + np.where(image > -950, cupping, 0)
    return _integers(image + dose * scanner.noise * noise, -1024, 3071)


def _acquire_mr(image: Array, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> Array:
    """Receiver bias, contrast and Rician noise; no two scans share a scale."""
    gain = scanner.gain * float(rng.uniform(0.6, 1.6))
    bias = 1 + 0.22 * np.clip(field(grid, rng, wavelength_mm=150.0), -2, 2)
    image = np.clip(image + scanner.offset, 0, None)
    image = image + float(rng.uniform(-0.25, 0.25)) * image * (1 - image)
    level = scanner.noise * float(rng.uniform(0.7, 1.5))
    real, imaginary = (level * rng.standard_normal(grid.shape) for _ in range(2))
    return _integers(gain * np.sqrt((image * bias + real) ** 2 + imaginary**2), 0, 32767)


def _integers(image: Array, low: int, high: int) -> Array:
    return np.clip(np.rint(image), low, high).astype(np.int16)


def _blur(image: Array, share: float) -> Array:
    """Three-tap smoothing along each axis; the border voxels keep what would leak outside."""
    for axis in range(3):
        before = np.concatenate(
            [image.take([0], axis), image.take(range(image.shape[axis] - 1), axis)], axis
        )
        after = np.concatenate(
            [image.take(range(1, image.shape[axis]), axis), image.take([-1], axis)], axis
        )
        image = image + share * (before + after - 2 * image)
    return image
