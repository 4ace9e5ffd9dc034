"""The rank that works longest is named, not one that waits for it."""

from foundation.watching.stopwatch import Times
from foundation.watching.stragglers import (
    Straggler,
    compact,
    find_straggler,
    with_communication,
)


def times(wait: float, *, forward: float = 2.0, blocked: float = 0.0) -> Times:
    """Of an update: what a rank is faster, it is blocked in the backward pass."""
    whole = {"wait": wait, "forward": forward, "backward": 3.0 + blocked, "decode": 9.0}
    return Times(whole, {"backward": blocked} if blocked else {})


def test_the_slow_rank_is_named_with_its_stretch() -> None:
    ranks = [times(1, blocked=2), times(3), times(1, blocked=2)]
    assert find_straggler(ranks) == Straggler(1, "wait", 2.0, 0.3333)
    assert find_straggler([times(1), times(1, forward=4)]) == Straggler(1, "forward", 2.0, 0.3333)


def test_ranks_within_a_tenth_have_no_straggler() -> None:
    assert find_straggler([times(1), times(1.5), times(1.2)]) is None
    assert find_straggler([times(1)]) is None
    # Equal work of their own, whoever was blocked for longer.
    assert find_straggler([times(1), times(1, blocked=50)]) is None


def test_a_line_holds_every_ranks_seconds() -> None:
    ranks = [times(1, blocked=2), times(3.00004)]
    assert compact(ranks) == {
        "wait": [1, 3.0],
        "forward": [2, 2],
        "backward": [5, 3],
        "decode": [9, 9],
        "communication": [2, 0],
    }
    assert with_communication(ranks[0])["communication"] == 2
    assert "communication" not in with_communication(ranks[1])
