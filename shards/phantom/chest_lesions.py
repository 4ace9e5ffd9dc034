"""Lesions of chest and abdomen, each beside the harmless structure cut from the same budget."""

from itertools import pairwise

import numpy as np

from shards.phantom.chest import Chest, aorta_path, heart_centre
from shards.phantom.disease import LESION_LABELS, Lesions
from shards.phantom.space import FAR_MM, Array, Point, Tube, field, region, soft, to_point, tubes

CALCIUM_HU = 800.0


def add_lesions(chest: Chest, rng: np.random.Generator, *, lesions: Lesions) -> None:
    """Draw every process of the trunk on the canvas and into its mask."""
    _branching_vessels(chest, rng)
    _fatty_liver(chest, rng, lesions)
    _lung_texture(chest, rng, lesions)
    _dense_lung(chest, rng, lesions)
    _nodules(chest, rng, lesions)
    _cardiac_calcium(chest, rng, lesions)
    _abdominal_calcium(chest, rng, lesions)


def _add(
    chest: Chest,
    score: Array,
    *,
    inside: Array,
    volume_ml: float,
    value: float | Array,
    label: str | None,
) -> None:
    """Cut the region of highest score, paint it, and mark it when it is a lesion."""
    canvas = chest.canvas
    alpha = region(
        score,
        inside=inside,
        volume_ml=volume_ml,
        voxel_ml=canvas.grid.voxel_ml,
        edge=canvas.edge_mm,
    )
    canvas.paint(alpha, value)
    if label is not None:
        canvas.mark(alpha, LESION_LABELS[label])


def _place(chest: Chest, rng: np.random.Generator, inside: Array) -> Point:
    """A random voxel of those ``inside`` (bool), in body coordinates."""
    places = np.flatnonzero(inside)
    place = places[int(rng.random() * places.size)] if places.size else 0
    return to_point(np.array([axis.flat[place] for axis in chest.frame[::-1]]))


def _heading(rng: np.random.Generator) -> Array:
    """A random direction, (3,) of length 1."""
    heading = rng.standard_normal(3)
    return heading / np.sqrt((heading**2).sum())


def _branching_vessels(chest: Chest, rng: np.random.Generator) -> None:
    """Vessels from each hilum into the lung, thinner with every branch."""
    z = heart_centre(chest.body)[2] + 48
    segments = []
    for side in (-1, 1):
        for _ in range(9):
            start = np.array([side * 40.0, 14.0, z])
            heading = 1.5 * _heading(rng) * (0.5, 0.9, 1.0) + (side * 0.5, 0, -0.1)
            for radius in (4.5, 3.4, 2.6):
                heading = heading / np.sqrt((heading**2).sum()) + 0.6 * _heading(rng)
                stop = start + heading * rng.uniform(20, 32)
                segments.append(Tube(to_point(start), to_point(stop), (radius, radius - 0.7)))
                start = stop
    distance = tubes(chest.frame, chest.canvas.grid, chest.pose, segments)
    alpha = soft(distance, chest.canvas.edge_mm) * chest.lung
    chest.canvas.paint(alpha, 40 + 120 * chest.body.arterial)


