"""Run on two ranks: a few DeepSpeed updates beside plain autograd on the joined batch.

Prints one JSON line per stage and precision, which ``test_engine.py`` reads.
"""

import json
import sys

import torch
from torch import nn

from foundation.engine import DeepSpeedConfig, deepspeed_dict, gradient_norm, start_engine
from foundation.running.optimiser import set_groups
from foundation.running.parameters import parameter_groups
from foundation.running.ranks import join_ranks, leave_ranks

MICRO_BATCH, ACCUMULATION, STEPS, CLIP, BETAS = 3, 2, 5, 0.4, (0.9, 0.95)


class TwoViews(nn.Module):
    """One submodule that runs twice a step, a norm, and a last layer that starts frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 5))
        self.last = nn.Linear(5, 2, bias=False)

    def forward(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict]:
        one, two = (self.last(self.body(view)) for view in (batch, 2 * batch.flip(1)))
        loss = ((one - 1) ** 2).mean() + ((two.float() - step) ** 2).mean()
        return loss, {"loss": loss.detach()}


def groups(module: nn.Module) -> list:
    return parameter_groups(module, weight_decay=0.1, last_layer={"last.weight"})


def schedule(step: int) -> dict:
    return {
        "lr": 1e-2 * (step + 1),
        "weight_decay": 0.1 + 0.05 * step,
        "freeze_last_layer": step < 2,
    }


def compare(stage: int, precision: str, ranks) -> dict[str, float]:
    torch.manual_seed(0)
    method, reference = TwoViews(), TwoViews()
    reference.load_state_dict(method.state_dict())
    settings = deepspeed_dict(
        DeepSpeedConfig(stage=stage, precision=precision),
        micro_batch=MICRO_BATCH,
        accumulation=ACCUMULATION,
        world_size=ranks.world_size,
        clip=CLIP,
        num_parameters=100,
    )
    engine = start_engine(method, groups=groups(method), betas=BETAS, clip=CLIP, settings=settings)
    plain = torch.optim.AdamW(groups(reference), lr=0.0, betas=BETAS)
    generator = torch.Generator().manual_seed(1)
    error = norm_error = moved = 0.0
    for step in range(STEPS):
        data = torch.randn(ACCUMULATION, ranks.world_size, MICRO_BATCH, 6, generator=generator)
        for optimizer in (engine.optimizer, plain):
            set_groups(optimizer.param_groups, **schedule(step))
        for micro in data:
            loss, _ = engine(micro[ranks.rank], step)
            engine.backward(loss)
            engine.step()
        plain.zero_grad()
        for micro in data.flatten(0, 1):
            # One autocast context a forward, as in the engine: the context keeps bf16 weights.
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss, _ = reference(micro, step)
            (loss / (ACCUMULATION * ranks.world_size)).backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), CLIP)
        before = [parameter.detach().clone() for parameter in reference.parameters()]
        plain.step()
        pairs = list(zip(method.parameters(), reference.parameters(), before, strict=True))
        error = max(error, *((a - b).abs().max().item() for a, b, _ in pairs))
        moved = max(moved, *((b - c).abs().max().item() for _, b, c in pairs))
        norm_error = max(norm_error, abs(gradient_norm(engine) / norm.item() - 1))
        assert norm > CLIP, "the test's gradient must be large enough to be clipped"
        frozen = torch.equal(reference.last.weight, before[-1])
        assert frozen == (step < 2), "the last layer moves when it is let go, not before"
    return {"error": error, "norm_error": norm_error, "moved": moved}


def main() -> None:
    ranks = join_ranks(timeout_s=120)
    for stage in (0, 1, 2):
        for precision in ("fp32", "bf16"):
            found = compare(stage, precision, ranks)
            sys.stdout.write(
                json.dumps({"stage": stage, "precision": precision, "rank": ranks.rank, **found})
                + "\n"
            )
    leave_ranks()


if __name__ == "__main__":
    main()
