"""Cox regression with Efron's handling of ties and an L2 penalty, of each of many problems."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from evaluation.probing.row_sets import Chunk
from evaluation.probing.solver import LinearModels, Solved, gather_models, solve


class CoxLoss:
    """Minus the log partial likelihood, Efron (1977).

    A death that shares its time with d - 1 others is the l-th of them (l from 0): its risk set
    counts each of the d with a weight of ``1 - l / d``.

    Args:
        time: (B, m).
        event: 1 for a death, 0 for censored, (B, m).
        weight: 1 or 0, (B, 1, m).
    """

    def __init__(self, time: Tensor, event: Tensor, weight: Tensor) -> None:
        self._order = torch.argsort(time, dim=1, descending=True, stable=True)
        self._back = torch.argsort(self._order, dim=1)
        self._counted = weight[:, 0].gather(1, self._order) > 0
        self._died = event.gather(1, self._order) * self._counted
        self._first, self._last = _tie_options(time.gather(1, self._order))
        before = self._summed(self._died) - self._died
        earlier = before - before.gather(1, self._first)
        self._share = self._died * earlier / self._of_ties(self._died).clamp_min(1.0)
        rate = self._died.sum(1, keepdim=True) / self._counted.sum(1, keepdim=True).clamp_min(1)
        self.start = torch.zeros_like(rate)
        self.curvature = rate.clamp_min(1e-6)

    def value(self, logits: Tensor) -> Tensor:
        risk, _, at_risk, top = self._risks(logits)
        return (self._died * (at_risk.log() + top - risk)).sum(1)

    def slope(self, logits: Tensor) -> Tensor:
        _, hazard, at_risk, _ = self._risks(logits)
        each = self._died / at_risk
        # Row k stands in the risk set of every death no later than its own time.
        later = each.flip(1).cumsum(1).flip(1).gather(1, self._first)
        shared = self._of_ties(self._share / at_risk)
        slope = hazard * (later - self._died * shared) - self._died
        return slope.gather(1, self._back)[:, None]

    def _risks(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log risk, hazard relative to the largest, each death's risk set, and the largest."""
        risk = logits[:, 0].gather(1, self._order)
        inside = risk.masked_fill(~self._counted, -torch.inf)
        top = inside.amax(1, keepdim=True)
        hazard = (inside - top).exp()
        at_risk = self._summed(hazard).gather(1, self._last)
        at_risk = at_risk - self._share * self._of_ties(hazard * self._died)
        return risk, hazard, torch.where(self._died > 0, at_risk, 1.0), top

    def _summed(self, values: Tensor) -> Tensor:
        return values.cumsum(1)

    def _of_ties(self, values: Tensor) -> Tensor:
        """Sum over all rows of the same time, at each of them."""
        until = self._summed(values)
        return until.gather(1, self._last) - (until - values).gather(1, self._first)


def _tie_options(time: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position of each row's time in (B, m) sorted times."""
    position = torch.arange(time.shape[1]).expand_as(time)
    new = torch.ones_like(time, dtype=torch.bool)
    new[:, 1:] = time[:, 1:] != time[:, :-1]
    first = torch.where(new, position, 0).cummax(1).values
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = torch.where(ends, position, time.shape[1]).flip(1).cummin(1).values.flip(1)
    return first, last


def solve_cox(
    features: ArrayLike, survival: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> Iterator[Solved]:
    """See :func:`fit_cox`; models come chunk by chunk."""
    raw, rows = np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    assert np.isin(rows, (0.0, 1.0)).all(), "a subject that counts twice stands in two rows"
    outcome = np.asarray(survival, dtype=np.float64)
    outcome = np.broadcast_to(outcome, (len(rows), *outcome.shape[-2:]))

    def loss_of(chunk: Chunk) -> CoxLoss:
        inside = chunk.of_rows(outcome)
        return CoxLoss(inside[..., 0].contiguous(), inside[..., 1].contiguous(), chunk.weights)

    penalty = np.asarray(strength, dtype=np.float64)
    return solve(raw, weight=rows, penalty=penalty, num_outputs=1, loss_of=loss_of, **options)


def fit_cox(
    features: ArrayLike, survival: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> LinearModels:
    """Fit B Cox regressions; a decision is a log hazard ratio against the mean training row.

    Args:
        features: (N, P), shared.
        survival: Time and event (1, or 0 for censored), (N, 2) or (B, N, 2).
        weight: 1 for the rows of a problem, (B, N).
        strength: alpha of each problem, (B,): ``alpha / 2 * |coefficient|^2`` is added to minus
            the log likelihood, so larger is stronger.
        options: ``scales``, ``tolerance`` and ``max_iterations`` of
            :func:`evaluation.probing.solver.solve`.
    """
    parts = solve_cox(features, survival, weight, strength, **options)
    return gather_models(parts, num_problems=len(np.asarray(weight)))
