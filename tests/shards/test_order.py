"""Passes, replacements and crops: pure functions, and every sample once."""

import numpy as np
import pytest

from shards.streaming.crops import Box, CropPlan, crop_extent, crop_start, cut_of, joined
from shards.streaming.order import Order

CROP = (10, 8, 6)


def test_every_sample_once_a_pass_in_a_new_order() -> None:
    passes = [
        tuple(order.sample_at(epoch * 9 + place) for place in range(9))
        for order in (Order(9, seed=1, name="0"), Order(9, seed=2, name="0"))
        for epoch in (0, 1)
    ]
    passes.append(tuple(Order(9, seed=1, name="1").sample_at(place) for place in range(9)))
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len(set(passes)) == 5


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    asked = [0, 500, 8, 9, 3, 77, 500, 17, 18, 0]
    warm = Order(9, seed=4, name="0")
    assert [warm.sample_at(turn) for turn in asked] == [
        Order(9, seed=4, name="0").sample_at(turn) for turn in asked
    ]


def test_replacements_spread_over_the_source() -> None:
    order = Order(7, seed=0, name="0")
    found = [order.replacement(3, attempt=attempt) for attempt in range(1, 200)]
    assert set(found) == set(range(7))
    assert found == [order.replacement(3, attempt=attempt) for attempt in range(1, 200)]
    assert found != [order.replacement(4, attempt=attempt) for attempt in range(1, 200)]


def _starts(*, foreground: float, box: list[tuple[int, int]], count: int = 600) -> np.ndarray:
    return np.array(
        [
            crop_start(
                position, seed=1, shape=(40, 60, 30), extent=CROP, box=box, foreground=foreground
            )
            for position in range(count)
        ]
    )


def test_crops_lie_inside_and_around_the_foreground() -> None:
    starts = _starts(foreground=1.0, box=[(25, 32), (5, 12), (0, 30)])
    assert (starts >= 0).all()
    assert (starts + CROP <= np.array([40, 60, 30])).all()
    centres = starts + np.array([5, 4, 3])
    assert set(centres[:, 0]) == set(range(25, 32))
    assert set(centres[:, 1]) == set(range(5, 12))
    assert len(set(starts[:, 2])) == 25  # of 30 centres, those at the border are moved inside


@pytest.mark.parametrize("foreground", [0.0, 0.25, 0.8])
def test_so_many_crops_are_centred_in_the_foreground(foreground: float) -> None:
    """The box holds 1 in 40 of the places along the first axis, so few fall in by chance."""
    starts = _starts(foreground=foreground, box=[(20, 21), (0, 60), (0, 30)], count=2000)
    share = (starts[:, 0] == 15).mean()
    assert share == pytest.approx(foreground + (1 - foreground) / 40, abs=0.04)


def test_a_crop_that_does_not_fit_is_centred() -> None:
    start = crop_start(0, seed=0, shape=(4, 9, 7), extent=(7, 8, 7), box=[(0, 4), (0, 9), (0, 7)])
    assert start[::2] == (-1, 0)


def test_millimetres_are_each_scans_own_voxels() -> None:
    plan = CropPlan(shape=(16, 24, 32), size_mm=(30.0, None, 33.0))
    assert crop_extent(plan, spacing_mm=(3.0, 1.0, 1.5)) == (10, 24, 22)
    assert crop_extent(plan, spacing_mm=(80.0, 1.0, 0.5)) == (1, 24, 66)


def test_a_cut_is_the_part_inside() -> None:
    cut = cut_of(Box((-2, 3, 5), (7, 4, 6)), shape=(9, 14, 8))
    assert cut.first.tolist() == [0, 3, 5]
    assert cut.stop.tolist() == [5, 7, 8]
    assert cut.inside.tolist() == [[2, 7], [0, 4], [0, 3]]
    with pytest.raises(ValueError, match="lies outside"):
        cut_of(Box((9, 0, 0), (2, 2, 2)), shape=(9, 14, 8))


def test_cuts_are_joined_where_that_is_no_more_work() -> None:
    def cuts(*starts: tuple[int, int, int]):
        return [cut_of(Box(start, (4, 5, 6)), shape=(40, 40, 40)) for start in starts]

    first, stop = joined(cuts((0, 0, 0), (4, 0, 0)))
    assert (first.tolist(), stop.tolist()) == ([0, 0, 0], [8, 5, 6])
    assert joined(cuts((0, 0, 0), (5, 0, 0))) is None
    assert joined(cuts((3, 1, 2)))[0].tolist() == [3, 1, 2]
