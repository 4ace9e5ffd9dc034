"""Percentiles by counting are those of numpy, bit for bit in double precision."""

import numpy as np
import pytest

from shards.measure.percentile import PIECE, counts_of, percentiles

WANTED = [0, 0.5, 37.3, 50, 99.5, 100]


def _values(kind: str, count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(0, 700, count)
    if seed % 2:
        values[random.random(count) < 0.6] = 0  # one value holds most voxels
    if seed % 3 == 0:
        values = 1 + values / 1e6  # all in one or two bins of the upper bits
    return values.astype(kind)


@pytest.mark.parametrize("kind", ["int16", "float32", "float64"])
def test_they_are_those_of_numpy(kind: str) -> None:
    for seed, count in enumerate((1, 2, 3, 7, 1000, 20001)):
        values = _values(kind, count, seed)
        skip = (seed * 5) % count
        expected = np.percentile(np.sort(values)[skip:].astype(np.float64), WANTED)
        found = percentiles(values.reshape(count, 1, 1), WANTED, skip=skip)
        assert found == pytest.approx(expected, rel=1e-15, abs=0)


def test_signs_and_the_order_in_memory() -> None:
    values = np.array([-3e38, -2.5, -0.0, 0.0, 1e-45, 3e38], np.float32).reshape(1, 2, 3)
    assert percentiles(values, [0, 20, 100]) == pytest.approx([-3e38, -2.5, 3e38], rel=1e-7)
    turned = np.arange(24, dtype=np.int16).reshape(2, 3, 4)[::-1, :, ::-1].transpose(2, 0, 1)
    assert percentiles(turned, [0, 50, 100]) == [0, 11.5, 23]


def test_volumes_of_several_pieces() -> None:
    values = (np.arange(PIECE + 7) % 5).astype(np.int16)
    counts = counts_of(values)
    assert counts[32768:32773].tolist() == np.bincount(values).tolist()
    assert counts.sum() == PIECE + 7
    assert percentiles(values.astype(np.float32), [0, 50, 100]) == [0, 2, 4]
