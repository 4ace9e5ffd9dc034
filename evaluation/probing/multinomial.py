"""Multinomial (softmax) logistic regression, of each of many problems."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from evaluation.probing.estimator import Floats
from evaluation.probing.row_sets import Chunk
from evaluation.probing.solver import LinearModels, Solved, gather_models, solve

ABSENT = -1e4
"""Logit of a class that a problem's rows do not have: its probability is 0."""


class SoftmaxLoss:
    """``sum_i w_i (log sum_k exp(z_ik) - sum_k y_ik z_ik)``.

    Args:
        truth: (B, K, m), sums to 1 over K: one-hot, or shares.
        weight: (B, 1, m).
    """

    def __init__(self, truth: Tensor, weight: Tensor) -> None:
        self._truth, self._weight = truth, weight
        rate = (weight * truth).sum(2) / weight.sum(2).clamp_min(1e-300)
        present = rate > 0
        log_rate = torch.where(present, rate, 1.0).log()
        centre = log_rate.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp_min(1)
        self.start = torch.where(present, log_rate - centre, ABSENT)
        self.curvature = torch.where(present, rate * (1 - rate), 1.0).clamp_min(1e-6)

    def value(self, logits: Tensor) -> Tensor:
        each = torch.logsumexp(logits, dim=1) - (self._truth * logits).sum(1)
        return (self._weight[:, 0] * each).sum(1)

    def slope(self, logits: Tensor) -> Tensor:
        return self._weight * (torch.softmax(logits, dim=1) - self._truth)


def solve_multinomial(
    features: ArrayLike, target: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> Iterator[Solved]:
    """See :func:`fit_multinomial`; models come chunk by chunk."""
    raw, rows = np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    shares = np.asarray(target, dtype=np.float64)
    truth = np.broadcast_to(shares, (len(rows), *shares.shape[-2:]))

    def loss_of(chunk: Chunk) -> SoftmaxLoss:
        return SoftmaxLoss(chunk.of_rows(truth).mT.contiguous(), chunk.weights)

    penalty = 1.0 / np.asarray(strength, dtype=np.float64)
    num_outputs = truth.shape[2]
    return solve(
        raw, weight=rows, penalty=penalty, num_outputs=num_outputs, loss_of=loss_of, **options
    )


def fit_multinomial(
    features: ArrayLike, target: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> LinearModels:
    """Fit B softmax regressions; of two classes this is scikit-learn's with twice its C.

    Args:
        features: (N, P), shared.
        target: Share of each class, (N, K) or (B, N, K); see :func:`one_hot`.
        weight: Of each row in each problem, (B, N); 0 leaves a row out.
        strength: C of each problem, (B,); larger is less regularised.
        options: ``scales``, ``tolerance`` and ``max_iterations`` of
            :func:`evaluation.probing.solver.solve`.
    """
    parts = solve_multinomial(features, target, weight, strength, **options)
    return gather_models(parts, num_problems=len(np.asarray(weight)))


def one_hot(label: Floats, num_classes: int) -> Floats:
    """(n,) class indices to (n, K)."""
    return np.eye(num_classes)[label.astype(np.int64)]


def softmax(value: Floats) -> Floats:
    """Probabilities over the last axis, without overflow."""
    raised = np.exp(value - value.max(axis=-1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares
