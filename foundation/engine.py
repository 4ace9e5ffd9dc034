"""Where DeepSpeed is: the recipe becomes its dictionary here, and nowhere else it is imported."""

import contextlib
import io
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.running.parameters import ParameterGroup
from recipes.load import Section

_BUCKET_ELEMENTS = 50_000_000
_EXTENSION = "deepspeed_shm_comm"
_COMPILERS = ("c++", "g++", "clang++")


class DeepSpeedConfig(Section):
    """How the optimiser's state is spread over ranks, and in which precision layers compute."""

    stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="ZeRO, what is spread: 1 optimiser, 2 gradients, 3 parameters too"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="bf16 is torch autocast: parameters stay fp32",
    )
    offload_optimiser: bool = Field(
        default=False,
        description="keep the optimiser's state in the machine's memory; from stage 1",
    )


class EngineError(ValueError):
    """An engine that must not be started; the message says why."""


def check_engine(config: DeepSpeedConfig, *, has_teacher: bool, has_gpu: bool) -> None:
    """Refuse, before anything heavy is built, what is known to be wrong or cannot work.

    Raises:
        EngineError: With the reason and the way out.
    """
    if config.stage == 3 and has_teacher:
        raise EngineError(
            "deepspeed.stage: 3 splits the parameters, and a teacher that averages them would have "
            "to be split alike; it pays only from about 2 billion parameters: use 0, 1 or 2"
        )
    if config.offload_optimiser and config.stage == 0:
        raise EngineError(
            "deepspeed.offload_optimiser: stage 0 keeps the optimiser's state whole on every "
            "device; use stage 1, 2 or 3"
        )
    if not has_gpu and not _has_compiler():
        raise EngineError(
            "DeepSpeed builds a small C++ extension where there is no GPU, and no compiler was "
            f"found ({', '.join(_COMPILERS)}); install one, such as g++"
        )


def compilation_ahead() -> str | None:
    """What to tell whoever waits, where DeepSpeed has yet to build its extension; else None."""
    # That there is no CUDA to compile for is no news on a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if any(root.rglob(f"{_EXTENSION}/{_EXTENSION}*.so")):
        return None
    told = "DeepSpeed compiles a small extension first, once: about a minute"
    # A build that was killed leaves its lock, for which the next one would wait for ever.
    locks = list(root.rglob(f"{_EXTENSION}/lock"))
    return f"{told}; if no other job is compiling, delete {locks[0]}" if locks else told


def deepspeed_dict(
    config: DeepSpeedConfig,
    *,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    clip: float | None,
    num_parameters: int,
) -> dict[str, Any]:
    """DeepSpeed's own configuration; the optimiser and its schedule are ours, not in here.

    Args:
        config: Of the recipe.
        micro_batch: Scans of one forward on one rank.
        accumulation: Forwards of one update.
        world_size: Number of ranks.
        clip: Largest norm of the gradient; None lets it be.
        num_parameters: Bounds the buffer that gradients are reduced in.
    """
    settings: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # Stage 0 is clipped by start_engine.
        "gradient_clipping": 0.0 if config.stage == 0 else clip or 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.stage,
            "reduce_bucket_size": min(_BUCKET_ELEMENTS, num_parameters),
        },
    }
    if config.offload_optimiser:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if config.precision == "bf16":
        # No module reduces in bf16: gradients are averaged as the fp32 numbers they are.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return settings


def start_engine(
    method: nn.Module,
    *,
    groups: list[ParameterGroup],
    betas: tuple[float, float],
    clip: float | None,
    settings: dict[str, Any],
    timeout_s: float,
) -> Any:
    """Wrap a method and a fresh AdamW into a DeepSpeed engine.

    Args:
        method: On its device; all ranks must hold one.
        groups: Become ``engine.optimizer.param_groups``; learning rates are set at each step.
        betas: Of AdamW.
        clip: The same as in ``settings``.
        settings: From :func:`deepspeed_dict`.
        timeout_s: Longest wait of its collective calls.

    Raises:
        EngineError: DeepSpeed's extension cannot be built.
    """
    # A virtual environment that is not activated hides its ninja from the extension's build.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import deepspeed  # outside of the silence, which its logger would keep as its output

    optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=0.0, betas=betas)
    if settings["zero_optimization"]["stage"] == 0:
        _clip_at_step(optimizer, clip=clip)
    _set_timeout(timeout_s)
    with _quietly(), _failed_build_is_an_error():
        engine, *_ = deepspeed.initialize(
            model=method, optimizer=optimizer, config=settings, dist_init_required=False
        )
    return engine


def gradient_norm(engine: Any) -> float:
    """Norm of the last update's gradient before clipping: that of all ranks' mean loss.

    It is infinite where the update was skipped: on every rank, as soon as one rank's gradient had
    a number that is none. Nothing has moved then, Adam's averages included.
    """
    norm = float(engine.get_global_grad_norm())
    return norm if engine.was_step_applied() and math.isfinite(norm) else math.inf


def poison(loss: Tensor) -> Tensor:
    """A loss that is not finite gets a gradient that is none, whatever its formula would give.

    The gradient's reduction then tells every rank to skip the update.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def _clip_at_step(optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
    """Clip just before each step, and note the norm where DeepSpeed looks for it.

    Stage 0 alone needs it: DeepSpeed would clip there, but throws the norm away, and applies what
    is not finite. A parameter without gradient is passed over by AdamW.
    """

    def measure(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        optimizer._global_grad_norm = norm
        if not math.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None

    optimizer.register_step_pre_hook(measure)


def _set_timeout(timeout_s: float) -> None:
    """Give DeepSpeed its group of all ranks: it would make one that waits for half an hour."""
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = torch.distributed.new_group(timeout=timedelta(seconds=timeout_s))


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else _COMPILERS))


@contextlib.contextmanager
def _quietly() -> Any:
    """Keep greetings off the console; DeepSpeed's warnings still come through its logger."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _failed_build_is_an_error() -> Iterator[None]:
    """Turn the compiler's pages into the last line of theirs that tells of an error."""
    try:
        yield
    except RuntimeError as error:
        if "building extension" not in str(error):
            raise
        told = [line for line in str(error).splitlines() if "error" in line.lower()]
        raise EngineError(
            f"DeepSpeed's C++ extension could not be built ({told[-1].strip()}); "
            "SCANFM_DEBUG=1 shows all the compiler said"
        ) from error
