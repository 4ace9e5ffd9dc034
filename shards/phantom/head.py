"""The head: skull, brain, ventricles; strokes, atrophy, and what looks like them.

One drawing serves MR and CT: only the grey value of each tissue differs.
"""

from typing import NamedTuple

import numpy as np

from shards.phantom.disease import LESION_LABELS, Lesions
from shards.phantom.space import (
    Array,
    Canvas,
    Frame,
    Grid,
    Point,
    Pose,
    Tube,
    body_frame,
    draw_pose,
    ellipsoid,
    field,
    region,
    soft,
    tubes,
)

TISSUES: dict[str, dict[str, float]] = {
    # A fluid-suppressed MR, 1 = fat: fluid and bone dark, lesions bright.
    "MR": {
        "air": 0.0,
        "skin": 0.8,
        "muscle": 0.42,
        "bone": 0.07,
        "marrow": 0.45,
        "fluid": 0.14,
        "grey": 0.62,
        "white": 0.48,
        "eye": 0.16,
        "lesion": 0.95,
    },
    # Hounsfield units; the lesion is fresh blood.
    "CT": {
        "air": -1000.0,
        "skin": -70.0,
        "muscle": 55.0,
        "bone": 950.0,
        "marrow": 450.0,
        "fluid": 4.0,
        "grey": 46.0,
        "white": 30.0,
        "eye": 15.0,
        "lesion": 95.0,
    },
}


class Head(NamedTuple):
    """Measures of one head, mm."""

    brain: Point
    """Half axes (x, y, z)."""
    skull_mm: float
    scalp_mm: float
    ventricle_mm: float
    """Radius of the frontal horns; varies a lot between healthy people."""
    sulcus: float
    asymmetry_mm: float
    neck_mm: float


def draw_head(rng: np.random.Generator, *, age: int) -> Head:
    def vary() -> float:
        return float(np.clip(rng.standard_normal(), -2, 2))

    return Head(
        brain=(61 + 3 * vary(), 76 + 4 * vary(), 55 + 3 * vary()),
        skull_mm=6.5 + 1.2 * vary(),
        scalp_mm=5.5 + 1.2 * vary(),
        ventricle_mm=7.0 + 1.1 * vary() + 0.02 * (age - 62),
        sulcus=0.30 + 0.06 * vary() + 0.001 * (age - 62),
        asymmetry_mm=1.5 * vary(),
        neck_mm=50 + 4 * vary(),
    )


def render_head(
    grid: Grid, rng: np.random.Generator, *, modality: str, age: int, lesions: Lesions
) -> Canvas:
    """Draw one head without noise.

    Returns:
        Grey values (MR: 0 to about 1, CT: HU), and the mask of stroke and atrophy.
    """
    tissue = TISSUES[modality]
    head = draw_head(rng, age=age)
    pose = draw_pose(
        rng, scale=float(rng.uniform(0.93, 1.05)), turn_deg=6.0, shift_mm=4.0, warp_mm=2.5
    )
    frame = body_frame(grid, pose, rng)
    canvas = Canvas(grid, background=tissue["air"])
    brain_mm = _paint_skull(canvas, frame, head, tissue)
    brain = _paint_brain(canvas, frame, head, tissue, brain_mm, rng, lesions)
    _paint_ventricles(canvas, frame, pose, head, tissue, rng, lesions)
    _paint_hindbrain(canvas, frame, tissue)
    _paint_bright_lesions(canvas, frame, tissue["lesion"], brain, brain_mm, rng, lesions)
    return canvas


