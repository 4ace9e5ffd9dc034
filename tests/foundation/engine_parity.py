"""Run on several ranks: MAE and DINO under every stage and precision beside plain autograd.

The plain run sees the joined batch in one process. Half way, the engine is left for a fresh one of
the next stage, with what a checkpoint holds; in one update a rank's loss is no number, and the
plain run leaves that update out. Prints one JSON line per case, which ``test_engine.py`` reads;
``short`` as a word leaves out what differs little. On a GPU where there is one.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from conftest import _crop_batch
from test_dino import CONFIG, SHAPE, toy_dino
from test_mae import _mae

from foundation.engine import DeepSpeedConfig, deepspeed_dict, gradient_norm, poison, start_engine
from foundation.running.moments import gather_moments, gather_weights, num_applied, spread_moments
from foundation.running.optimiser import set_groups
from foundation.running.parameters import LayerRates
from foundation.running.ranks import join_ranks, leave_ranks
from shards.streaming.batch import CropBatch

MICRO_BATCH, ACCUMULATION, STEPS, BAD, CLIP, BETAS = 2, 2, 3, 1, 0.4, (0.9, 0.95)
RATES = LayerRates(0.8, 0.5)
WORLD = int(os.environ["WORLD_SIZE"])
ON_GPU = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if ON_GPU else torch.device("cpu")

Case = tuple[str, str]
"""A method and a precision."""
Place = tuple[int, bool]
"""A stage, and whether the optimiser is offloaded."""

# From one place to the next a run is handed over half way. Stage 3 takes no teacher.
_MAE = (*((stage, False) for stage in range(4)), (1, True), (2, True), (3, True))
_DINO = ((0, False), (1, False), (2, False), (1, True), (2, True))
ALL: dict[Case, tuple[Place, ...]] = {
    (method, precision): places
    for method, places in (("mae", _MAE), ("dino", _DINO))
    for precision in ("fp32", "bf16")
}
SHORT: dict[Case, tuple[Place, ...]] = {
    ("mae", "fp32"): ((0, False), (3, False), (2, True)),
    ("mae", "bf16"): ((2, False),),
    ("dino", "fp32"): ((1, False),),
    ("dino", "bf16"): ((2, False),),
}


class Plain(NamedTuple):
    """What the plain run had after an update."""

    weights: dict[str, torch.Tensor]
    norm: float
    """of the gradient, before clipping"""
    average: dict[str, torch.Tensor]
    """Adam's first; after one update a tenth of the clipped gradient"""


def build(method: str) -> Any:
    if method == "dino":
        return toy_dino(CONFIG.model_copy(update={"freeze_last_layer_steps": 1})).train()
    vit = {"position": "learned", "position_grid": [3, 3, 5], "drop_path_rate": 0.3}
    return _mae(vit=vit).train()


def groups(module: Any) -> list:
    return module.param_groups(0.1, rates=RATES)


def schedule(step: int) -> dict:
    lr, weight_decay = 2e-3 * (step + 1), 0.1 + 0.05 * step
    return {"lr": lr, "weight_decay": weight_decay, "freeze_last_layer": step < 1}


