import numpy as np
import pytest
import torch

from foundation.objective.ibot import IbotConfig, PatchHiding, patch_cross_entropy, patch_hiding
from recipes.load import RecipeError, parse

HIDING = PatchHiding(grid=(2, 3, 5), mask_ratio=(0.1, 0.5), mask_share=0.5, seed=0)
POSITIONS = torch.tensor([3, 11, 4, 20])


def test_half_of_two_views_is_one_of_each_scan_with_unequal_counts() -> None:
    found = HIDING(torch.arange(200), num_views=2)
    per_view = found.hidden.view(2, 200, 30).sum(2)
    assert ((per_view > 0).sum(0) == 1).all()
    assert found.num_crops == 200
    counts = per_view.sum(0)
    assert counts.min() == 3  # of 30: a tenth to a half
    assert counts.max() == 15
    assert len(counts.unique()) == 13
    # Either view as often; four standard errors of 200 draws.
    assert abs((per_view[0] > 0).float().mean().item() - 0.5) < 0.15


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_the_share_of_crops_is_kept(share: float) -> None:
    found = HIDING._replace(mask_share=share)(torch.arange(400), num_views=2)
    assert found.num_crops.item() / 800 == pytest.approx(share, abs=0.06)
    assert found.num_crops == (found.hidden.sum(1) > 0).sum()


def test_rows_and_weights_say_where_and_how_much() -> None:
    found = HIDING(POSITIONS, num_views=2)
    assert torch.equal(found.hidden.flatten()[found.rows], torch.ones(len(found.rows)).bool())
    assert len(found.rows) == found.hidden.sum()
    crop = found.rows // 30
    for index in range(8):
        in_crop = found.weight[crop == index]
        assert in_crop.sum().item() == pytest.approx(1.0 if len(in_crop) else 0.0)


def test_boxes_follow_from_seed_and_position_alone() -> None:
    whole = HIDING(POSITIONS, num_views=2).hidden.view(2, 4, 30)
    torch.manual_seed(5)
    part = HIDING(POSITIONS[2:], num_views=2).hidden.view(2, 2, 30)
    assert torch.equal(whole[:, 2:], part)
    other = HIDING._replace(seed=1)(POSITIONS, num_views=2).hidden.view(2, 4, 30)
    assert not torch.equal(whole, other)


def test_the_loss_is_equation_2_of_the_paper_crop_by_crop() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [3, 1, 4]
    shares = torch.randn(8, 6, generator=generator).softmax(1)
    student = torch.randn(8, 6, generator=generator)
    per_crop, row = [], 0
    for count in counts:
        terms = []
        for _ in range(count):
            logits = student[row].double().numpy() / 0.1
            log_shares = logits - np.log(np.exp(logits).sum())
            terms.append(-(shares[row].double().numpy() * log_shares).sum())
            row += 1
        per_crop.append(np.mean(terms))
    got = patch_cross_entropy(
        shares,
        student,
        weight=torch.tensor([1 / count for count in counts for _ in range(count)]),
        num_crops=torch.tensor(3),
        student_temp=0.1,
    )
    assert got.item() == pytest.approx(np.mean(per_crop), rel=1e-5)


def test_nothing_hidden_is_a_loss_of_0_with_a_gradient() -> None:
    student = torch.zeros(4, 6, requires_grad=True)
    got = patch_cross_entropy(
        torch.empty(0, 6),
        student[:0],
        weight=torch.empty(0),
        num_crops=torch.tensor(0),
        student_temp=0.1,
    )
    got.backward()
    assert got.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("given", [[0.5, 0.1], [0.0, 0.5], [0.1, 1.0]])
def test_a_range_that_makes_no_sense_is_refused(given: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"mask_ratio is a range within \(0, 1\)"):
        parse({"mask_ratio": given}, IbotConfig, where="ibot")


def test_a_crop_of_one_patch_is_refused_before_the_run() -> None:
    assert patch_hiding(IbotConfig(), grid=(2, 3, 5), seed=0) == HIDING
    with pytest.raises(ValueError, match="cannot mask 1 patch"):
        patch_hiding(IbotConfig(), grid=(1, 1, 1), seed=0)
