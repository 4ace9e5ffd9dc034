"""Which sample stands at a position of the stream, and where its crop begins.

Both are pure functions of the seed and the position: no state, no worker, no rank. A pass over the
data is an epoch; every sample stands in it once.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np


def sample_at(position: int, *, num_samples: int, seed: int) -> int:
    """Index of the sample at a global position of the endless stream."""
    epoch, place = divmod(position, num_samples)
    return int(_permutation(seed, epoch, num_samples)[place])


def crop_start(
    position: int,
    *,
    seed: int,
    shape: Sequence[int],
    crop_shape: Sequence[int],
    box: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """First voxel of the crop at a position; negative where the crop is larger than the scan.

    The crop's centre falls evenly into the foreground box; then the crop is moved inside the scan.
    Along an axis on which it does not fit it is centred.
    """
    words = _random_words(f"crop {seed} {position}", 3)
    starts = []
    for word, length, crop, (first, last) in zip(words, shape, crop_shape, box, strict=True):
        if crop >= length:
            starts.append(-((crop - length) // 2))
            continue
        centre = first + int(word) % (last - first)
        starts.append(min(max(centre - crop // 2, 0), length - crop))
    return tuple(starts)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    words = _random_words(f"order {seed} {epoch}", num_samples)
    return np.argsort(words, kind="stable")


def _random_words(purpose: str, count: int) -> np.ndarray:
    """64-bit words; numpy keeps raw bits the same over its versions, unlike its distributions."""
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count))