def batch_of(positions: list[int]) -> CropBatch:
    subject = torch.tensor([position // 2 for position in positions])
    return _crop_batch(SHAPE, positions=positions)._replace(subject=subject).to(DEVICE)


def positions_of(step: int, micro: int) -> list[int]:
    """Of the micro batches of all ranks together."""
    first = (step * ACCUMULATION + micro) * WORLD * MICRO_BATCH
    return list(range(first, first + WORLD * MICRO_BATCH))


def plain_run(method: str, precision: str) -> list[Plain]:
    module = build(method).to(DEVICE)
    optimizer = torch.optim.AdamW(groups(module), lr=0.0, betas=BETAS)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(ACCUMULATION):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                loss, _ = module(batch_of(positions_of(step, micro)), step)
            (loss / ACCUMULATION).backward()
        norm = float(nn.utils.clip_grad_norm_(trained.values(), CLIP))
        assert norm > CLIP, "the test's gradient must be large enough to be clipped"
        set_groups(optimizer.param_groups, **schedule(step))
        if step != BAD:
            optimizer.step()
            module.after_update(step)
        weights = {name: value.cpu().clone() for name, value in module.state_dict().items()}
        average = {name: optimizer.state[p]["exp_avg"].cpu().clone() for name, p in trained.items()}
        found.append(Plain(weights, norm, average))
    return found


def start(method: str, place: Place, precision: str, weights: dict | None) -> Any:
    module = build(method)
    if weights is not None:
        module.load_state_dict(weights)
    stage, offload = place
    settings = deepspeed_dict(
        DeepSpeedConfig(stage=stage, precision=precision, offload_optimiser=offload),
        micro_batch=MICRO_BATCH,
        accumulation=ACCUMULATION,
        world_size=WORLD,
        clip=CLIP,
        num_parameters=100,
    )
    module.to(DEVICE)
    return start_engine(
        module, groups=groups(module), betas=BETAS, clip=CLIP, settings=settings, timeout_s=60
    )


def update(engine: Any, step: int, rank: int) -> float:
    set_groups(engine.optimizer.param_groups, **schedule(step))
    for micro in range(ACCUMULATION):
        mine = positions_of(step, micro)[rank * MICRO_BATCH : (rank + 1) * MICRO_BATCH]
        loss, _ = engine(batch_of(mine), step)
        is_bad = step == BAD and rank == WORLD - 1 and micro == 0
        # A loss that is no number though its formula has a fine gradient.
        engine.backward(poison(loss + loss.detach() * math.nan if is_bad else loss))
        engine.step()
    norm = gradient_norm(engine)
    if math.isfinite(norm):
        engine.module.after_update(step)
    return norm


def distance(one: dict, other: dict) -> float:
    """Of all tensors together."""
    return math.sqrt(sum(float((one[n] - other[n]).double().square().sum()) for n in other))


def gradient_error(engine: Any, plain: Plain) -> float:
    """After the first update, as a share of the gradient's norm."""
    averages = gather_moments(engine, keep=True)
    found = {name: averages[f"{name}/exp_avg"] for name in plain.average}
    nothing = {name: torch.zeros_like(value) for name, value in plain.average.items()}
    return distance(found, plain.average) / distance(plain.average, nothing)


def compare(
    method: str, precision: str, place: Place, then: Place, plain: list[Plain], rank: int
) -> dict[str, float]:
    initial = {name: value.clone() for name, value in build(method).state_dict().items()}
    engine = start(method, place, precision, None)
    error = norm_error = of_gradient = 0.0
    for step in range(STEPS):
        norm = update(engine, step, rank)
        found = gather_weights(engine, keep=True)
        if step == 0:
            of_gradient = gradient_error(engine, plain[0])
        if step == BAD:
            assert norm == math.inf, "the update was skipped, on every rank"
            moments, applied = gather_moments(engine, keep=True), num_applied(engine)
            assert applied == BAD, "Adam counts what was applied"
            engine.destroy()
            engine = start(method, then, precision, found)
            spread_moments(engine, moments, num_updates=applied)
        else:
            norm_error = max(norm_error, abs(norm / plain[step].norm - 1))
        moved = distance(plain[step].weights, initial)
        error = max(error, distance(found, plain[step].weights) / moved)
    engine.destroy()
    errors = {"error": error, "norm_error": norm_error, "gradient_error": of_gradient}
    return {**errors, "moved": moved}


def main() -> None:
    torch.set_num_threads(1)
    wanted = SHORT if "short" in sys.argv[1:] else ALL
    plain = {case: plain_run(*case) for case in wanted}
    ranks = join_ranks(timeout_s=120)
    for case, chain in wanted.items():
        for place, then in zip(chain, (*chain[1:], chain[0]), strict=True):
            found = compare(*case, place, then, plain[case], ranks.rank)
            names = {
                "method": case[0],
                "precision": case[1],
                "stage": place[0],
                "offload": place[1],
            }
            sys.stdout.write(json.dumps({**names, "rank": ranks.rank, **found}) + "\n")
    leave_ranks()


if __name__ == "__main__":
    main()
