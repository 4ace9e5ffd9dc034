"""Chest and abdomen: wall, ribs, spine, organs. Lesions are added by chest_lesions.py."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from shards.phantom.disease import Lesions
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
    soft,
    to_point,
    tubes,
)

AIR_HU = -1000.0


class Body(NamedTuple):
    """Measures of one trunk: mm in the body's own frame, HU."""

    width: float
    depth: float
    fat_mm: float
    wall_mm: float
    diaphragm: float
    """Height of the dome; low after a deep breath."""
    lung_hu: float
    fat_hu: float
    muscle_hu: float
    bone_hu: float
    arterial: float
    """0 to 1: how much contrast agent is in heart, arteries and kidneys."""
    portal: float
    """0 to 1: how much has reached liver and spleen."""
    silhouette: float
    """Size of heart and the fat around it together."""
    heart_shift: float
    liver_hu: float


def draw_body(rng: np.random.Generator, *, bmi: float, age: int, male: bool) -> Body:
    def vary() -> float:
        return float(np.clip(rng.standard_normal(), -2, 2))

    weight = float(np.clip((bmi - 27) / 4.5, -2, 2.5))
    breath = vary()
    agent = rng.random(2) * (rng.random() < 0.7)
    return Body(
        width=128 + 4 * male + 5 * weight + 4 * vary(),
        depth=90 + 4 * weight + 4 * vary(),
        fat_mm=max(5.0, 13 + 4 * weight + 2.5 * vary()),
        wall_mm=15 + 1.5 * vary(),
        diaphragm=-8 - 9 * breath,
        lung_hu=-790 - 25 * breath + 25 * vary(),
        fat_hu=-100 + 6 * vary(),
        muscle_hu=50 + 6 * vary(),
        bone_hu=330 - 3 * (age - 62) + 60 * vary(),
        arterial=float(agent[0]),
        portal=float(agent[1]),
        silhouette=1.12 + 0.06 * vary() + 0.02 * weight,
        heart_shift=6 * vary(),
        liver_hu=58 + 10 * vary(),
    )


@dataclass(frozen=True)
class Chest:
    """What the lesions need to know of a drawn trunk."""

    canvas: Canvas
    frame: Frame
    pose: Pose
    body: Body
    lung: Array
    """Share of each voxel that is lung."""
    lung_mm: Array
    """Signed distance to the border of the lungs."""
    heart_mm: Array
    liver: Array
    cavity_mm: Array


def render_chest(
    grid: Grid, rng: np.random.Generator, *, body: Body, scale: float, lesions: Lesions
) -> Chest:
    """Draw a trunk without noise and without lesions, in HU."""
    pose = draw_pose(rng, scale=scale, turn_deg=4.0, shift_mm=6.0, warp_mm=4.5)
    frame = body_frame(grid, pose, rng)
    canvas = Canvas(grid, background=AIR_HU)
    _paint_couch(canvas, rng)
    cavity_mm = _paint_wall(canvas, frame, body)
    dome_mm = _dome(frame, body)
    liver = _paint_abdomen(canvas, frame, body, cavity_mm, dome_mm, rng, lesions)
    lung_mm = _lungs(frame, body, cavity_mm, dome_mm)
    lung = canvas.fill(lung_mm, body.lung_hu)
    heart_mm = _paint_heart(canvas, frame, body, lesions)
    lung = lung * (1 - _paint_vessels(canvas, frame, pose, body))
    _paint_skeleton(canvas, frame, body, cavity_mm, rng)
    return Chest(canvas, frame, pose, body, lung, lung_mm, heart_mm, liver, cavity_mm)


def _paint_couch(canvas: Canvas, rng: np.random.Generator) -> None:
    _, y, x = (canvas.grid.axis(number) for number in range(3))
    top = 122 + rng.uniform(-4, 6) - x[None, None, :] ** 2 / 900
    couch = np.abs(y[None, :, None] - top) - 4
    canvas.paint(soft(couch, canvas.edge_mm), float(rng.uniform(-300, 100)))


def _paint_wall(canvas: Canvas, frame: Frame, body: Body) -> Array:
    """Skin, fat and muscle; returns the signed distance to the cavity inside the ribs."""
    taper = np.clip((frame.z - 105) / 75, 0, 1)
    waist = 1 - 0.05 * np.clip(1 - np.abs(frame.z + 60) / 70, 0, 1)
    across = np.abs(frame.x) / (body.width * waist * (1 - 0.22 * taper * taper))
    along = np.abs(frame.y) / (body.depth * (1 - 0.30 * taper * taper))
    level = np.cbrt(across**3 + along**3)
    reach = np.sqrt(frame.x**2 + frame.y**2)
    skin_mm = np.where(level > 0.05, reach - reach / np.maximum(level, 0.05), -body.depth)
    canvas.fill(skin_mm, body.fat_hu)
    canvas.fill(skin_mm + body.fat_mm, body.muscle_hu)
    cavity_mm = skin_mm + body.fat_mm + body.wall_mm
    canvas.fill(cavity_mm, body.fat_hu)
    return cavity_mm


