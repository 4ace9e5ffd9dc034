"""One subject in memory: who it is, its lesions, and its two scans."""

from typing import NamedTuple

import numpy as np

from shards.phantom import acquisition
from shards.phantom.acquisition import Scanner
from shards.phantom.chest import draw_body, render_chest
from shards.phantom.chest_lesions import add_lesions
from shards.phantom.disease import Lesions, draw_lesions
from shards.phantom.head import render_head
from shards.phantom.space import Array, Grid
from shards.phantom.subject import Subject, draw_subject

HEAD_CT_SHARE = 0.3


class PhantomScan(NamedTuple):
    """A scan as the scanner stores it, (D, H, W) in the LPS frame."""

    body_part: str
    scanner: Scanner
    grid: Grid
    voxels: Array
    """int16; HU for CT."""
    mask: Array
    """uint8; values of ``disease.LESION_LABELS``."""


class Simulated(NamedTuple):
    subject: Subject
    lesions: Lesions
    scans: tuple[PhantomScan, PhantomScan]
    """Head, chest."""


def simulate(seed: int, index: int) -> Simulated:
    """Subject number ``index`` of the cohort of ``seed``.

    Each subject and each stage has a generator of its own, so neither the number of subjects nor
    the number of workers changes anyone.
    """
    who, ill, head, chest = (
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, stage)))
        for stage in range(4)
    )
    subject = draw_subject(
        who, name=f"phantom-{seed}-{index:04d}", num_sites=len(acquisition.SITES)
    )
    lesions = draw_lesions(ill, subject.labels)
    scans = (_head(head, subject, lesions), _chest(chest, subject, lesions))
    return Simulated(subject, lesions, scans)


def _head(rng: np.random.Generator, subject: Subject, lesions: Lesions) -> PhantomScan:
    is_ct = rng.random() < HEAD_CT_SHARE
    machines = acquisition.HEAD_CT_SCANNERS if is_ct else acquisition.HEAD_MR_SCANNERS
    scanner = machines[subject.site]
    grid = acquisition.draw_grid(scanner, rng, body_part="head")
    canvas = render_head(grid, rng, modality=scanner.modality, age=subject.age, lesions=lesions)
    voxels = acquisition.acquire(canvas.voxels, grid, scanner, rng)
    return PhantomScan("head", scanner, grid, voxels, canvas.mask)


def _chest(rng: np.random.Generator, subject: Subject, lesions: Lesions) -> PhantomScan:
    scanner = acquisition.CHEST_SCANNERS[subject.site]
    grid = acquisition.draw_grid(scanner, rng, body_part="chest")
    body = draw_body(rng, bmi=subject.bmi, age=subject.age, male=subject.sex == "M")
    scale = float(rng.uniform(0.93, 1.05))
    chest = render_chest(grid, rng, body=body, scale=scale, lesions=lesions)
    add_lesions(chest, rng, lesions=lesions)
    voxels = acquisition.acquire(chest.canvas.voxels, grid, scanner, rng)
    return PhantomScan("chest", scanner, grid, voxels, chest.canvas.mask)
