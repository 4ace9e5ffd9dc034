"""Which source stands at a position of a weighted mixture, with exact accounting.

Positions are dealt in blocks. Up to the end of any block each source has had its share of all
positions so far, off by less than one; within a block their order is a seeded shuffle. So both the
source at a position and how often it stood before follow from the position alone.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, lcm
from typing import NamedTuple

import numpy as np

from shards.streaming.order import random_words

BLOCK = 1000
"""Positions that are shuffled together, where no source is so rare that it takes more."""
RAREST = 1e-6
"""The smallest share of a mixture."""


class Turn(NamedTuple):
    """Who stands at a position."""

    source: int
    number: int
    """how often the source stood before"""


class Mixture:
    """Sources by weight.

    Attributes:
        shares: Of each source, adding up to 1.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        """Weights need not add up to 1.

        Raises:
            ValueError: There is no source, a weight is not positive, or a share is below 1e-6.
        """
        if not weights or min(weights) <= 0:
            raise ValueError(f"a mixture takes positive weights, got {list(weights)}")
        # Decimal as written (0.1 is a tenth), then whole numbers, so that no count is ever rounded.
        exact = [Fraction(repr(weight)).limit_denominator(10**9) for weight in weights]
        total = sum(exact)
        if min(exact) < total * Fraction(repr(RAREST)):
            raise ValueError(
                f"the smallest of the weights {list(weights)} is less than {RAREST:g} of all; "
                f"raise it, or leave that source out"
            )
        scale = lcm(*(each.denominator for each in exact))
        self._cumulative = list(accumulate((int(each * scale) for each in exact), initial=0))
        self._total = self._cumulative[-1]
        self._block = max(BLOCK, ceil(total / min(exact)))
        self._seed = seed
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.shares = [float(each / total) for each in exact]

    def at(self, position: int) -> Turn:
        """The source at a position."""
        if len(self.shares) == 1:
            return Turn(0, position)
        block, place = divmod(position, self._block)
        sources, before = self._dealt(block)
        source = int(sources[place])
        return Turn(source, self._before(block)[source] + int(before[place]))

    def counts(self, position: int) -> list[int]:
        """How often each source stands at the positions below ``position``."""
        if len(self.shares) == 1:
            return [position]
        block, place = divmod(position, self._block)
        within = np.bincount(self._dealt(block)[0][:place], minlength=len(self.shares))
        return [a + int(b) for a, b in zip(self._before(block), within, strict=True)]

    def _before(self, block: int) -> list[int]:
        """Counts below the first position of a block: the shares' running sums, rounded down."""
        ends = [block * self._block * each // self._total for each in self._cumulative]
        return [last - first for first, last in pairwise(ends)]

    def _dealt(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place of a block: its source, and how often that stood before in the block."""
        if block not in self._blocks:
            pairs = zip(self._before(block), self._before(block + 1), strict=True)
            quotas = [after - before for before, after in pairs]
            words = random_words(f"mixture {self._seed} {block}", self._block)
            places = np.argsort(words, kind="stable")
            sources = np.empty(self._block, dtype=np.int32)
            before = np.empty(self._block, dtype=np.int32)
            first = 0
            for source, quota in enumerate(quotas):
                own = np.sort(places[first : first + quota])
                sources[own] = source
                before[own] = np.arange(quota)
                first += quota
            near = {each: kept for each, kept in self._blocks.items() if abs(each - block) == 1}
            self._blocks = {**near, block: (sources, before)}
        return self._blocks[block]
