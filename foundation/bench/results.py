"""What a run of the bench found, as it is written down, and what is required of it."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from foundation.bench.cases import Case, Size
from recipes.load import Section
from shards.bench.timing import Spread, spread
from shards.files import write_json

Comparison = Literal["packing", "augmentation"]

_REQUIRED_CROP = (96, 96, 96)
_REQUIRED_SIZE = "large"


class Device(Section):
    """Where it was measured, without names of machines."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int | None
    """of a GPU"""
    threads: int
    system: str
    architecture: str
    python: str
    libraries: dict[str, str]


class Peak(Section):
    """The fastest product of two square matrices in this run."""

    edge: int
    precision: str
    flops_per_s: float


class StepFigures(Section):
    """Forward, backward and AdamW of a batch that lies on the device, views included."""

    case: Case
    precision: str
    compiled: bool
    step_s: Spread
    flops_per_volume: float
    """that the method needs, of visible tokens alone for a MAE"""
    volumes_per_s: float
    tokens_per_s: float
    """patches through the encoder that learns"""
    utilisation: float
    """of the peak"""
    peak_memory_bytes: int | None
    """of the GPU, or of the process beyond its libraries; None: the system does not tell"""


class FlowFigures(Section):
    """The same, fed from shards by the stream; page cache warm."""

    case: Case
    precision: str
    workers: int
    step_s: Spread
    volumes_per_s: float
    wait_share: float
    """of the time, without a batch"""


class Ratio(Section):
    """Two ways to do one thing, which took turns."""

    what: Comparison
    setting: str
    size: Size | None
    """of the backbone, where there is one"""
    ours_s: Spread
    theirs_s: Spread
    ratio: float
    """how many times as long the other takes: the median over the turns"""


class Requirement(Section):
    """A promise, which holds on a GPU; None: not measured."""

    name: str
    required: str
    measured: float | None
    met: bool | None


class Results(Section):
    """One run."""

    date: str
    quick: bool
    device: Device
    peak: Peak
    steps: tuple[StepFigures, ...]
    flows: tuple[FlowFigures, ...]
    ratios: tuple[Ratio, ...]
    left_out: tuple[str, ...]
    """cases that did not fit, with the reason"""
    requirements: tuple[Requirement, ...]


def compared(
    what: Comparison,
    *,
    size: Size | None,
    setting: str,
    ours: Sequence[float],
    theirs: Sequence[float],
) -> Ratio:
    """Of the seconds that each took in each turn."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return Ratio(
        what=what,
        setting=setting,
        size=size,
        ours_s=spread(ours),
        theirs_s=spread(theirs),
        ratio=ratio,
    )


def requirements(
    device: Device,
    *,
    steps: Iterable[StepFigures],
    flows: Iterable[FlowFigures],
    ratios: Iterable[Ratio],
) -> tuple[Requirement, ...]:
    """Judge a run; on a CPU nothing is required, and nothing counts as measured."""
    if device.kind != "cuda":
        steps, flows, ratios = (), (), ()
    steps, ratios = tuple(steps), tuple(ratios)
    used = {
        name: [each.utilisation for each in steps if each.case.method == name and _counts(each)]
        for name in ("mae", "dino")
    }
    waits = [each.wait_share for each in flows if each.case.size == _REQUIRED_SIZE]
    packing = [
        each.ratio for each in ratios if each.what == "packing" and each.size == _REQUIRED_SIZE
    ]
    augmentation = [each.ratio for each in ratios if each.what == "augmentation"]
    best = "best of patch 8 and 16"
    return (
        _at_least(0.45, f"utilisation, MAE large at 96^3, {best}", used["mae"]),
        _at_least(0.35, f"utilisation, DINO large at 96^3, {best}", used["dino"]),
        _below(0.02, "share of a step spent waiting for data, large", waits),
        _at_least(1.3, "separate student calls, in packed ones, large", packing),
        _at_least(10.0, "MONAI's per-sample transforms, in batched ones", augmentation),
    )


def save_results(path: Path, results: Results) -> None:
    """JSON with sorted keys."""
    write_json(path, results.model_dump(mode="json"))


def load_results(path: Path) -> Results:
    """What :func:`save_results` wrote.

    Raises:
        ValueError: It is something else.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no results of foundation.bench: {error}") from error


def _counts(figures: StepFigures) -> bool:
    case = figures.case
    return (
        case.size == _REQUIRED_SIZE
        and case.crop_shape == _REQUIRED_CROP
        and figures.precision == "bf16"
    )


def _at_least(limit: float, name: str, values: list[float]) -> Requirement:
    """Of alternatives the best one is promised."""
    found = max(values, default=None)
    met = None if found is None else found >= limit
    return Requirement(name=name, required=f">= {limit:g}", measured=found, met=met)


def _below(limit: float, name: str, values: list[float]) -> Requirement:
    """Of several the worst one counts."""
    found = max(values, default=None)
    met = None if found is None else found < limit
    return Requirement(name=name, required=f"< {limit:g}", measured=found, met=met)
