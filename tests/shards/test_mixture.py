"""Weighted mixtures: exact counts at every position, and an independent count of them."""

from collections import Counter

import numpy as np
import pytest

from shards.streaming.mixture import Mixture


@pytest.mark.parametrize(
    "weights", [[1.0], [0.7, 0.3], [1, 1, 1], [5, 0.003, 2.2, 1 / 3], [1.0] * 37]
)
def test_counts_are_those_of_the_sequence_itself(weights: list[float]) -> None:
    mixture = Mixture(weights, seed=3)
    seen: Counter[int] = Counter()
    for position in range(2600):
        if position % 97 == 0:
            assert mixture.counts(position) == [seen[each] for each in range(len(weights))]
        source, number = mixture.at(position)
        assert number == seen[source]
        seen[source] += 1


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1, 1, 1], [5, 0.003, 2.2, 1 / 3], [1.0] * 37])
def test_shares_are_exact_in_the_long_run(weights: list[float]) -> None:
    mixture = Mixture(weights, seed=0)
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(mixture.shares, shares, rtol=1e-8)
    for blocks in (1, 2, 7, 10**6):
        position = blocks * mixture._block
        counts = np.array(mixture.counts(position))
        assert counts.sum() == position
        assert (abs(counts - shares * position) < 1 + 1e-6 * blocks).all()


def test_within_a_block_the_sources_are_shuffled_by_the_seed() -> None:
    orders = [
        tuple(
            Mixture([1, 1], seed=seed).at(position).source for position in range(first, first + 60)
        )
        for seed, first in ((0, 0), (1, 0), (0, 1000))
    ]
    assert len(set(orders)) == 3
    assert all(15 < sum(order) < 45 for order in orders)


def test_a_position_far_away_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture([2, 3, 5], seed=1)
    built: list[int] = []
    dealt = mixture._dealt
    monkeypatch.setattr(mixture, "_dealt", lambda block: (built.append(block), dealt(block))[1])
    mixture.at(10**15 + 1)
    assert built == [10**12]


@pytest.mark.parametrize(
    ("weights", "message"),
    [([], "positive weights"), ([1, 0], "positive weights"), ([1, 1e-9], "less than 1e-06 of all")],
)
def test_weights_that_make_no_mixture(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(weights, seed=0)
