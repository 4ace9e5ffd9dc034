"""All measurements of one run of the bench, one after the other."""

import datetime
import gc
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from foundation.bench.augmentation import augmentation_ratio
from foundation.bench.cases import Extent
from foundation.bench.clock import Ground, describe, matmul_peak
from foundation.bench.flow import flow_figures, write_shards
from foundation.bench.model import step_figures
from foundation.bench.packing import packing_ratio
from foundation.bench.results import (
    FlowFigures,
    Peak,
    Ratio,
    Results,
    StepFigures,
    requirements,
)

Found = TypeVar("Found")
Jobs = Mapping[str, Callable[[], Found]]


def run(ground: Ground, *, extent: Extent, is_quick: bool) -> Results:
    """Measure, saying what."""
    left_out: list[str] = []
    peak = matmul_peak(ground, edge=extent.matmul, repeats=extent.repeats)
    steps = _each(_step_jobs(ground, extent, peak), left_out)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), extent)
        flows = _each(_flow_jobs(ground, extent, shards), left_out)
    ratios = _each(_ratio_jobs(ground, extent), left_out)
    device = describe(ground)
    return Results(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        quick=is_quick,
        device=device,
        peak=peak,
        steps=steps,
        flows=flows,
        ratios=ratios,
        left_out=tuple(left_out),
        requirements=requirements(device, steps=steps, flows=flows, ratios=ratios),
    )


def _step_jobs(ground: Ground, extent: Extent, peak: Peak) -> Jobs[StepFigures]:
    return {
        f"model only, {case.method} {case.size}, {case.grain}{', compiled' * compiled}": partial(
            step_figures, case, ground=ground, extent=extent, peak=peak, compiled=compiled
        )
        for case in extent.cases
        for compiled in extent.compiled
    }


def _flow_jobs(ground: Ground, extent: Extent, shards: Path) -> Jobs[FlowFigures]:
    return {
        f"end to end, {case.method} {case.size}, {case.grain}": partial(
            flow_figures, case, ground=ground, extent=extent, shards=shards
        )
        for case in extent.flows
    }


def _ratio_jobs(ground: Ground, extent: Extent) -> Jobs[Ratio]:
    """Of the DINO cases that are fed by the stream; views do not depend on the backbone."""
    cases = [case for case in extent.flows if case.method == "dino"]
    packing = {
        f"packed student, {case.size}, {case.grain}": partial(
            packing_ratio, case, ground=ground, extent=extent
        )
        for case in cases
    }
    views = {
        f"views, {case.grain}": partial(augmentation_ratio, case, ground=ground, extent=extent)
        for case in cases[-1:]
    }
    return {**packing, **views}


def _each(jobs: Jobs[Found], left_out: list[str]) -> tuple[Found, ...]:
    """What fits is measured; what does not, is named in ``left_out``."""
    found = []
    for name, measure in jobs.items():
        print(f"measures {name}", flush=True)
        try:
            found.append(measure())
        except torch.cuda.OutOfMemoryError:
            left_out.append(f"{name}: needs more memory than the device has")
        gc.collect()
    return tuple(found)
