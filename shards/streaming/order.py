"""Which sample a source shows at which of its turns, and every other draw of the stream.

Pure functions of the seed and of numbers that follow from the position: no state, no worker, no
rank. A pass over a source is an epoch; every sample stands in it once.
"""

import hashlib

import numpy as np


class Order:
    """The order in which one source shows its samples, pass after pass.

    Attributes:
        size: Samples of the source.
    """

    def __init__(self, size: int, *, seed: int, name: str) -> None:
        """``name`` keeps sources of one size apart."""
        self.size = size
        self._seed, self._name = seed, name
        self._passes: dict[int, np.ndarray] = {}

    def sample_at(self, turn: int) -> int:
        """Which of ``size`` samples is shown at the source's ``turn``, counted from 0."""
        epoch, place = divmod(turn, self.size)
        return int(self._permutation(epoch)[place])

    def replacement(self, turn: int, *, attempt: int) -> int:
        """Which sample is tried instead of a damaged one; the first ``attempt`` is 1."""
        word = random_words(f"replacement {self._seed} {self._name} {turn} {attempt}", 1)[0]
        return int(word % np.uint64(self.size))

    def _permutation(self, epoch: int) -> np.ndarray:
        """Kept for the current pass and the one beside it, as a batch can lie across two."""
        if epoch not in self._passes:
            words = random_words(f"order {self._seed} {self._name} {epoch}", self.size)
            near = {each: kept for each, kept in self._passes.items() if abs(each - epoch) == 1}
            self._passes = {**near, epoch: np.argsort(words, kind="stable").astype(np.int32)}
        return self._passes[epoch]


def random_words(purpose: str, count: int) -> np.ndarray:
    """64-bit words; numpy keeps raw bits the same over its versions, unlike its distributions."""
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count))