def _fatty_liver(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Fat lowers the liver and not the spleen; contrast agent raises both alike."""
    patches = field(chest.canvas.grid, rng, wavelength_mm=45.0)
    share = lesions.liver_fat_share * np.clip(1 + 0.25 * patches, 0, 1.5)
    chest.canvas.voxels += chest.liver * (-60.0 * share)
    if lesions.liver_fat_share >= 0.4:
        chest.canvas.mark(chest.liver, LESION_LABELS["diabetes"])


def _lung_texture(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Emphysema is fine dark holes under a broad bright veil; its look-alike swaps the two.

    Both have the same share of dark and of bright lung and the same power at each scale; only
    which of the two is fine differs.
    """
    grid, lung = chest.canvas.grid, chest.lung
    volume = float(lung.sum()) * grid.voxel_ml
    depth = rng.uniform(120, 180)
    rise = float(np.clip(rng.standard_normal(), -2, 2)) * 25
    change = rise * np.clip((chest.frame.z - 60) / 80, -1, 1)
    for share, sign in ((lesions.emphysema_share, 1), (lesions.benign_hole_share, -1)):
        fine, broad = (
            region(
                field(grid, rng, wavelength_mm=wavelength),
                inside=lung,
                volume_ml=share * volume,
                voxel_ml=grid.voxel_ml,
                edge=0.35,
            )
            for wavelength in (25.0, 90.0)
        )
        change = change + sign * depth * (broad - fine)
        if sign > 0:
            chest.canvas.mark(fine, LESION_LABELS["copd"])
    chest.canvas.voxels += lung * change


def _dense_lung(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Infection: a ragged patch inside one lung. Look-alike: a smooth layer along its border."""
    x, y, z = chest.frame[::-1]
    density = rng.uniform(-120, 20)
    rough = field(chest.canvas.grid, rng, wavelength_mm=28.0)
    centre = _place(chest, rng, chest.lung_mm < -14)
    away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    lean = rng.standard_normal(3) * (0.15, 0.2, 0.12)
    layer = chest.lung_mm + lean[0] * x + lean[1] * y + lean[2] * z
    layer = np.where(x * (1 if centre[0] > 0 else -1) > 0, layer, -FAR_MM)
    for score, volume_ml, label in (
        (layer, lesions.benign_lung_ml, None),
        (12 * rough - away, lesions.infection_volume_ml, "infection"),
    ):
        _add(chest, score, inside=chest.lung, volume_ml=volume_ml, value=density, label=label)


def _nodules(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Cancer: round nodules. Look-alike: the same volume of wide vessels."""
    grid, deep = chest.canvas.grid, chest.lung_mm < -9
    rough = field(grid, rng, wavelength_mm=16.0)
    value = 35 + 60 * chest.body.arterial * float(rng.random())
    balls, pipes = [], []
    for _ in range(lesions.nodule_count):
        place, radius = _place(chest, rng, deep), float(rng.uniform(8, 12))
        balls.append(Tube(place, place, (radius, radius)))
    for _ in range(int(rng.integers(5, 9))):
        middle, half = np.array(_place(chest, rng, deep)), _heading(rng) * rng.uniform(16, 26)
        radius = float(rng.uniform(3.0, 4.5))
        pipes.append(Tube(to_point(middle - half), to_point(middle + half), (radius, radius)))
    for shapes, volume_ml, label in (
        (pipes, lesions.benign_vessel_ml, None),
        (balls, lesions.nodule_volume_ml, "cancer"),
    ):
        score = 0.8 * rough - tubes(chest.frame, grid, chest.pose, shapes)
        _add(chest, score, inside=chest.lung, volume_ml=volume_ml, value=value, label=label)


def _cardiac_calcium(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Calcium on the coronaries and the arch; look-alike: in lymph nodes and lung scars."""
    value = CALCIUM_HU * rng.uniform(0.7, 1.1)
    count = int(rng.integers(9, 15))
    surface = np.abs(chest.heart_mm) < 5
    heart = [_place(chest, rng, surface) for _ in range(count - count // 3)]
    arch = [_on_wall(rng, aorta_path(chest.body)[:5]) for _ in range(count // 3)]
    z = heart_centre(chest.body)[2] + 55
    nodes = [to_point(rng.normal((0, 12, z), (30, 10, 22))) for _ in range(count // 2)]
    scars = [_place(chest, rng, chest.lung_mm < 0) for _ in range(count - count // 2)]
    _calcify(chest, nodes + scars, volume_ml=lesions.benign_thoracic_ml, value=value)
    volume_ml = lesions.cardiac_calcium_ml
    _calcify(chest, heart + arch, volume_ml=volume_ml, value=value, label="cardiovascular")


def _abdominal_calcium(chest: Chest, rng: np.random.Generator, lesions: Lesions) -> None:
    """Calcium on the wall of the abdominal aorta; look-alike: oral contrast in the bowel."""
    value = CALCIUM_HU * rng.uniform(0.6, 1.0)
    count, top = int(rng.integers(7, 12)), chest.body.diaphragm
    wall = [_on_wall(rng, aorta_path(chest.body)[4:]) for _ in range(count)]
    bowel = [to_point(rng.normal((0, -20, top - 125), (40, 22, 20))) for _ in range(count)]
    _calcify(chest, bowel, volume_ml=lesions.benign_abdominal_ml, value=value)
    _calcify(chest, wall, volume_ml=lesions.abdominal_calcium_ml, value=value, label="diabetes")


def _calcify(
    chest: Chest, spots: list[Point], *, volume_ml: float, value: float, label: str | None = None
) -> None:
    """Deposit ``volume_ml`` of calcium around the given spots."""
    balls = [Tube(spot, spot, (5.0, 5.0)) for spot in spots]
    score = -tubes(chest.frame, chest.canvas.grid, chest.pose, balls)
    inside = soft(chest.cavity_mm, chest.canvas.edge_mm)
    _add(chest, score, inside=inside, volume_ml=volume_ml, value=value, label=label)


def _on_wall(rng: np.random.Generator, path: list[Point]) -> Point:
    """A spot on the wall of the aorta, 11 mm from its centre line."""
    legs = list(pairwise(path))
    start, stop = legs[int(rng.integers(len(legs)))]
    turn, share = rng.uniform(0, 2 * np.pi), rng.random()
    centre = np.add(start, share * np.subtract(stop, start))
    return to_point(centre + 11 * np.array([np.cos(turn), np.sin(turn), 0.0]))
