"""Adam's averages of every parameter, whole, whatever ZeRO stage spreads them over how many ranks.

So a checkpoint is the same for every stage and every number of ranks, and any job can go on from
it. DeepSpeed's own functions gather and spread what its stages have cut up.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, beside its number of steps."""

Moments = dict[str, Tensor]
"""``NAME/exp_avg`` and ``NAME/exp_avg_sq`` of each trained parameter, on the CPU, float32"""


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """By name, those that the optimiser moves."""
    return {name: each for name, each in engine.module.named_parameters() if each.requires_grad}


def gather_moments(engine: Any, *, keep: bool) -> Moments:
    """Every parameter's averages; a collective call from stage 1.

    Args:
        engine: DeepSpeed's, after at least one update.
        keep: Whether this rank wants them; the others take part and return nothing.
    """
    found: Moments = {}
    _link(engine)
    for name, parameter in trained_parameters(engine).items():
        for moment in MOMENTS:
            whole = _gather(engine, parameter, moment)
            if keep:
                found[f"{name}/{moment}"] = whole.detach().to("cpu", torch.float32, copy=True)
    return found


def gather_weights(engine: Any, *, keep: bool) -> dict[str, Tensor]:
    """The module's ``state_dict`` with whole parameters, on the CPU; a collective call at stage 3.

    Args:
        engine: DeepSpeed's.
        keep: Whether this rank wants them.
    """
    found = {}
    parameters = dict(engine.module.named_parameters())
    for name, tensor in engine.module.state_dict().items():
        whole = tensor
        if name in parameters and hasattr(parameters[name], "ds_id"):
            whole = _gather_weight(parameters[name])
        if keep:
            found[name] = whole.detach().to("cpu", copy=True).contiguous()
    return found


def num_applied(engine: Any) -> int:
    """Updates that the averages have seen: skipped ones do not count."""
    state = _optimizer(engine).state
    return int(next(iter(state.values()))["step"]) if state else 0


def spread_moments(engine: Any, moments: Mapping[str, Tensor], *, num_updates: int) -> None:
    """Give a fresh engine the averages of :func:`gather_moments`; every rank calls it.

    Args:
        engine: DeepSpeed's, before its first update.
        moments: On the CPU.
        num_updates: That the averages have seen.

    Raises:
        KeyError: A trained parameter has none.
    """
    state = _optimizer(engine).state
    for tensor in _moved_tensors(engine):
        state[tensor] = {
            "step": torch.tensor(float(num_updates)),
            **{moment: torch.zeros_like(tensor) for moment in MOMENTS},
        }
    _link(engine)
    for name, parameter in trained_parameters(engine).items():
        for moment in MOMENTS:
            _spread(engine, parameter, moment, moments[f"{name}/{moment}"])


def _link(engine: Any) -> None:
    """Let stages 1 and 2 know where each parameter's averages lie in the flat state.

    DeepSpeed 0.19.8 does so by itself once, after the first group's first update, and then finds
    the averages of the first group alone.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _optimizer(engine: Any) -> Any:
    """AdamW itself, which the stages from 1 on wrap."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _moved_tensors(engine: Any) -> list[Tensor]:
    """What AdamW moves: parameters, or this rank's parts of them end to end."""
    if engine.zero_optimization_stage() == 3:
        flat: list[Tensor] = engine.optimizer.fp32_partitioned_groups_flat
        return flat
    return [each for group in _optimizer(engine).param_groups for each in group["params"]]


def _gather(engine: Any, parameter: nn.Parameter, moment: str) -> Tensor:
    if engine.zero_optimization_stage() == 0:
        found: Tensor = engine.optimizer.state[parameter][moment]
        return found
    from deepspeed.utils import safe_get_full_optimizer_state

    whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
    return whole


def _gather_weight(parameter: nn.Parameter) -> Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True)


def _spread(engine: Any, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 0:
        engine.optimizer.state[parameter][moment].copy_(value)
    elif stage < 3:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
    else:
        _spread_local(parameter, moment, value)


def _spread_local(parameter: Any, moment: str, value: Tensor) -> None:
    """This rank's part of what stage 3 has cut into equal parts, the last one padded.

    DeepSpeed's function for the whole refuses what does not divide evenly.
    """
    from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

    part = safe_get_local_optimizer_state(parameter, moment).numel()
    start = part * torch.distributed.get_rank()
    mine = torch.zeros(part)
    held = value.flatten()[start : start + part]
    mine[: held.numel()] = held
    safe_set_local_optimizer_state(parameter, mine.to(parameter.device), moment)