def _paint_skull(canvas: Canvas, frame: Frame, head: Head, tissue: dict[str, float]) -> Array:
    """Scalp, face, bone and the fluid under it; returns the signed distance to the brain."""
    a, b, _ = head.brain
    brain_mm = ellipsoid(frame, (0, 0, 12), head.brain)
    shell = head.skull_mm + head.scalp_mm + 2.5
    face = ellipsoid(frame, (0, -22, -52), (head.neck_mm, 62, 52))
    neck = ellipsoid(frame, (0, 18, -80), (head.neck_mm, 52, 75))
    canvas.fill(np.minimum(brain_mm - shell, np.minimum(face, neck)), tissue["skin"])
    canvas.fill(np.minimum(face, neck) + 5, tissue["muscle"])
    for side in (-1, 1):
        canvas.fill(ellipsoid(frame, (side * (a + shell + 1), 8, -22), (5, 14, 20)), tissue["skin"])
    bone = brain_mm - head.skull_mm - 2.5
    base = ellipsoid(frame, (0, -20, -42), (40, 48, 16))
    canvas.fill(np.minimum(bone, base), tissue["bone"])
    diploe = np.abs(brain_mm - 2.5 - head.skull_mm / 2) - head.skull_mm * 0.2
    canvas.fill(np.maximum(diploe, -frame.z), tissue["marrow"])
    for side in (-1, 1):
        canvas.fill(ellipsoid(frame, (side * 30, 1 - b, -30), (13, 13, 12)), tissue["eye"])
        canvas.fill(ellipsoid(frame, (side * 22, -58, -58), (12, 15, 16)), tissue["air"])
        canvas.fill(ellipsoid(frame, (side * 52, 16, -44), (9, 12, 12)), tissue["air"])
    canvas.fill(ellipsoid(frame, (0, -52, -62), (8, 26, 30)), tissue["air"])
    canvas.fill(brain_mm - 2.5, tissue["fluid"])
    return brain_mm


def _paint_brain(
    canvas: Canvas,
    frame: Frame,
    head: Head,
    tissue: dict[str, float],
    brain_mm: Array,
    rng: np.random.Generator,
    lesions: Lesions,
) -> Array:
    """Cortex, white matter, sulci; returns the share of each voxel that is brain tissue.

    Spare fluid fills the sulci of the lower and rear brain with atrophy; without, a part of it
    lies as an even rim over the frontal lobes.
    """
    folds = field(canvas.grid, rng, wavelength_mm=26.0)
    rear = np.clip((frame.y - 0.6 * frame.z) / 60, -1, 1)
    spare = rng.uniform(0.6, 1.2)
    rim = 1.5 * spare * (1 - lesions.atrophy) * np.clip(0.2 - rear, 0, 1)
    deep = brain_mm + rim
    gap = np.abs(frame.x - head.asymmetry_mm * np.clip(frame.z / 60, -1, 1)) - 1.6
    falx = np.maximum(gap, -np.maximum(frame.z - 30, -brain_mm - 24))
    fissure_mm = np.maximum(np.abs(frame.z + 8 + 0.25 * frame.y) - 2.0, 44 - np.abs(frame.x))
    cortex = soft(deep, canvas.edge_mm)
    canvas.paint(cortex, tissue["grey"])
    canvas.fill(deep + 8 + 3.5 * folds, tissue["white"])
    width = head.sulcus * (1 + spare * (1.5 * lesions.atrophy * np.clip(rear + 0.5, 0, 1)))
    depth = np.clip((deep + 17) / 5, 0, 1) * cortex
    sulci = np.clip((width - np.abs(folds)) / 0.35 + 0.5, 0, 1) * depth
    canvas.paint(sulci * 0.9, tissue["fluid"])
    canvas.mark(sulci * lesions.atrophy, LESION_LABELS["neurodegenerative"])
    for distance in (falx, fissure_mm):
        canvas.paint(soft(distance, canvas.edge_mm) * cortex, tissue["fluid"])
    return cortex * (1 - sulci)


