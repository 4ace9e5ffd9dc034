import math

import numpy as np
import pytest
import torch

from foundation.objective.koleo import koleo_loss


def koleo(features: np.ndarray, subject: list[int]) -> float:
    """Minus the mean over rows of log min_j |x_i - x_j|, pair by pair."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    terms = []
    for i in range(len(unit)):
        distances = [
            np.linalg.norm(unit[i] - unit[j]) for j in range(len(unit)) if subject[j] != subject[i]
        ]
        if distances:
            terms.append(-math.log(min(distances) + 1e-6))
    return float(np.mean(terms))


def _features(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("subject", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2]])
def test_the_loss_is_the_papers_among_other_subjects(subject: list[int]) -> None:
    features = _features(6)
    features[1] = features[0] + 0.01  # the nearest by far, and in one case of the same subject
    got = koleo_loss(features, subject=torch.tensor(subject))
    assert got.item() == pytest.approx(koleo(features.double().numpy(), subject), rel=1e-5)


def test_the_gradient_pushes_neighbours_apart() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    koleo_loss(features, subject=torch.arange(3)).backward()
    assert features.grad[0, 1] > 0  # downhill is away from the second row
    assert features.grad[1, 1] < 0


def test_equal_rows_and_rows_without_a_neighbour_stay_finite() -> None:
    features = _features(1).repeat(4, 1).requires_grad_()
    loss = koleo_loss(features, subject=torch.arange(4))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert features.grad.isfinite().all()
    features.grad = None
    alone = koleo_loss(features, subject=torch.zeros(4, dtype=torch.int64))
    alone.backward()
    assert alone.item() == 0
    assert not features.grad.any()


def test_it_is_computed_in_float32() -> None:
    features = _features(6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = koleo_loss(features, subject=torch.arange(6))
    assert got.dtype == torch.float32
    assert torch.equal(got, koleo_loss(features.float(), subject=torch.arange(6)))
