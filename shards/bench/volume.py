"""What `shards.bench` measures on: CT-like volumes with noise, as files and as shards."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from recipes.load import parse
from shards import build
from shards.build import BuildConfig
from shards.phantom.files import write_nifti
from shards.phantom.space import Grid
from shards.sources.source import SourceConfig

Modality = Literal["CT", "MR"]

SPACING_MM = (1.0, 0.8, 0.8)
TARGET_MM = (1.5, 1.5, 1.5)
AIR_HU, LUNG_HU, TISSUE_HU, BONE_HU = -1000, -850, 40, 500
NOISE_HU = 25.0


@dataclass(frozen=True)
class Sizes:
    """How large and how often; the small ones only show that everything runs."""

    shape: tuple[int, int, int]
    crop: tuple[int, int, int]
    slow_repeats: int
    crops_a_repeat: int
    scans: int
    build_repeats: int
    stream_steps: int
    burn_s: float


FULL = Sizes((256, 320, 320), (96, 96, 96), 7, 30, 32, 3, 40, 2.0)
QUICK = Sizes((40, 64, 72), (16, 24, 20), 1, 3, 2, 1, 3, 0.05)


def ct_like(shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """(D, H, W) int16 Hounsfield units: a chest in air, noise correlated as a kernel leaves it."""
    random = np.random.default_rng(seed)
    d, h, w = np.meshgrid(
        *(np.linspace(-1, 1, length, dtype=np.float32) for length in shape),
        indexing="ij",
        sparse=True,
    )
    sway = np.float32(random.uniform(-0.05, 0.05))
    volume = np.full(shape, AIR_HU, dtype=np.float32)
    volume[(h / 0.75) ** 2 + ((w - sway) / 0.85) ** 2 + 0 * d < 1] = TISSUE_HU
    volume[(h / 0.45) ** 2 + ((abs(w - sway) - 0.42) / 0.3) ** 2 + (d / 0.8) ** 2 < 1] = LUNG_HU
    volume[((h - 0.5) / 0.12) ** 2 + ((w - sway) / 0.12) ** 2 + 0 * d < 1] = BONE_HU
    noise = random.standard_normal(shape, dtype=np.float32)
    noise[..., 1:] = (noise[..., 1:] + noise[..., :-1]) / np.float32(2)
    volume += np.float32(NOISE_HU) * noise
    return np.rint(volume.clip(-1024, 3071)).astype(np.int16)


def write_scans(folder: Path, sizes: Sizes, *, count: int) -> list[Path]:
    """``count`` different ``.nii.gz`` in RAS, as most archives keep them."""
    folder.mkdir(parents=True)
    grid = Grid(sizes.shape, SPACING_MM)
    paths = [folder / f"scan-{number:03d}.nii.gz" for number in range(count)]
    for number, path in enumerate(paths):
        write_nifti(path, ct_like(sizes.shape, seed=number), grid, orientation="RAS")
    return paths


def source_config(
    images: str, *, modality: Modality, spacing_mm: tuple[float, float, float] | None
) -> SourceConfig:
    """A source of the images that match a pattern."""
    return SourceConfig(
        images=images,
        name="bench",
        licence="CC0",
        source="written by shards.bench",
        modality=modality,
        spacing_mm=spacing_mm,
    )


def build_shards(scans: Path, out: Path, *, workers: int = 1) -> None:
    """Build all ``.nii.gz`` of a folder into ``out``, as the command would, in silence."""
    source = source_config(f"{scans.name}/*.nii.gz", modality="CT", spacing_mm=None)
    tree = {
        "name": "bench",
        "out": str(out),
        "data_root": str(scans.parent),
        "pseudonym_key": str(scans.parent / "pseudonym.key"),
        "sources": [source.model_dump(mode="json")],
        "workers": workers,
    }
    config = parse(tree, BuildConfig, where="bench")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build.main(config)
