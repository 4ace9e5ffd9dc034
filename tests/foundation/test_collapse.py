"""Collapses that are planted are caught within 200 steps, and healthy runs give no alarm.

Scans are of 16 kinds of texture and brightness, which a method can tell apart in so few steps. A
teacher without momentum collapses only where nothing else holds features apart: with Sinkhorn-Knopp
or KoLeo it does not, so that collapse is planted in DINO as it was first published.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import foundation.watching.checkup
from foundation.health import HealthConfig
from foundation.mae import Mae
from foundation.methods import MethodSections, build_method
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from foundation.watching.alarms import Alarm, Alarms
from foundation.watching.checkup import Checkup
from foundation.watching.pinned import PinnedSet
from shards.streaming.batch import CropBatch

SHAPE = (8, 16, 12)
STEPS, BATCH, KINDS, NUM_PINNED = 200, 8, 16, 32
PREPROCESSING = Preprocessing(crop_shape=SHAPE)

DINO = {
    "global_scale": {"in_plane": [0.6, 1.0], "across": [0.6, 1.0]},
    "local_crops": {"num_crops": 2, "shape": [4, 8, 8]},
    "head": {"num_prototypes": 64, "hidden_dim": 64, "bottleneck_dim": 32},
}
# Caron et al. 2021, without what came later.
FIRST_DINO = {
    **DINO,
    "local_crops": {"num_crops": 0, "shape": [4, 8, 8]},
    "ibot": None,
    "koleo_weight": 0.0,
    "targets": "centring",
}
MAE = {
    "decoder_embed_dim": 48,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "mask_ratio": 0.6,
    "norm_pix_loss": False,
}
HOT = {"teacher_temp": 1.0, "warmup_teacher_temp": 1.0}
NO_CENTRE = {"targets": "centring", "center_momentum": 1.0}
NO_MOMENTUM = {"momentum_teacher": 0.0, "momentum_teacher_end": 0.0}


class Kind(NamedTuple):
    """What scans of one kind share."""

    wave: Tensor
    """(3,) radians a voxel"""
    level: float


def kind_of(position: int) -> Kind:
    generator = torch.Generator().manual_seed(position % KINDS)
    wave = torch.randn(3, generator=generator)
    wave *= 2 * math.pi / (wave.norm() * (3 + 4 * torch.rand(1, generator=generator)))
    return Kind(wave, 150 * float(torch.randn(1, generator=generator)))


def textured(crop_batch, positions: list[int]) -> CropBatch:
    """One scan a position: of its kind, with a phase and noise of its own."""
    batch = crop_batch(SHAPE, positions=positions)
    d, h, w = torch.meshgrid(*(torch.arange(float(size)) for size in SHAPE), indexing="ij")
    volumes = []
    for position in positions:
        wave, level = kind_of(position)
        own = torch.Generator().manual_seed(position)
        phase = 2 * math.pi * torch.rand(1, generator=own)
        noise = 15 * torch.randn(SHAPE, generator=own)
        volume = level + 150 * torch.sin(wave[0] * d + wave[1] * h + wave[2] * w + phase) + noise
        volumes.append(volume.round().to(torch.int16)[None])
    inside = torch.tensor([[[0, size] for size in SHAPE]] * len(positions))
    return batch._replace(volume=torch.stack(volumes), inside=inside)


def alarms_of(
    crop_batch, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], position_scale: float
) -> list[Alarm]:
    """Train, and hand the log's lines to the alarms as a run does; up to the first ones."""
    monkeypatch.setattr(foundation.watching.checkup, "gather_from_ranks", lambda mine: [mine])
    torch.manual_seed(0)
    vit = VitConfig(size="toy", depth=2, patch_size=(4, 4, 4), position_scale=position_scale)
    method = build_method(
        MethodSections.model_validate(section),
        vit=build_vit(vit),
        preprocessing=PREPROCESSING,
        total_steps=STEPS,
        seed=3,
    )
    config = HealthConfig()
    positions = list(range(1000, 1000 + NUM_PINNED))
    labels = ["bright" if kind_of(position).level > 0 else "dark" for position in positions]
    checkup = Checkup(
        PinnedSet([textured(crop_batch, positions)], labels),
        backbone=method.backbone,
        preprocessing=PREPROCESSING,
        pooled="mean" if isinstance(method, Mae) else "cls",
        every_steps=config.every_steps,
        device=torch.device("cpu"),
        precision="fp32",
    )
    first = config.first_judged(warmup_steps=0, freeze_last_layer_steps=0)
    alarms = Alarms(first_judged=first, patience_steps=config.patience_steps)
    optimiser = torch.optim.AdamW(method.param_groups(0.04), lr=5e-4 if "dino" in section else 2e-3)
    for step in range(STEPS):
        batch = textured(crop_batch, list(range(BATCH * step, BATCH * step + BATCH)))
        loss, metrics = method(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_update(step)
        scalars = {name: float(value) for name, value in metrics.items()}
        if found := alarms.see({"step": step + 1, **scalars, **checkup.after(step + 1)}):
            return found
    return []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (FIRST_DINO | HOT, {"teacher_entropy", "ln_k_distance"}),
        pytest.param(FIRST_DINO | NO_CENTRE, {"teacher_entropy"}, marks=pytest.mark.slow),
        pytest.param(
            FIRST_DINO | NO_MOMENTUM,
            {"prototype_use"},
            marks=pytest.mark.slow,
        ),
        pytest.param(DINO | HOT, {"teacher_entropy", "ln_k_distance"}, marks=pytest.mark.slow),
        pytest.param(DINO | NO_CENTRE, {"teacher_entropy"}, marks=pytest.mark.slow),
    ],
    ids=["temperature 1", "no centring", "momentum 0", "all, temperature 1", "all, no centring"],
)
def test_a_planted_collapse_is_caught(
    crop_batch, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], names: set[str]
) -> None:
    found = alarms_of(crop_batch, monkeypatch, {"dino": changes}, position_scale=0.1)
    assert names <= {alarm.name for alarm in found}


@pytest.mark.parametrize(
    ("section", "position_scale"),
    [
        ({"mae": MAE}, 1.0),
        pytest.param({"dino": DINO}, 0.1, marks=pytest.mark.slow),
        pytest.param({"dino": FIRST_DINO}, 0.1, marks=pytest.mark.slow),
    ],
    ids=["mae", "dino", "dino of 2021"],
)
def test_a_healthy_run_gives_no_alarm(
    crop_batch, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], position_scale: float
) -> None:
    assert alarms_of(crop_batch, monkeypatch, section, position_scale) == []
