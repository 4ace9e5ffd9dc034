import numpy as np
import pytest
import torch

from foundation.objective.targets import Centring, SinkhornKnopp, build_targets


def sinkhorn(logits: np.ndarray, *, temp: float, iterations: int = 3) -> np.ndarray:
    """(N, K): prototypes, then tokens brought to equal totals, on the whole matrix (SwAV, A.1)."""
    matrix = np.exp(logits.astype(np.float64).T / temp)
    matrix /= matrix.sum()
    for _ in range(iterations):
        matrix /= matrix.sum(axis=1, keepdims=True) * matrix.shape[0]
        matrix /= matrix.sum(axis=0, keepdims=True) * matrix.shape[1]
    return (matrix * matrix.shape[1]).T


def _logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temp", [0.04, 0.5])
def test_sinkhorn_is_the_matrix_iteration_of_the_paper(temp: float) -> None:
    logits = torch.nn.functional.normalize(_logits(11, 5), dim=1)  # cosines, as a head's
    got = SinkhornKnopp()(logits, temp=temp, step=0)
    want = torch.from_numpy(sinkhorn(logits.numpy(), temp=temp)).float()
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(got.sum(1), torch.ones(11))


def test_sinkhorn_uses_all_prototypes_where_a_softmax_uses_one() -> None:
    logits = 0.1 * _logits(64, 4) + torch.tensor([1.0, 0, 0, 0])
    assert (logits / 0.1).softmax(1).mean(0)[0] > 0.95
    shares = SinkhornKnopp()(logits, temp=0.1, step=0).mean(0)
    assert shares.max() < 0.35


def test_sinkhorn_of_logits_far_apart_and_of_no_tokens_is_finite() -> None:
    far = torch.tensor([[1.0, -1, -1], [1, -1, -1]])
    assert SinkhornKnopp()(far, temp=0.005, step=0).isfinite().all()
    assert SinkhornKnopp()(torch.empty(0, 3), temp=0.04, step=0).shape == (0, 3)


def test_equal_logits_give_uniform_shares() -> None:
    for kind in ("sinkhorn", "centring"):
        targets = build_targets(kind, num_prototypes=5, center_momentum=0.9)
        got = targets(torch.full((4, 5), 0.3), temp=0.04, step=0)
        torch.testing.assert_close(got, torch.full((4, 5), 0.2))


def test_centring_sharpens_about_the_centre() -> None:
    centring, center = Centring(3, momentum=0.9), torch.tensor([0.5, -0.2, 0.1])
    centring.center.copy_(center)
    logits = _logits(6, 3)
    got = centring(logits, temp=0.07, step=0)
    powers = np.exp((logits.double().numpy() - center.double().numpy()) / 0.07)
    want = powers / powers.sum(1, keepdims=True)
    torch.testing.assert_close(got.double(), torch.from_numpy(want), atol=1e-6, rtol=1e-5)
    assert torch.equal(centring.center, center), "it moves when the update is applied, not before"
    centring.after_update()
    torch.testing.assert_close(centring.center, 0.9 * center + 0.1 * logits.mean(0))


def test_micro_batches_move_the_centre_by_tokens_and_a_skipped_update_not_at_all() -> None:
    centring = Centring(2, momentum=0.5)
    centring(torch.full((3, 2), float("nan")), temp=0.1, step=4)  # never applied
    centring(torch.full((3, 2), 1.0), temp=0.1, step=5)
    centring(torch.full((1, 2), 5.0), temp=0.1, step=5)
    centring.after_update()
    torch.testing.assert_close(centring.center, torch.full((2,), 1.0))  # (3 * 1 + 1 * 5) / 4 / 2


def test_an_update_without_tokens_leaves_the_centre() -> None:
    centring = Centring(2, momentum=0.5)
    centring.center.fill_(0.3)
    assert centring(torch.empty(0, 2), temp=0.1, step=0).shape == (0, 2)
    centring.after_update()
    assert torch.equal(centring.center, torch.full((2,), 0.3))


def test_a_momentum_of_1_never_moves_the_centre() -> None:
    centring = Centring(2, momentum=1.0)
    centring(torch.full((3, 2), 7.0), temp=0.1, step=0)
    centring.after_update()
    assert not centring.center.any()


def test_targets_are_float32_whatever_the_model_computes_in() -> None:
    logits = _logits(6, 3).bfloat16()
    for kind in ("sinkhorn", "centring"):
        targets = build_targets(kind, num_prototypes=3, center_momentum=0.9)
        with torch.autocast("cpu", torch.bfloat16):
            got = targets(logits, temp=0.04, step=0)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, targets(logits.float(), temp=0.04, step=1))
