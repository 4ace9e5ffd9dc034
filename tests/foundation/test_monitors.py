"""Monitors against what they mean: hand-sized cases, and the papers' formulas in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.watching.monitors import (
    cls_patch_cosine,
    effective_rank,
    feature_monitors,
    gram_off_diagonal,
    normalised_std,
    rankme,
)


def features(rows: int, width: int, *, rank: int | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, width, generator=generator)
    left = torch.randn(rows, rank, generator=generator)
    return left @ torch.randn(rank, width, generator=generator)


def entropy_rank(values: np.ndarray) -> float:
    share = values / values.sum()
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("rows", "width"), [(20, 7), (9, 31)])
def test_ranks_equal_their_formulas_as_shares_of_the_attainable(rows: int, width: int) -> None:
    values = features(rows, width) + 3.0
    array = values.double().numpy()
    singular = np.linalg.svd(array, compute_uv=False)
    assert rankme(values) == pytest.approx(entropy_rank(singular) / min(rows, width), rel=1e-4)
    centred = np.linalg.svd(array - array.mean(0), compute_uv=False)
    expected = entropy_rank(centred) / min(rows - 1, width)
    assert effective_rank(values) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_ranks_reach_1_where_all_directions_count_alike_whatever_the_scale(scale: float) -> None:
    assert rankme(scale * torch.eye(6, 11)) == pytest.approx(1.0, abs=1e-4)
    # The corners of a simplex, centred, span n - 1 directions alike.
    assert effective_rank(scale * torch.eye(6, 11)) == pytest.approx(1.0, abs=1e-4)


def test_ranks_of_few_directions_are_few_whatever_the_batch_and_width() -> None:
    for rows, width in ((12, 40), (40, 12), (64, 96)):
        two = features(rows, width, rank=2)
        assert 1 < rankme(two) * min(rows, width) <= 2.001
        assert 1 < effective_rank(two) * min(rows - 1, width) <= 2.001


def test_equal_rows_have_no_rank_no_spread_and_a_cosine_of_1() -> None:
    one = features(1, 33).expand(10, 33) * 1.7
    found = feature_monitors(one)
    assert found["effective_rank"] == 0.0
    assert found["rankme"] == pytest.approx(1 / 10, rel=1e-3)
    assert found["feature_std"] == pytest.approx(0.0, abs=1e-5)
    assert found["gram_off_diagonal"] == pytest.approx(1.0, abs=1e-9)


def test_gram_is_the_mean_cosine_of_two_different_rows() -> None:
    values = features(7, 5, seed=3)
    unit = (values / values.norm(dim=1, keepdim=True)).numpy()
    cosines = [unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j]
    assert gram_off_diagonal(values) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_spread_and_gram_tell_the_same() -> None:
    """Their healthy limits are one: the square of the spread is at most about 1 - gram."""
    assert normalised_std(features(500, 96)).item() == pytest.approx(1.0, abs=0.02)
    values = torch.randn(1, 48, generator=torch.Generator().manual_seed(1))
    near = values + 0.05 * features(400, 48)
    spread = normalised_std(near).item()
    assert spread**2 == pytest.approx(1 - gram_off_diagonal(near), rel=0.05)


def test_cosine_of_class_and_patches_is_the_mean_over_scans() -> None:
    cls_token = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    patch_mean = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, -2.0]])
    assert cls_patch_cosine(cls_token, patch_mean=patch_mean) == pytest.approx(0.0)
    assert cls_patch_cosine(cls_token, patch_mean=5 * cls_token) == pytest.approx(1.0)


def test_half_precision_is_measured_in_full() -> None:
    values = features(16, 24)
    whole, half = feature_monitors(values), feature_monitors(values.bfloat16())
    for name, value in whole.items():
        assert half[name] == pytest.approx(value, abs=0.01)
