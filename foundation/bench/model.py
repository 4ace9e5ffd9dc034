"""A method's update of a batch that lies on the device already: no reading, no waiting."""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from foundation.bench.cases import Case, Extent, build, synthetic_batch
from foundation.bench.clock import Ground, resident_bytes, timed
from foundation.bench.flops import work_of
from foundation.bench.results import Peak, StepFigures
from foundation.methods import Method
from foundation.vit import set_execution
from shards.bench.timing import spread
from shards.streaming.batch import CropBatch

_BETAS = (0.9, 0.95)
_LR = 1e-4
_WEIGHT_DECAY = 0.05

Update = Callable[[CropBatch], None]


def step_figures(
    case: Case, *, ground: Ground, extent: Extent, peak: Peak, compiled: bool
) -> StepFigures:
    """Measure one case; on a CPU in a process of its own, whose memory is the case's alone."""
    if ground.device.type == "cuda":
        return measure(case, ground, extent, peak, compiled)
    if not extent.alone:
        found = measure(case, ground, extent, peak, compiled)
        return found.model_copy(update={"peak_memory_bytes": None})
    # The server loads the libraries once; what it forks for a case has used no memory yet.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, case, ground, extent, peak, compiled).result()


def measure(case: Case, ground: Ground, extent: Extent, peak: Peak, compiled: bool) -> StepFigures:
    """Measure one case in this process."""
    build(case)  # what the first use of a library takes is not the case's
    gc.collect()
    before = _start_memory(ground)
    method = start(case, ground, compiled=compiled)
    update = updates_of(method, ground)
    crops = synthetic_batch(case.crop_shape, size=case.micro_batch, modality="CT")
    batch = crops.to(ground.device)
    for _ in range(extent.warmup):
        update(batch)
    taken = spread([timed(lambda: update(batch), ground) for _ in range(extent.repeats)])
    work, volumes_per_s = work_of(method), case.micro_batch / taken.median
    return StepFigures(
        case=case,
        precision=ground.precision,
        compiled=compiled,
        step_s=taken,
        flops_per_volume=work.flops,
        volumes_per_s=volumes_per_s,
        tokens_per_s=volumes_per_s * work.tokens,
        utilisation=volumes_per_s * work.flops / peak.flops_per_s,
        peak_memory_bytes=_memory_since(before, ground),
    )


def start(case: Case, ground: Ground, *, compiled: bool) -> Method:
    """The method on the device, ready to train."""
    torch.compiler.reset()
    torch.manual_seed(0)
    method = build(case)
    assert isinstance(method, torch.nn.Module)
    set_execution(method, compile_blocks=compiled, checkpoint_blocks=False)
    method.to(ground.device)
    return method


def updates_of(method: Method, ground: Ground) -> Update:
    """What the training loop does with a batch, on one rank and without DeepSpeed around it."""
    groups = [dict(group) for group in method.param_groups(_WEIGHT_DECAY)]
    optimizer = torch.optim.AdamW(groups, lr=_LR, betas=_BETAS)

    def update(batch: CropBatch) -> None:
        with ground.autocast():
            loss, _ = method(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(0)

    return update


def _start_memory(ground: Ground) -> int | None:
    if ground.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ground.device)
        return 0
    return resident_bytes("VmRSS")


def _memory_since(before: int | None, ground: Ground) -> int | None:
    if ground.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ground.device)
    most = resident_bytes("VmHWM")
    return None if most is None or before is None else most - before
