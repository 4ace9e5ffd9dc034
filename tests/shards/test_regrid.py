"""Resampling against the definition, written out with dense matrices, and against torchio."""

import math

import numpy as np
import pytest
import torch
import torchio

from shards.measure.regrid import new_shape, regrid

SHAPE = (23, 30, 17)
SPACING = (2.0, 0.75, 1.25)


def _volume(seed: int = 3) -> np.ndarray:
    """Smooth structure with noise, so that both parts of the filter matter."""
    d, h, w = np.meshgrid(*(np.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 40, SHAPE)
    return (300 * np.sin(2 * d + h) * np.cos(w) + noise).astype(np.float32)


def _matrix(length: int, count: int, old_mm: float, new_mm: float) -> np.ndarray:
    """(count, length): a Gaussian with the edge going on, then linear between two samples."""
    pad = 40
    smooth = np.eye(length + 2 * pad)
    if new_mm > old_mm and length > 1:
        sigma = math.sqrt((new_mm / old_mm) ** 2 - 1) / 2.3548200450309493
        steps = np.subtract.outer(np.arange(length + 2 * pad), np.arange(length + 2 * pad))
        smooth = np.exp(-(steps**2) / (2 * sigma**2))
        smooth /= smooth.sum(axis=1, keepdims=True)
    edges = np.zeros((length + 2 * pad, length))
    edges[np.arange(length + 2 * pad), np.clip(np.arange(-pad, length + pad), 0, length - 1)] = 1
    linear = np.zeros((count, length + 2 * pad))
    for row in range(count):
        place = (length - 1) / 2 + (row - (count - 1) / 2) * new_mm / old_mm
        place = min(max(place, 0), length - 1) + pad
        below = math.floor(place)
        linear[row, below] += below + 1 - place
        linear[row, below + 1] += place - below
    return linear @ smooth @ edges


@pytest.mark.parametrize(
    "target", [(1.0, 1.0, 1.0), (3.1, 2.0, 1.25), (2.0, 0.5, 4.0), (7.0, 1.5, 1.5)]
)
def test_against_dense_matrices(target: tuple[float, float, float]) -> None:
    voxels = _volume()
    found = regrid(voxels, spacing_mm=SPACING, target_mm=target)
    shape = tuple(
        math.floor(n * old / new) for n, old, new in zip(SHAPE, SPACING, target, strict=True)
    )
    d, h, w = (_matrix(*axis) for axis in zip(SHAPE, shape, SPACING, target, strict=True))
    expected = np.einsum("ad,bh,cw,dhw->abc", d, h, w, voxels.astype(np.float64), optimize=True)
    assert found.shape == shape
    assert found.dtype == np.float32
    # The reference's Gaussian is not cut at four deviations: 6e-5 of the range.
    assert np.abs(found - expected).max() < 2e-4 * np.ptp(voxels)
    whole = np.rint(voxels).astype(np.int16)
    rounded = regrid(whole, spacing_mm=SPACING, target_mm=target, is_rounded=True)
    fine = regrid(whole, spacing_mm=SPACING, target_mm=target)
    assert rounded.dtype == np.int16
    assert np.array_equal(rounded, np.rint(fine))


def test_it_agrees_with_torchio() -> None:
    voxels, target = _volume(), (2.5, 1.5, 1.5)
    image = torchio.ScalarImage(
        tensor=torch.from_numpy(voxels)[None], affine=np.diag([*SPACING, 1.0])
    )
    expected = torchio.Resample(target, antialias=True)(image).data[0].numpy()
    found = regrid(voxels, spacing_mm=SPACING, target_mm=target)
    assert found.shape == expected.shape
    # Its recursive filter is an approximation of the Gaussian.
    difference = np.abs(found - expected)
    assert difference.max() < 0.03 * np.ptp(voxels)
    assert difference.mean() < 0.002 * np.ptp(voxels)


def test_a_flat_volume_stays_flat_and_no_value_is_new() -> None:
    flat = np.full(SHAPE, -1024, dtype=np.int16)
    found = regrid(flat, spacing_mm=SPACING, target_mm=(3.3, 1.9, 0.7), is_rounded=True)
    assert (found == -1024).all()
    ends = np.random.default_rng(0).choice(np.array([-32768, 32767], np.int16), SHAPE)
    rough = regrid(ends, spacing_mm=SPACING, target_mm=(3.3, 1.9, 0.7))
    assert -32768 <= rough.min() < rough.max() <= 32767


def test_shapes() -> None:
    assert new_shape((10, 1, 7), (0.3, 5.0, 1.0), (1.0, 1.0, 2.0)) == (3, 1, 3)
    assert new_shape((3, 9, 9), (0.1, 1.0, 1.0), (1.0, 1.0, 1.0)) == (1, 9, 9)
    one = regrid(np.ones((1, 8, 6), np.float32), spacing_mm=(4, 1, 1), target_mm=(2, 2, 1))
    assert one.shape == (1, 4, 6)
    assert np.array_equal(one, np.ones_like(one))