def _dome(frame: Frame, body: Body) -> Array:
    """Height above the diaphragm, mm: negative in the abdomen. The right dome stands higher."""
    side = np.clip(frame.x / 20, -1, 1)
    top = body.diaphragm - 6 * side
    sag = ((np.abs(frame.x) - 52) / 62) ** 2 + ((frame.y + 8) / 78) ** 2
    return frame.z - (top - 42 * np.minimum(sag, 2.2))


def _lungs(frame: Frame, body: Body, cavity_mm: Array, dome_mm: Array) -> Array:
    middle = 22 + 10 * np.clip((60 - frame.z) / 60, 0, 1) * (frame.x > 0)
    apex = ellipsoid(frame, (0, 6, body.diaphragm - 10), (150, 130, 172))
    spine = np.sqrt(frame.x**2 + (frame.y - body.depth + 32) ** 2) - 30
    parts = (cavity_mm + 2, 3 - dome_mm, middle - np.abs(frame.x), apex, -spine)
    return np.maximum.reduce(parts)


def _paint_abdomen(
    canvas: Canvas,
    frame: Frame,
    body: Body,
    cavity_mm: Array,
    dome_mm: Array,
    rng: np.random.Generator,
    lesions: Lesions,
) -> Array:
    """Bowel, stomach, spleen, liver, kidneys; returns the share of each voxel that is liver."""
    top = body.diaphragm
    room = np.maximum(cavity_mm + 4, dome_mm + 4)
    knots = field(canvas.grid, rng, wavelength_mm=48.0)
    gas = field(canvas.grid, rng, wavelength_mm=40.0)
    bowel = np.maximum(room, np.maximum(frame.z - top + 85, 9 * (0.1 - knots)))
    canvas.fill(np.maximum(bowel, frame.y - 30), 30.0)
    canvas.fill(np.maximum(np.maximum(bowel + 6, frame.y + 5), 12 * (0.9 - gas)), -700.0)
    canvas.fill(np.maximum(ellipsoid(frame, (48, -18, top - 52), (36, 32, 34)), room), 25.0)
    bubble = np.maximum(ellipsoid(frame, (48, -18, top - 52), (30, 26, 28)), frame.y + 22)
    canvas.fill(np.maximum(bubble, room), -900.0)
    spleen = ellipsoid(frame, (82, 34, top - 52), (24, 34, 40))
    canvas.fill(np.maximum(spleen, room), 48 + 60 * body.portal)
    s = lesions.liver_scale
    right = ellipsoid(frame, (-56, 0, top - 56), (62 * s, 68 * s, 62 * s))
    left = ellipsoid(frame, (6, -36, top - 38), (56 * s, 32 * s, 28 * s))
    liver_mm = np.maximum(np.minimum(right, left), room)
    liver = canvas.fill(liver_mm, body.liver_hu + 60 * body.portal)
    for side in (-1, 1):
        centre = (side * 50.0, 36.0, top - 112 - 6 * side)
        kidney = np.maximum(ellipsoid(frame, centre, (24, 22, 44)), cavity_mm + 4)
        kidney_alpha = canvas.fill(kidney, 32 + 140 * body.arterial)
        pelvis = ellipsoid(frame, (side * 40.0, 32.0, centre[2]), (10, 9, 18))
        canvas.fill(pelvis, body.fat_hu)
        liver = liver * (1 - kidney_alpha)
        psoas = ellipsoid(frame, (side * 36.0, 44.0, top - 165), (16, 16, 70))
        canvas.fill(np.maximum(psoas, cavity_mm), body.muscle_hu)
    return liver


def heart_centre(body: Body) -> Point:
    return 17 + body.heart_shift, -14.0, body.diaphragm + 32


def _paint_heart(canvas: Canvas, frame: Frame, body: Body, lesions: Lesions) -> Array:
    """Heart in its fat; the silhouette does not depend on the heart's own size."""
    centre, c = heart_centre(body), body.arterial
    turned = Frame(
        z=frame.z - centre[2] + 0.35 * (frame.x - centre[0]),
        y=frame.y - centre[1] - 0.25 * (frame.x - centre[0]),
        x=frame.x - centre[0],
    )
    size = np.array([46.0, 38.0, 40.0])
    outer, inner = to_point(size * body.silhouette), to_point(size * lesions.heart_scale)
    canvas.fill(ellipsoid(turned, (0, 0, 0), outer), body.fat_hu)
    heart_mm = ellipsoid(turned, (0, 0, 0), inner)
    canvas.fill(heart_mm, body.muscle_hu + 30 * c)
    s = lesions.heart_scale
    for place, radii in (((16, 6, -4), (20, 17, 22)), ((-20, -8, 0), (17, 20, 24))):
        chamber = ellipsoid(turned, place, (radii[0] * s, radii[1] * s, radii[2] * s))
        canvas.fill(chamber, 42 + 190 * c)
    return heart_mm


