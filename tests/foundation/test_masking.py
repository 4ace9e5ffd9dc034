import pytest
import torch

from foundation.objective.masking import block_mask, boxes, random_mask

POSITIONS = torch.tensor([3, 11, 4])


def test_the_count_is_exact_and_the_parts_complete() -> None:
    token_mask = random_mask(POSITIONS, num_tokens=30, mask_ratio=0.7, seed=0)
    assert token_mask.keep.shape == (3, 9)
    assert token_mask.mask.sum(1).tolist() == [21, 21, 21]
    for keep, mask in zip(token_mask.keep, token_mask.mask, strict=True):
        assert torch.equal(keep, (~mask).nonzero().flatten())


def test_a_mask_follows_from_seed_and_position_alone() -> None:
    torch.manual_seed(1)
    whole = random_mask(POSITIONS, num_tokens=30, mask_ratio=0.5, seed=7)
    torch.manual_seed(2)
    part = random_mask(POSITIONS[1:], num_tokens=30, mask_ratio=0.5, seed=7)
    assert torch.equal(whole.keep[1:], part.keep)
    other = random_mask(POSITIONS, num_tokens=30, mask_ratio=0.5, seed=8)
    assert not torch.equal(whole.keep, other.keep)
    assert len(whole.keep.unique(dim=0)) == 3


def test_every_patch_is_hidden_as_often() -> None:
    mask = random_mask(torch.arange(2000), num_tokens=10, mask_ratio=0.75, seed=0).mask
    # 8 of 10 (round half to even of 7.5) are hidden; four standard errors of the share: 0.036.
    torch.testing.assert_close(mask.float().mean(0), torch.full((10,), 0.8), atol=0.036, rtol=0)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 1), (0.99, 3)])
def test_something_is_always_hidden_and_something_seen(ratio: float, hidden: int) -> None:
    mask = random_mask(POSITIONS, num_tokens=4, mask_ratio=ratio, seed=0).mask
    assert mask.sum(1).tolist() == [hidden] * 3


def test_a_crop_of_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="make crop_shape larger"):
        random_mask(POSITIONS, num_tokens=1, mask_ratio=0.5, seed=0)


GRID = (2, 5, 7)


@pytest.mark.parametrize("mask_ratio", [0.1, 0.5, 0.75, 0.97])
def test_boxes_hide_an_exact_count(mask_ratio: float) -> None:
    keep, mask = block_mask(torch.arange(40), grid=GRID, mask_ratio=mask_ratio, seed=0)
    want = min(max(round(70 * mask_ratio), 1), 69)
    assert mask.sum(1).tolist() == [want] * 40
    for row, places in zip(mask, keep, strict=True):
        assert torch.equal(places, (~row).nonzero().flatten())
    assert len(mask.unique(dim=0)) > 30


def test_boxes_hang_together_and_single_patches_do_not() -> None:
    """Share of hidden neighbours of a hidden patch, along each axis of the grid."""

    def neighbours(mask: torch.Tensor, axis: int) -> float:
        cells = mask.view(-1, *GRID).float()
        size = cells.shape[axis]
        first, second = cells.narrow(axis, 0, size - 1), cells.narrow(axis, 1, size - 1)
        return float((first * second).sum() / first.sum())

    positions = torch.arange(200)
    block = block_mask(positions, grid=GRID, mask_ratio=0.4, seed=1).mask
    single = random_mask(positions, num_tokens=70, mask_ratio=0.4, seed=1).mask
    for axis in (1, 2, 3):
        assert neighbours(block, axis) > neighbours(single, axis) + 0.05


def test_draws_of_one_sample_are_independent_and_repeatable() -> None:
    for draw_mask in (
        lambda positions, draw: block_mask(positions, grid=GRID, mask_ratio=0.5, seed=3, draw=draw),
        lambda positions, draw: random_mask(
            positions, num_tokens=70, mask_ratio=0.5, seed=3, draw=draw
        ),
    ):
        first = draw_mask(POSITIONS, 0).mask
        assert torch.equal(first[1:], draw_mask(POSITIONS[1:], 0).mask)
        assert (first != draw_mask(POSITIONS, 1).mask).any(dim=1).all()


@pytest.mark.parametrize("num_hidden", [0, 1, 69, 70])
def test_boxes_may_hide_nothing_or_everything(num_hidden: int) -> None:
    hidden = boxes(GRID, num_hidden=num_hidden, generator=torch.Generator().manual_seed(0))
    assert hidden.sum() == num_hidden
