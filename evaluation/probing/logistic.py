"""Logistic regression of a label 0 or 1, of each of many problems."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from evaluation.probing.estimator import Floats
from evaluation.probing.row_sets import Chunk
from evaluation.probing.solver import LinearModels, Solved, gather_models, solve

LEAST_RATE = 1e-6
"""A problem whose labels are all alike predicts this, or one minus this, and learns nothing."""


class BinaryLoss:
    """``sum_i w_i (log(1 + exp(z_i)) - y_i z_i)``; labels may be fractions.

    Args:
        truth: (B, K, m); K outputs are K labels that share nothing but their rows.
        weight: Broadcastable to it.
    """

    def __init__(self, truth: Tensor, weight: Tensor) -> None:
        weight = weight.expand_as(truth)
        total = weight.sum(2)
        known = total > 0  # without one row nothing is known: one half
        rate = torch.where(known, (weight * truth).sum(2) / torch.where(known, total, 1.0), 0.5)
        inside = rate.clamp(LEAST_RATE, 1 - LEAST_RATE)
        self._truth = truth
        self._weight = weight * (rate == inside)[:, :, None]
        self.start = torch.logit(inside)
        self.curvature = inside * (1 - inside)

    def value(self, logits: Tensor) -> Tensor:
        each = torch.nn.functional.softplus(logits) - self._truth * logits
        return (self._weight * each).sum((1, 2))

    def slope(self, logits: Tensor) -> Tensor:
        return self._weight * (torch.sigmoid(logits) - self._truth)


def solve_logistic(
    features: ArrayLike, label: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> Iterator[Solved]:
    """See :func:`fit_logistic`; models come chunk by chunk."""
    raw, rows = np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    truth = np.broadcast_to(np.asarray(label, dtype=np.float64), rows.shape)

    def loss_of(chunk: Chunk) -> BinaryLoss:
        return BinaryLoss(chunk.of_rows(truth)[:, None], chunk.weights)

    penalty = 1.0 / np.asarray(strength, dtype=np.float64)
    return solve(raw, weight=rows, penalty=penalty, num_outputs=1, loss_of=loss_of, **options)


def fit_logistic(
    features: ArrayLike, label: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> LinearModels:
    """Fit B logistic regressions.

    Args:
        features: (N, P), shared.
        label: From 0 to 1, (N,) or (B, N).
        weight: Of each row in each problem, (B, N); 0 leaves a row out.
        strength: C of each problem, (B,); larger is less regularised.
        options: ``scales``, ``tolerance`` and ``max_iterations`` of
            :func:`evaluation.probing.solver.solve`.
    """
    parts = solve_logistic(features, label, weight, strength, **options)
    return gather_models(parts, num_problems=len(np.asarray(weight)))


def sigmoid(value: Floats) -> Floats:
    """Probability from log-odds, without overflow."""
    probability: Floats = 0.5 * (1.0 + np.tanh(0.5 * value))
    return probability
