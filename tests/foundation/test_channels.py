import torch

from foundation.network.channels import drop_channels

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def _dropped(rate: float, *, copies: int = 1, purpose: str = "x") -> torch.Tensor:
    present = PRESENT.repeat(copies, 1)
    positions = torch.arange(len(present))
    return drop_channels(present, positions=positions, rate=rate, seed=0, purpose=purpose)


def test_no_rate_drops_nothing() -> None:
    assert torch.equal(_dropped(0.0), PRESENT)


def test_one_channel_of_those_that_are_there_always_stays() -> None:
    kept = _dropped(0.99, copies=200)
    present = PRESENT.repeat(200, 1)
    assert not (kept & ~present).any()
    assert kept.any(dim=1).all()
    assert kept.sum(dim=1).float().mean() < 1.1
    # Whichever stays is drawn evenly: three standard errors of 200 thirds are 0.1.
    assert ((kept[0::3].float().mean(dim=0) - 1 / 3).abs() < 0.1).all()


def test_channels_are_dropped_at_the_rate_and_by_position_and_purpose() -> None:
    kept = _dropped(0.3, copies=300)
    # Of three: a mean of 0.9 dropped, less the one in 37 that keeps the last; 0.7009 stays.
    assert abs(kept[0::3].float().mean() - 0.709) < 0.05
    again = drop_channels(
        PRESENT[1:], positions=torch.tensor([1, 2]), rate=0.3, seed=0, purpose="x"
    )
    assert torch.equal(again, kept[1:3])
    assert not torch.equal(kept, _dropped(0.3, copies=300, purpose="y"))
