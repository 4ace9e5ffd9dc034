"""Randomness that follows from a sample's position in the stream, never from a global generator.

So a mask or a view is the same whatever rank, worker or resumed run computes it.
"""

import hashlib
import math

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
    pairs = (num_values + 1) // 2
    counter = torch.arange(pairs, dtype=torch.int64, device=seeds.device)
    low, high = (seeds & _LOW_32_BITS)[:, None], (seeds >> 32)[:, None]
    first = _mix(_mix(counter ^ low) ^ high)
    second = _mix(first ^ _LOW_32_BITS)
    radius = (-2.0 * _unit(first).log()).sqrt()
    angle = 2.0 * math.pi * _unit(second)
    normals = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normals[:, :num_values]


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