def _paint_ventricles(
    canvas: Canvas,
    frame: Frame,
    pose: Pose,
    head: Head,
    tissue: dict[str, float],
    rng: np.random.Generator,
    lesions: Lesions,
) -> None:
    """Lateral and third ventricles; atrophy widens temporal horns and atria, not the front."""
    spare = rng.uniform(0.6, 1.2)
    front = head.ventricle_mm + 1.5 * spare * (1 - lesions.atrophy)
    rear = head.ventricle_mm + 5.0 * spare * lesions.atrophy
    horn = 2.2 + 8 * spare * lesions.atrophy
    lateral, temporal = [], []
    for side in (-1, 1):
        shift = head.asymmetry_mm
        lateral += [
            Tube((side * 16 + shift, -34, 10), (side * 9 + shift, -14, 20), (front * 0.8, front)),
            Tube((side * 9 + shift, -14, 20), (side * 13 + shift, 18, 22), (front, rear)),
            Tube((side * 13 + shift, 18, 22), (side * 24 + shift, 34, 8), (rear, rear)),
        ]
        temporal += [
            Tube((side * 24 + shift, 34, 8), (side * 31, 14, -12), (horn, horn)),
            Tube((side * 31, 14, -12), (side * 30, -12, -18), (horn, horn * 0.8)),
        ]
    # Deep grey first: the ventricles lie against it.
    for side in (-1, 1):
        canvas.fill(ellipsoid(frame, (side * 13, 6, 6), (9, 15, 10)), tissue["grey"])
        canvas.fill(ellipsoid(frame, (side * 24, -10, 5), (7, 17, 10)), tissue["grey"])
    canvas.fill(tubes(frame, canvas.grid, pose, lateral), tissue["fluid"])
    horns = canvas.fill(tubes(frame, canvas.grid, pose, temporal), tissue["fluid"])
    canvas.mark(horns * (lesions.atrophy >= 0.5), LESION_LABELS["neurodegenerative"])
    third = ellipsoid(frame, (head.asymmetry_mm, 4, 2), (1.5 + 0.3 * front, 14, 11))
    canvas.fill(third, tissue["fluid"])


def _paint_hindbrain(canvas: Canvas, frame: Frame, tissue: dict[str, float]) -> None:
    bed = ellipsoid(frame, (0, 44, -36), (50, 31, 27))
    canvas.fill(bed, tissue["fluid"])
    leaves = 2.5 * np.abs(np.mod(frame.z / 9 + frame.y / 40, 2) - 1)
    canvas.fill(bed + 4, tissue["grey"])
    canvas.fill(bed + 9 + leaves, tissue["white"])
    canvas.fill(ellipsoid(frame, (0, 18, -40), (12, 12, 34)), tissue["white"])


def _paint_bright_lesions(
    canvas: Canvas,
    frame: Frame,
    value: float,
    brain: Array,
    brain_mm: Array,
    rng: np.random.Generator,
    lesions: Lesions,
) -> None:
    """A stroke is one large patch on one side that reaches the cortex; its look-alike is the same
    volume in many small spots all over the brain."""
    rough = field(canvas.grid, rng, wavelength_mm=18.0)
    brightness = rng.uniform(0.75, 1.0)
    centre = _spot(rng, reach=(0.62, 0.85))
    big = -np.sqrt(_square_distance(frame, centre)) + 3.0 * rough
    spots = np.full(canvas.grid.shape, -1e3)
    for _ in range(int(rng.integers(7, 12))):
        spot = _spot(rng, reach=(0.25, 0.9))
        size = rng.uniform(0.0, 4.0)
        spots = np.maximum(spots, size - np.sqrt(_square_distance(frame, spot)))
    spots = spots + 1.0 * rough
    inside = brain * soft(brain_mm, canvas.edge_mm)
    for score, volume_ml, label in (
        (spots, lesions.benign_brain_ml, 0),
        (big, lesions.stroke_volume_ml, LESION_LABELS["stroke"]),
    ):
        alpha = region(
            score,
            inside=inside,
            volume_ml=volume_ml,
            voxel_ml=canvas.grid.voxel_ml,
            edge=canvas.edge_mm,
        )
        canvas.paint(alpha * brightness, value)
        if label:
            canvas.mark(alpha, label)


def _spot(rng: np.random.Generator, *, reach: tuple[float, float]) -> Point:
    """A place in the upper part of the brain; ``reach`` is 0 at its middle and 1 on its surface."""
    direction = rng.standard_normal(3)
    direction[2] = np.abs(direction[2]) * 0.8 - 0.15
    x, y, z = direction / np.sqrt((direction**2).sum()) * rng.uniform(*reach)
    return float(61 * x), float(76 * y), float(12 + 55 * z)


def _square_distance(frame: Frame, point: Point) -> Array:
    return (frame.x - point[0]) ** 2 + (frame.y - point[1]) ** 2 + (frame.z - point[2]) ** 2
