"""What is measured: the methods at their defaults, on backbones and crops of several sizes."""

import math
from typing import Literal, NamedTuple

import torch

from foundation.dino import DinoConfig
from foundation.mae import MaeConfig
from foundation.methods import Method, MethodSections, build_method
from foundation.network.patches import Shape
from foundation.objective.views import LocalCrops
from foundation.preprocessing import Preprocessing
from foundation.vit import SIZES, VitConfig, build_vit
from shards.bench.volume import SPACING_MM, ct_like
from shards.measure.intensity import intensity_statistics
from shards.scan import MODALITIES
from shards.streaming.batch import CropBatch

Size = Literal["toy", "tiny", "small", "base", "large"]
Name = Literal["mae", "dino"]

_DISTINCT = 4  # volumes of a synthetic batch; the others are copies
_MOST = 256
_MEMORY_SHARE = 0.5
_BYTES_PER_CHANNEL = 64  # kept of a token by one block for its backward pass, in bf16
_BYTES_PER_VOXEL = 200  # of a crop with its views, targets and predictions
_VIEWS = 3  # the volume of a DINO's views, in crops


class Case(NamedTuple):
    """A method on a backbone and a batch."""

    method: Name
    size: Size
    patch_size: Shape
    crop_shape: Shape
    local_shape: Shape
    """of DINO's local crops"""
    micro_batch: int

    @property
    def grain(self) -> str:
        """``patch 16 x 16 x 16, batch 128``."""
        return f"patch {' x '.join(map(str, self.patch_size))}, batch {self.micro_batch}"


class Extent(NamedTuple):
    """How much one run of the bench measures."""

    cases: tuple[Case, ...]
    """methods with a batch that lies on the device"""
    flows: tuple[Case, ...]
    """methods fed by the stream"""
    compiled: tuple[bool, ...]
    """of the cases: blocks as they are, compiled, or both"""
    warmup: int
    repeats: int
    turns: int
    """of two that are compared"""
    matmul: int
    """edge of the square matrices whose product is the peak"""
    scan_shape: Shape
    num_scans: int
    workers: int
    alone: bool
    """whether each case has a process of its own on a CPU, whose memory can then be told"""


def cpu_extent() -> Extent:
    """Under three minutes on one core."""
    cases = tuple(_cpu_case(name, size) for size in ("toy", "tiny") for name in ("mae", "dino"))
    return Extent(cases, cases, (False,), 1, 5, 15, 1024, (96, 160, 128), 6, workers=1, alone=True)


def quick_extent() -> Extent:
    """Seconds; shows that everything runs."""
    cases = tuple(
        Case(name, "toy", (8, 16, 8), (16, 32, 24), (8, 16, 16), 2) for name in ("mae", "dino")
    )
    return Extent(cases, cases, (False,), 1, 2, 2, 64, (24, 48, 40), 2, workers=0, alone=False)


def gpu_extent(memory_bytes: int, *, workers: int) -> Extent:
    """Batches that fill about half of the device's memory."""
    cases = tuple(
        _gpu_case(name, size, patch, memory_bytes)
        for size in ("tiny", "small", "base", "large")
        for patch in (16, 8)
        for name in ("mae", "dino")
    )
    flows = tuple(c for c in cases if c.size in ("tiny", "large") and c.patch_size[0] == 16)
    return Extent(
        cases,
        flows,
        (False, True),
        3,
        20,
        20,
        8192,
        (192, 256, 256),
        8,
        workers=workers,
        alone=False,
    )


def build(case: Case) -> Method:
    """The method with fresh weights, all else at its defaults."""
    vit = VitConfig(size=case.size, patch_size=case.patch_size)
    sections = (
        MethodSections(mae=MaeConfig())
        if case.method == "mae"
        else MethodSections(dino=DinoConfig(local_crops=LocalCrops(shape=case.local_shape)))
    )
    return build_method(
        sections,
        vit=build_vit(vit),
        preprocessing=Preprocessing(crop_shape=case.crop_shape),
        total_steps=1000,
        seed=0,
    )


def synthetic_batch(shape: Shape, *, size: int, modality: Literal["CT", "MR"]) -> CropBatch:
    """Crops (size, 1, d, h, w) of int16 as the stream delivers them, on the CPU."""
    distinct = [ct_like(shape, seed=number) for number in range(min(size, _DISTINCT))]
    statistics = torch.tensor([intensity_statistics(volume) for volume in distinct])
    copies = math.ceil(size / len(distinct))
    volume = torch.stack([torch.from_numpy(volume) for volume in distinct])[:, None]
    edges = torch.tensor(shape, dtype=torch.int32)
    return CropBatch(
        volume=volume.repeat(copies, 1, 1, 1, 1)[:size],
        present=torch.ones(size, 1, dtype=torch.bool),
        masks=torch.zeros(size, 0, *shape, dtype=torch.uint8),
        inside=torch.stack([torch.zeros_like(edges), edges], dim=1).repeat(size, 1, 1),
        extent=edges.repeat(size, 1),
        slope=torch.ones(size, 1),
        intercept=torch.zeros(size, 1),
        modality=torch.full((size, 1), MODALITIES.index(modality)),
        statistics=statistics.repeat(copies, 1)[:size, None],
        spacing_mm=torch.tensor(SPACING_MM).repeat(size, 1),
        position=torch.arange(size),
        subject=torch.arange(size),
        visit_day=torch.full((size,), math.nan),
        source=torch.zeros(size, dtype=torch.int64),
        keys=[f"scan-{number}" for number in range(size)],
        read_s=0.0,
        decode_s=0.0,
        wait_s=0.0,
        damaged=[],
    )


def _cpu_case(name: Name, size: Size) -> Case:
    return Case(name, size, (16, 16, 16), (64, 80, 96), (32, 32, 48), 4)


def _gpu_case(name: Name, size: Size, patch: int, memory_bytes: int) -> Case:
    case = Case(name, size, (patch,) * 3, (96,) * 3, (48,) * 3, 1)
    fitting = _MEMORY_SHARE * memory_bytes / _bytes_per_volume(case)
    batch = 2 ** int(math.log2(max(1.0, min(_MOST, fitting))))
    return case._replace(micro_batch=batch)


def _bytes_per_volume(case: Case) -> float:
    """What a step keeps for its backward pass, roughly and rather too much."""
    width, depth, _ = SIZES[case.size]
    patch, voxels = math.prod(case.patch_size), math.prod(case.crop_shape)
    num_patches = voxels / patch
    if case.method == "mae":
        decoder = MaeConfig()
        visible = num_patches * (1 - decoder.mask_ratio)
        channels = visible * width * depth
        channels += num_patches * decoder.decoder_embed_dim * decoder.decoder_depth
    else:
        num_local = DinoConfig().local_crops.num_crops * math.prod(case.local_shape) / patch
        channels = (2 * num_patches + num_local) * width * depth
        voxels *= _VIEWS
    return _BYTES_PER_CHANNEL * channels + _BYTES_PER_VOXEL * voxels
