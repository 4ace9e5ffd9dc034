"""Many small convex problems minimised at once, by L-BFGS over a leading batch dimension.

Nocedal and Wright (2006), algorithm 7.4, in float64, with a backtracking line search. Predictions
are linear in the point, so a line search costs one product with the features however often it
halves its step.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_HISTORY = 10
_ARMIJO = 1e-4
_HALVINGS = 30
_ROUNDING = 4e-15  # near the minimum a loss falls by less than its rounding


class Objective(Protocol):
    """B problems over points (B, D), whose logits are linear in the point."""

    def logits(self, point: Tensor) -> Tensor:
        """(B, D) to (B, ...)."""

    def value(self, logits: Tensor, point: Tensor) -> Tensor:
        """(B,)."""

    def gradient(self, logits: Tensor, point: Tensor) -> Tensor:
        """(B, D)."""


class _Pair(NamedTuple):
    """A step (B, D), how it changed the gradient, and what they tell of the curvature, (B, 1).

    Of a problem that stands still both are 0: the pair drops out as rho = 0.
    """

    step: Tensor
    change: Tensor
    rho: Tensor
    gamma: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor) -> "_Pair":
        curvature = (step * change).sum(1, keepdim=True)
        size = change.square().sum(1, keepdim=True)
        moved = (curvature > 1e-300) & (size > 1e-300)
        safe = torch.where(moved, curvature, 1.0)
        rho = torch.where(moved, 1.0 / safe, 0.0)
        return cls(step, change, rho, torch.where(moved, safe / size, 1.0))


def minimise(
    objective: Objective, start: Tensor, *, tolerance: float, max_iterations: int
) -> Tensor:
    """The minimum of each problem, (B, D).

    Args:
        objective: Scaled so that its curvature is near 1: the first step is a whole gradient.
        start: (B, D).
        tolerance: Largest entry of a gradient at which a problem is solved.
        max_iterations: Bound for problems that are nearly separable and hardly regularised.
    """
    point, logits = start, objective.logits(start)
    slope = objective.gradient(logits, point)
    pairs: list[_Pair] = []
    for _ in range(max_iterations):
        unsolved = slope.abs().amax(1) > tolerance
        if not unsolved.any():
            break
        direction = _two_loop(slope, pairs) * unsolved[:, None]
        toward = objective.logits(direction)
        length = _backtrack(objective, logits, toward, point, direction, slope)
        if not length.any():
            break  # the rounding floor of float64: no problem can be improved further
        step = length[:, None] * direction
        point = point + step
        logits = logits + _over(length, logits) * toward
        before, slope = slope, objective.gradient(logits, point)
        pairs = [*pairs, _Pair.of(step, slope - before)][-_HISTORY:]
    return point


def _two_loop(slope: Tensor, pairs: list[_Pair]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, each problem on its own."""
    if not pairs:
        return -slope
    direction = slope
    alphas = []
    for pair in reversed(pairs):
        alpha = pair.rho * (pair.step * direction).sum(1, keepdim=True)
        direction = direction - alpha * pair.change
        alphas.append(alpha)
    direction = direction * pairs[-1].gamma
    for pair, alpha in zip(pairs, reversed(alphas), strict=True):
        beta = pair.rho * (pair.change * direction).sum(1, keepdim=True)
        direction = direction + (alpha - beta) * pair.step
    return -direction


def _backtrack(
    objective: Objective,
    logits: Tensor,
    toward: Tensor,
    point: Tensor,
    direction: Tensor,
    slope: Tensor,
) -> Tensor:
    """Step length of each problem: 1, halved until the loss falls enough; 0 where it cannot."""
    now = objective.value(logits, point)
    enough = now + _ROUNDING * now.abs()
    descent = (slope * direction).sum(1)
    length = torch.ones_like(now)
    poor = torch.ones_like(now, dtype=torch.bool)
    for _ in range(_HALVINGS):
        there = point + length[:, None] * direction
        then = objective.value(logits + _over(length, logits) * toward, there)
        poor = then > enough + _ARMIJO * length * descent
        if not poor.any():
            return length
        length = torch.where(poor, 0.5 * length, length)
    return torch.where(poor, 0.0, length)


def _over(length: Tensor, logits: Tensor) -> Tensor:
    return length.reshape(-1, *[1] * (logits.ndim - 1))
