"""Time, precision and memory, on a GPU and without one."""

import platform
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from foundation.bench.results import Device, Peak

_LIBRARIES = ("lightly", "monai", "numpy", "timm", "torch")  # in the order of the JSON
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Ground(NamedTuple):
    """A device and the precision that layers compute in there: parameters stay fp32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``."""
        return _PRECISIONS[self.dtype]

    def autocast(self) -> AbstractContextManager[object]:
        """As the engine does it."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    def finished(self) -> None:
        """Wait for what the device still has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ground_of(kind: str) -> Ground:
    """bf16 on a GPU, fp32 without one."""
    if kind == "cpu":
        return Ground(torch.device("cpu"), torch.float32)
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; take --device cpu")
    return Ground(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16)


def timed(run: Callable[[], object], ground: Ground) -> float:
    """Seconds until the device is done with it."""
    ground.finished()
    began = time.perf_counter()
    run()
    ground.finished()
    return time.perf_counter() - began


def matmul_peak(ground: Ground, *, edge: int, repeats: int) -> Peak:
    """The fastest of some products: what the device can do at best, in its precision."""
    # Of ones alone some GPUs draw less power, and are faster than they are at work.
    generator = torch.Generator(ground.device).manual_seed(0)
    drawn = torch.randn(2, edge, edge, generator=generator, device=ground.device)
    left, right = drawn.to(ground.dtype)
    taken = [timed(lambda: left @ right, ground) for _ in range(repeats + 1)][1:]
    return Peak(edge=edge, precision=ground.precision, flops_per_s=2.0 * edge**3 / min(taken))


def resident_bytes(name: str) -> int | None:
    """``VmRSS``, memory of this process now, or ``VmHWM``, the most so far; None off Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def describe(ground: Ground) -> Device:
    """What a reader needs to judge the figures."""
    is_gpu = ground.device.type == "cuda"
    properties = torch.cuda.get_device_properties(ground.device) if is_gpu else None
    return Device(
        kind="cuda" if is_gpu else "cpu",
        name=properties.name if properties else _cpu_name(),
        memory_bytes=properties.total_memory if properties else None,
        threads=torch.get_num_threads(),
        system=platform.system(),
        architecture=platform.machine(),
        python=platform.python_version(),
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.machine()
