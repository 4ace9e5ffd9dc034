"""Dice and cross-entropy of masks, against the formula in numpy and against MONAI's."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.finetuning.mask_loss import mask_loss

B, K, SHAPE = 3, 4, (2, 5, 3)


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Every class is in every sample."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, *SHAPE, generator=generator) * 2
    classes = torch.randint(0, K, (B, *SHAPE), generator=generator)
    classes[:, 0, :4, 0] = torch.arange(K)
    counted = torch.rand(B, *SHAPE, generator=generator) < 0.7
    counted[:, 0, :4, 0] = True
    return logits, classes, counted


def reference(
    logits: Tensor, classes: Tensor, counted: Tensor, weights: list[float] | None = None
) -> list[float]:
    """Voxel by voxel in Python floats."""
    losses = []
    for sample in range(len(logits)):
        inside = counted[sample].numpy()
        values = logits[sample].double().numpy()[:, inside]
        truth = classes[sample].numpy()[inside]
        exps = np.exp(values - values.max(axis=0))
        shares = exps / exps.sum(axis=0)
        entropy = [
            -(weights[k] if weights else 1.0) * math.log(shares[k, n]) for n, k in enumerate(truth)
        ]
        dices = []
        for k in range(1, K):
            if not (truth == k).any():
                continue
            both = sum(shares[k, n] for n, true in enumerate(truth) if true == k)
            dices.append((2 * both + 1e-5) / (shares[k].sum() + (truth == k).sum() + 1e-5))
        dice = 1 - sum(dices) / len(dices) if dices else 0.0
        losses.append(sum(entropy) / max(len(entropy), 1) + dice)
    return losses


@pytest.mark.parametrize("weights", [None, [0.3, 2.0, 1.0, 5.0]])
def test_the_formula_in_numpy_gives_the_same(weights: list[float] | None) -> None:
    logits, classes, counted = example()
    given = None if weights is None else torch.tensor(weights)
    found = mask_loss(logits, classes, counted, weights=given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(),
        torch.tensor(reference(logits, classes, counted, weights), dtype=torch.float64),
        rtol=1e-5,
        atol=1e-6,
    )


def test_monai_gives_the_same_where_all_counts_and_every_class_is_there() -> None:
    from monai.losses import DiceCELoss  # seconds, which collecting the tests shall not take

    logits, classes, _ = example()
    theirs = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)
    ours = mask_loss(logits, classes, torch.ones_like(classes, dtype=torch.bool))
    torch.testing.assert_close(ours.mean(), theirs(logits, classes[:, None]), rtol=1e-5, atol=1e-6)


def test_a_class_that_a_sample_lacks_has_no_part_in_its_dice() -> None:
    logits, classes, counted = example()
    classes[0][classes[0] == 2] = 1
    counted[1] = counted[1] & (classes[1] != 3)  # class 3 lies only where nothing counts
    classes[2] = 0
    found = mask_loss(logits, classes, counted)
    expected = torch.tensor(reference(logits, classes, counted), dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # Without foreground, what is left is cross-entropy.
    entropy = -logits[2].log_softmax(dim=0)[0][counted[2]].mean()
    torch.testing.assert_close(found[2], entropy, rtol=1e-5, atol=1e-6)


def test_right_and_sure_costs_nothing_and_wrong_and_sure_a_lot() -> None:
    _, classes, counted = example()
    sure = 50.0 * torch.nn.functional.one_hot(classes, K).movedim(-1, 1).float()
    assert mask_loss(sure, classes, counted).max() < 1e-5
    assert mask_loss(sure.roll(1, dims=1), classes, counted).min() > 40


def test_gradient_is_zero_exactly_where_nothing_counts() -> None:
    logits, classes, counted = example()
    logits[:, 0] = torch.where(counted, logits[:, 0], torch.inf)  # whatever stands there
    logits.requires_grad_(True)
    mask_loss(logits, classes, counted).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, counted)


def test_classes_where_nothing_counts_may_be_anything() -> None:
    logits, classes, counted = example()
    expected = mask_loss(logits, classes, counted)
    assert torch.equal(mask_loss(logits, classes.masked_fill(~counted, 99), counted), expected)


def test_gradient_agrees_with_finite_differences() -> None:
    logits, classes, counted = example()
    step = torch.zeros_like(logits)
    place = tuple(int(each) for each in counted.nonzero()[3])
    where = (place[0], 2, *place[1:])
    step[where] = 1e-2
    logits.requires_grad_(True)
    mask_loss(logits, classes, counted).sum().backward()
    up, down = (sum(reference(logits.detach() + sign * step, classes, counted)) for sign in (1, -1))
    assert logits.grad is not None
    assert float(logits.grad[where]) == pytest.approx((up - down) / 2e-2, rel=1e-3)


def test_two_ranks_are_one_with_the_joined_batch() -> None:
    logits, classes, counted = example()
    joined = mask_loss(logits, classes, counted)
    for sample in range(B):
        one = slice(sample, sample + 1)
        alone = mask_loss(logits[one], classes[one], counted[one])
        torch.testing.assert_close(alone, joined[one], rtol=1e-6, atol=1e-7)


def test_a_sample_without_a_voxel_that_counts_gives_zero() -> None:
    logits, classes, counted = example()
    counted[1] = False
    logits.requires_grad_(True)
    found = mask_loss(logits, classes, counted)
    assert found[1] == 0
    found.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()


def test_autocast_does_not_touch_it() -> None:
    logits, classes, counted = example()
    half = logits.bfloat16()
    expected = mask_loss(half.float(), classes, counted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mask_loss(half, classes, counted)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