def aorta_path(body: Body) -> list[Point]:
    """Centre line of the aorta from the heart over the arch down to the belly."""
    x, y, z = heart_centre(body)
    top, back = z + 82, body.depth - body.fat_mm - 61
    return [
        (x - 22, y + 4, z + 22),
        (x - 28, y + 4, top - 16),
        (0.0, 8.0, top),
        (17.0, back - 12, top - 10),
        (20.0, back, top - 30),
        (14.0, back, body.diaphragm - 20),
        (4.0, back - 9, body.diaphragm - 170),
    ]


def _paint_vessels(canvas: Canvas, frame: Frame, pose: Pose, body: Body) -> Array:
    """Great vessels and airways; returns the share of each voxel they cover."""
    grid, c = canvas.grid, body.arterial
    _, y, z = heart_centre(body)
    path, hilum = aorta_path(body), z + 48
    mediastinum = ellipsoid(frame, (0, 4, z + 70), (32, 30, 70))
    covered = canvas.fill(mediastinum, body.fat_hu)
    aorta = [Tube(a, b, (13, 13)) for a, b in pairwise(path[:-1])]
    aorta.append(Tube(path[-2], path[-1], (12, 9)))
    blood = [
        *aorta,
        Tube((-24, y + 8, z + 10), (-24, y + 12, z + 110), (10, 9)),
        Tube((12, y, z + 30), (0, 6, hilum), (13, 12)),
        *(Tube((0, 6, hilum), (side * 42, 14, hilum - 4), (10, 6)) for side in (-1, 1)),
    ]
    veins = [Tube((-20, 14, body.diaphragm - 10), (-18, 8, body.diaphragm - 170), (10, 10))]
    covered = np.maximum(covered, canvas.fill(tubes(frame, grid, pose, blood), 44 + 200 * c))
    canvas.fill(tubes(frame, grid, pose, veins), 44 + 90 * c)
    carina = hilum + 22
    airways = [
        Tube((0, 18, z + 150), (0, 20, carina), (8, 8)),
        *(Tube((0, 20, carina), (side * 36, 22, hilum), (6.5, 5)) for side in (-1, 1)),
    ]
    return np.maximum(covered, canvas.fill(tubes(frame, grid, pose, airways), AIR_HU + 20))


def _paint_skeleton(
    canvas: Canvas, frame: Frame, body: Body, cavity_mm: Array, rng: np.random.Generator
) -> None:
    """Ribs that slope forwards and down, spine, breastbone."""
    phase, gristle = rng.uniform(0, 27), rng.uniform(60, 260)
    beat = np.abs(np.mod(frame.z - 0.45 * frame.y + phase, 27.0) - 13.5) - 5.0
    hoop = np.maximum(beat, np.abs(cavity_mm - 0.42 * body.wall_mm) - 4.0)
    reach = np.maximum(body.diaphragm - 60 + 0.4 * frame.y - frame.z, frame.z - 150)
    hoop = np.maximum(np.maximum(hoop, reach), 16 - np.abs(frame.x))
    front = np.clip((-frame.y - 0.45 * body.depth) / 15, 0, 1)
    canvas.fill(hoop, body.bone_hu + 250 + front * (gristle - body.bone_hu - 250))
    ahead = body.depth - body.fat_mm - 0.6 * body.wall_mm
    plate = np.maximum(np.abs(frame.x) - 14, np.abs(frame.y + ahead) - 4)
    canvas.fill(np.maximum(plate, body.diaphragm + 25 - frame.z), body.bone_hu + 60)
    back = body.depth - body.fat_mm - 26
    bend = 5 * np.clip(frame.z / 100, -1.5, 1.5)
    disc = np.abs(np.mod(frame.z + phase, 29.0) - 14.5) - 11.0
    column = np.sqrt((frame.x / 1.15) ** 2 + (frame.y - back + bend + 12) ** 2) - 16
    canvas.fill(column, 85.0)
    canvas.fill(np.maximum(column, disc), body.bone_hu + 180)
    canvas.fill(np.maximum(column + 4, disc + 3), body.bone_hu - 60)
    arch = np.sqrt(frame.x**2 + (frame.y - back + bend - 13) ** 2)
    canvas.fill(arch - 12, body.bone_hu + 150)
    spine = np.maximum(np.abs(frame.x) - 3.5, np.abs(frame.y - back + bend - 27) - 10)
    wings = np.maximum(np.abs(frame.y - back + bend - 12) - 4, np.abs(frame.x) - 30)
    canvas.fill(np.maximum(np.minimum(spine, wings), disc + 4), body.bone_hu + 150)
    canvas.fill(arch - 7, 25.0)
