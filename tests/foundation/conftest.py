"""Shared by the tests of this package: a batch as the stream gives it, without any shards."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.streaming.batch import CropBatch


def _crop_batch(shape: tuple[int, int, int], *, positions: list[int]) -> CropBatch:
    """One CT crop per position, with structure, noise and a margin of padding on the first axis."""
    volumes, insides = [], []
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        axes = [torch.linspace(-1, 1, size) for size in shape]
        d, h, w = torch.meshgrid(*axes, indexing="ij")
        centre = torch.rand(3, generator=generator) - 0.5
        distance = (d - centre[0]) ** 2 + (h - centre[1]) ** 2 + 0.5 * (w - centre[2]) ** 2
        volume = (
            400.0 * torch.exp(-3 * distance) - 200 + 30 * torch.randn(shape, generator=generator)
        )
        padding = position % 3
        volume[:padding] = -1024
        volumes.append(volume.round().to(torch.int16)[None])
        insides.append([[padding, shape[0]], [0, shape[1]], [0, shape[2]]])
    batch = len(positions)
    return CropBatch(
        volume=torch.stack(volumes),
        present=torch.ones(batch, 1, dtype=torch.bool),
        masks=torch.zeros(batch, 0, *shape, dtype=torch.uint8),
        inside=torch.tensor(insides, dtype=torch.int32),
        extent=torch.tensor([shape] * batch, dtype=torch.int32),
        slope=torch.ones(batch, 1),
        intercept=torch.zeros(batch, 1),
        modality=torch.zeros(batch, 1, dtype=torch.int64),
        statistics=torch.tensor([[[-300.0, 300, 0, 100, -290, 0, 290]]] * batch),
        spacing_mm=torch.tensor([[3.0, 1.0, 1.5]] * batch),
        position=torch.tensor(positions),
        subject=torch.tensor(positions),
        visit_day=torch.full((batch,), torch.nan),
        source=torch.zeros(batch, dtype=torch.int64),
        keys=[f"scan-{position}" for position in positions],
        read_s=0.0,
        decode_s=0.0,
        wait_s=0.0,
        damaged=[],
    )


@pytest.fixture
def crop_batch() -> Callable[..., CropBatch]:
    """``crop_batch((D, H, W), positions=[...])``: the same position gives the same crop."""
    return _crop_batch


@pytest.fixture(scope="session")
def on_ranks(project: Path) -> Callable[..., list[dict[str, Any]]]:
    """``on_ranks("script.py", "word", ranks=2)``: the JSON lines a script of this folder prints."""

    def run(script: str, *words: str, ranks: int, on_gpu: bool = False) -> list[dict[str, Any]]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = {**os.environ, "PYTHONPATH": str(project)}
        if on_gpu:
            environment.pop("DS_ACCELERATOR", None)
        path = str(Path(__file__).with_name(script))
        done = subprocess.run(
            [*launch, "--nproc-per-node", str(ranks), path, *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


@pytest.fixture(scope="session")
def on_two_ranks(on_ranks: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """``on_two_ranks("script.py", "word")``."""
    return partial(on_ranks, ranks=2)
