"""Linear probes, many at once: logistic regression by full-batch L-BFGS, and ridge.

A *problem* is a set of row weights and a strength of regularisation over shared features. A grid of
C is one set of rows with many strengths; cross-validation is many sets; few-shot draws are many
sets. All are solved together in float64, so there is no batch size or learning rate to choose, and
each problem standardises by the mean and spread of its own rows: nothing outside them is used.

The objective is scikit-learn's: ``sum_i w_i log(1 + exp(-y_i z_i)) + |coefficient|^2 / (2 C)``,
over standardised features, with an intercept that is not penalised.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evaluation.probing.protocols import Estimator, Floats, Setting

CS = tuple(float(value) for value in np.logspace(-4.5, 1.0, 12))
ALPHAS = tuple(float(value) for value in np.logspace(-2.0, 5.0, 15))

_HISTORY = 10
_ARMIJO = 1e-4
_HALVINGS = 30
_ENTRIES_AT_ONCE = 100_000  # coefficients solved together; the history holds 20 times as many


def linear_probe(kind: str) -> Estimator:
    """The linear probe of a task's kind: logistic regression over C, or ridge over alpha."""
    if kind == "binary":
        return Estimator("linear", tuple({"C": c} for c in CS), _predict_logistic)
    return Estimator("linear", tuple({"alpha": a} for a in reversed(ALPHAS)), _predict_ridge)


