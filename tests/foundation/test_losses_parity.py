"""Two ranks compute what one process computes on the joined batch: every loss, every gradient."""

TOLERANCE = 2e-5
"""Of the largest number of a gradient: roundings of float32, through a whole backbone."""


def test_two_ranks_equal_one_on_the_joined_batch(on_two_ranks) -> None:
    lines = on_two_ranks("losses_parity.py")
    assert sorted(line["rank"] for line in lines) == [0, 1]
    for line in lines:
        wrong = {name: size for name, size in line["found"].items() if not size < TOLERANCE}
        assert wrong == {}
        assert len(line["found"]) == 11
        assert min(line["moved"].values()) > 0.01, "a case whose numbers are 0 shows nothing"
