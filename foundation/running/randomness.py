"""Randomness that follows from a sample's position in the stream, never from a global generator.

So a mask or a view is the same whatever rank, worker or resumed run computes it.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW_32_BITS = 0xFFFFFFFF


def sample_seed(seed: int, *, position: int, purpose: str) -> int:
    """63 bits for one use of one sample; different purposes are independent."""
    text = f"{seed}/{position}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def sample_generator(seed: int, *, position: int, purpose: str) -> torch.Generator:
    """A CPU generator for the few numbers that one use of one sample needs."""
    generator = torch.Generator()
    return generator.manual_seed(sample_seed(seed, position=position, purpose=purpose))


def path_draws(seed: int, *, positions: Sequence[int], num_views: int, num_values: int) -> Tensor:
    """Uniform numbers for what layers leave out of each view of each sample.

    They follow from the sample, so they are the same however a batch is cut up over ranks.

    Args:
        seed: Of the run.
        positions: Of B samples in the stream.
        num_views: V.
        num_values: For each.

    Returns:
        (V B, num_values) float32 in (0, 1], view after view, on the CPU.
    """
    seeds = [
        sample_seed(seed, position=position, purpose=f"paths of view {view}")
        for view in range(num_views)
        for position in positions
    ]
    first, _ = _hashed(torch.tensor(seeds), count=num_values)
    return _unit(first)


def normal_field(seeds: Tensor, *, num_values: int) -> Tensor:
    """Standard normal noise as a pure function of (seed, index), on the seeds' device.

    A counter is hashed twice for two uniforms, and Box-Muller turns them into two normals; CPU and
    GPU agree to rounding, and no field is sent to the device.

    Args:
        seeds: (B,) int64, not negative.
        num_values: V.

    Returns:
        (B, V) float32.
    """
    first, second = _hashed(seeds, count=(num_values + 1) // 2)
    radius = (-2.0 * _unit(first).log()).sqrt()
    angle = 2.0 * math.pi * _unit(second)
    normals = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normals[:, :num_values]


def _hashed(seeds: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Two 32-bit integers for each of ``count`` indices of each seed, (B, count) both."""
    counter = torch.arange(count, dtype=torch.int64, device=seeds.device)
    low, high = (seeds & _LOW_32_BITS)[:, None], (seeds >> 32)[:, None]
    first = _mix(_mix(counter ^ low) ^ high)
    return first, _mix(first ^ _LOW_32_BITS)


def _mix(value: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, a bijection, in int64 arithmetic."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _LOW_32_BITS
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _LOW_32_BITS
    return value ^ (value >> 16)


def _unit(value: Tensor) -> Tensor:
    """32-bit integers to floats in (0, 1]."""
    return (value.float() + 0.5) * 2.0**-32