def _predict_logistic(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    strength = [setting["C"] for setting in settings]
    return sigmoid(fit_logistic(features, label, train, strength).decision(features))


def _predict_ridge(
    features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
) -> Floats:
    strength = [setting["alpha"] for setting in settings]
    return fit_ridge(features, label, train, strength).decision(features)


class LinearModels(NamedTuple):
    """Fitted models over raw (not standardised) features.

    Attributes:
        coefficient: (B, P).
        intercept: (B,).
    """

    coefficient: Floats
    intercept: Floats

    def decision(self, features: ArrayLike) -> Floats:
        """Log-odds or predicted values of (n, P) features by each model, (B, n)."""
        raw = np.asarray(features, dtype=np.float64)
        values: Floats = self.coefficient @ raw.T + self.intercept[:, None]
        return values


def fit_logistic(
    features: ArrayLike,
    label: ArrayLike,
    weight: ArrayLike,
    strength: ArrayLike,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> LinearModels:
    """Fit B logistic regressions over the same rows.

    Args:
        features: (N, P), shared, or (B, N, P), each problem its own rows.
        label: 0 or 1, (N,) or (B, N).
        weight: Of each row in each problem, (B, N); 0 leaves a row out.
        strength: C of each problem, (B,); larger is less regularised.
        tolerance: Largest entry of the gradient of the mean loss at which a problem is solved.
        max_iterations: Bound for problems that are nearly separable and hardly regularised.
    """
    raw = torch.as_tensor(np.asarray(features, dtype=np.float64))
    rows = torch.as_tensor(np.asarray(weight, dtype=np.float64))
    truth = torch.as_tensor(np.asarray(label, dtype=np.float64)).expand_as(rows)
    inverse = 1.0 / torch.as_tensor(np.asarray(strength, dtype=np.float64))
    if raw.ndim == 2:  # rows of weight 0 throughout have no part in anything
        used = (rows > 0).any(dim=0)
        raw, rows, truth = raw[used], rows[:, used], truth[:, used]
    parts = []
    step = max(1, _ENTRIES_AT_ONCE // raw.shape[-1])
    for some in (slice(start, start + step) for start in range(0, len(rows), step)):
        design = _Design.of(raw if raw.ndim == 2 else raw[some], rows[some])
        point = _minimise(design, truth[some], rows[some], inverse[some], tolerance, max_iterations)
        coefficient = point[:, :-1] / design.scale
        parts.append((coefficient, point[:, -1] - (coefficient * design.mean).sum(1)))
    coefficient, intercept = (torch.cat(each) for each in zip(*parts, strict=True))
    return LinearModels(coefficient.numpy(), intercept.numpy())


def fit_ridge(
    features: ArrayLike, value: ArrayLike, weight: ArrayLike, strength: ArrayLike
) -> LinearModels:
    """Ridge regressions with row weights 0 or 1; each distinct set of rows is factored once.

    Args:
        features: (N, P).
        value: (N,).
        weight: 1 for the rows of a problem, (B, N).
        strength: alpha of each problem, (B,), on standardised features; larger is stronger.
    """
    raw, target = np.asarray(features, dtype=np.float64), np.asarray(value, dtype=np.float64)
    rows, alphas = np.asarray(weight) > 0, np.asarray(strength, dtype=np.float64)
    coefficient = np.zeros((len(rows), raw.shape[1]))
    intercept = np.zeros(len(rows))
    sets, which = np.unique(rows, axis=0, return_inverse=True)
    for number, members in enumerate(sets):
        problems = np.flatnonzero(which.ravel() == number)
        inside, goal = raw[members], target[members]
        mean, scale = inside.mean(0), _safe(inside.std(0))
        left, singular, right = np.linalg.svd((inside - mean) / scale, full_matrices=False)
        shrunk = singular / (singular**2 + alphas[problems, None])
        coefficient[problems] = (shrunk * (left.T @ (goal - goal.mean()))) @ right / scale
        intercept[problems] = goal.mean() - coefficient[problems] @ mean
    return LinearModels(coefficient, intercept)


def sigmoid(value: Floats) -> Floats:
    """Probability from log-odds, without overflow."""
    probability: Floats = 0.5 * (1.0 + np.tanh(0.5 * value))
    return probability


def _safe(scale: Floats) -> Floats:
    """A feature that never varies keeps its zero instead of becoming a division by zero."""
    return np.where(scale > 1e-12, scale, 1.0)


class _Design(NamedTuple):
    """Features seen through each problem's own standardisation, which is never materialised."""

    raw: Tensor  # (N, P) or (B, N, P)
    mean: Tensor  # (B, P)
    scale: Tensor  # (B, P)

    @classmethod
    def of(cls, raw: Tensor, weight: Tensor) -> "_Design":
        total = weight.sum(1, keepdim=True)
        mean = _rows_times(weight, raw) / total
        # Spread about a point inside the data: sums of squares of raw features would cancel.
        centre = raw.mean(dim=-2)
        square = _rows_times(weight, (raw - centre.unsqueeze(-2)) ** 2) / total
        variance = (square - (mean - centre) ** 2).clamp_min(0)
        scale = torch.where(variance > 1e-14, variance.sqrt(), torch.ones_like(variance))
        return cls(raw, mean, scale)

    def logits(self, point: Tensor) -> Tensor:
        """(B, P + 1) -> (B, N)."""
        coefficient = point[:, :-1] / self.scale
        offset = point[:, -1] - (coefficient * self.mean).sum(1)
        if self.raw.ndim == 2:
            return coefficient @ self.raw.T + offset[:, None]
        return torch.einsum("bnp,bp->bn", self.raw, coefficient) + offset[:, None]

    def pull(self, residual: Tensor) -> Tensor:
        """The transpose of :meth:`logits`: (B, N) -> (B, P + 1)."""
        total = residual.sum(1, keepdim=True)
        inner = (_rows_times(residual, self.raw) - total * self.mean) / self.scale
        return torch.cat([inner, total], dim=1)


def _rows_times(weight: Tensor, raw: Tensor) -> Tensor:
    if raw.ndim == 2:
        return weight @ raw
    return torch.einsum("bn,bnp->bp", weight, raw)


def _minimise(
    design: _Design,
    truth: Tensor,
    weight: Tensor,
    inverse: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Batched L-BFGS (Nocedal and Wright 2006, alg. 7.4) with a backtracking line search.

    The loss is convex along any direction and its logits are linear in the step, so a line search
    costs one product with the features however often it halves.
    """
    total = weight.sum(1)
    penalty = inverse / total
    point = torch.zeros(len(weight), design.mean.shape[1] + 1, dtype=torch.float64)

    def loss(logits: Tensor, point: Tensor) -> Tensor:
        each = torch.nn.functional.softplus(logits) - truth * logits
        return (weight * each).sum(1) / total + 0.5 * penalty * point[:, :-1].square().sum(1)

    def gradient(logits: Tensor, point: Tensor) -> Tensor:
        slope = design.pull(weight * (torch.sigmoid(logits) - truth)) / total[:, None]
        slope[:, :-1] += penalty[:, None] * point[:, :-1]
        return slope

    logits = design.logits(point)
    slope = gradient(logits, point)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(max_iterations):
        unsolved = slope.abs().amax(1) > tolerance
        if not unsolved.any():
            break
        direction = _two_loop(slope, steps, changes) * unsolved[:, None]
        toward = design.logits(direction)
        length = _backtrack(loss, logits, toward, point, direction, slope)
        step = length[:, None] * direction
        point, logits = point + step, logits + length[:, None] * toward
        before, slope = slope, gradient(logits, point)
        if not length.any():
            break  # the rounding floor of float64: no problem can be improved further
        steps, changes = [*steps, step][-_HISTORY:], [*changes, slope - before][-_HISTORY:]
    return point


def _two_loop(slope: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, each problem on its own."""
    if not steps:
        return -slope / slope.norm(dim=1, keepdim=True).clamp_min(1.0)
    direction = slope.clone()
    alphas = []
    # A problem that stands still has step and change zero: its curvature drops out as rho = 0.
    curvature = [(step * change).sum(1) for step, change in zip(steps, changes, strict=True)]
    rhos = [torch.where(c > 1e-300, 1.0 / c.clamp_min(1e-300), 0.0 * c) for c in curvature]
    for step, change, rho in zip(reversed(steps), reversed(changes), reversed(rhos), strict=True):
        alpha = rho * (step * direction).sum(1)
        direction = direction - alpha[:, None] * change
        alphas.append(alpha)
    size = changes[-1].square().sum(1)
    gamma = torch.where(size > 1e-300, curvature[-1] / size.clamp_min(1e-300), 1.0 + 0.0 * size)
    direction = direction * gamma[:, None]
    for step, change, rho, alpha in zip(steps, changes, rhos, reversed(alphas), strict=True):
        beta = rho * (change * direction).sum(1)
        direction = direction + (alpha - beta)[:, None] * step
    return -direction


def _backtrack(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    toward: Tensor,
    point: Tensor,
    direction: Tensor,
    slope: Tensor,
) -> Tensor:
    """Step length of each problem: 1, halved until the loss falls enough; 0 where it cannot."""
    now = loss(logits, point)
    enough = now + 1e-15 * now.abs()  # near the minimum the loss falls by less than its rounding
    descent = (slope * direction).sum(1)
    length = torch.ones_like(now)
    for _ in range(_HALVINGS):
        then = loss(logits + length[:, None] * toward, point + length[:, None] * direction)
        poor = then > enough + _ARMIJO * length * descent
        if not poor.any():
            return length
        length = torch.where(poor, 0.5 * length, length)
    return torch.where(poor, 0.0 * length, length)
