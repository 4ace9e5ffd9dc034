"""Linear models of any convex loss, many problems solved at once in float64.

A *problem* is a set of weighted rows and a strength of regularisation over shared features. A grid
of settings, the folds of a cross-validation and few-shot draws are all problems. There is no batch
size or learning rate to choose. The objective of each is scikit-learn's,
``sum_i w_i loss_i + penalty / 2 * |coefficient|^2`` over features that are standardised by the
problem's own rows; intercepts are not penalised.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from evaluation.probing.axes import Axes, principal_axes
from evaluation.probing.estimator import Floats, Rows
from evaluation.probing.lbfgs import minimise
from evaluation.probing.row_sets import Chunk, chunks

TOLERANCE = 1e-6
MAX_ITERATIONS = 1000

_PROBLEMS_AT_ONCE = 100  # fewer are not worth a call of their own


class LinearModels(NamedTuple):
    """Fitted models over raw (not standardised) features.

    Attributes:
        coefficient: (B, K, P).
        intercept: (B, K).
    """

    coefficient: Floats
    intercept: Floats

    def decision(self, features: ArrayLike) -> Floats:
        """Logits or predicted values of (n, P) features by each model, (B, n, K)."""
        raw = np.asarray(features, dtype=np.float64)
        flat = self.coefficient.reshape(-1, raw.shape[1])
        values = raw @ flat.T + self.intercept.ravel()
        shaped: Floats = values.reshape(len(raw), *self.intercept.shape).transpose(1, 0, 2)
        return shaped


class Solved(NamedTuple):
    """Models of some of the problems, by their positions."""

    problems: Rows
    models: LinearModels


class Loss(Protocol):
    """What is summed over the rows of B problems with K outputs; its weights are its own.

    Attributes:
        start: Intercepts to start from, (B, K).
        curvature: Second derivative of the mean loss by each intercept there, (B, K).
    """

    start: Tensor
    curvature: Tensor

    def value(self, logits: Tensor) -> Tensor:
        """(B, K, m) to (B,): summed over rows."""

    def slope(self, logits: Tensor) -> Tensor:
        """Its derivative by each logit, (B, K, m)."""


def solve(
    features: Floats,
    *,
    weight: Floats,
    penalty: Floats,
    num_outputs: int,
    loss_of: Callable[[Chunk], Loss],
    scales: bool = True,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Iterator[Solved]:
    """Solve B problems, chunk by chunk.

    Args:
        features: (N, P).
        weight: Of each row in each problem, (B, N); 0 leaves a row out of everything.
        penalty: Of each problem, (B,), above 0.
        num_outputs: K.
        loss_of: The loss of a chunk's problems on a chunk's rows.
        scales: Whether each problem scales the features by its own rows; it centres them always.
        tolerance: Largest entry of the gradient of the mean loss at which a problem is solved,
            by coordinates of unit curvature.
        max_iterations: Bound for problems that are nearly separable and hardly regularised.
    """
    for whole, axes in narrowed(features, weight=weight, num_outputs=num_outputs, scales=scales):
        for chunk in _alike(whole, penalty):
            objective = _Linear(axes, loss_of(chunk), chunk, chunk.of_problems(penalty))
            point = minimise(
                objective, objective.start(), tolerance=tolerance, max_iterations=max_iterations
            )
            yield solved(chunk, axes, *objective.unpacked(point))


def _alike(chunk: Chunk, penalty: Floats) -> Iterator[Chunk]:
    """A chunk cut into problems of like penalty: all are solved when the slowest is."""
    order = np.argsort(penalty[chunk.problems], axis=1, kind="stable")
    problems = np.take_along_axis(chunk.problems, order, axis=1)
    num_parts = max(1, min(problems.shape[1] // 2, problems.size // _PROBLEMS_AT_ONCE))
    for part in np.array_split(problems, num_parts, axis=1):
        yield chunk._replace(problems=part)


def narrowed(
    features: Floats, *, weight: Floats, num_outputs: int, scales: bool = True
) -> Iterator[tuple[Chunk, Axes]]:
    """Chunks of problems, each with the axes of its sets of rows."""
    for chunk in chunks(weight, num_features=features.shape[1], num_outputs=num_outputs):
        inside = torch.from_numpy(features[chunk.rows])
        yield chunk, principal_axes(inside, weight=torch.from_numpy(chunk.weight), scales=scales)


def solved(chunk: Chunk, axes: Axes, coefficient: Tensor, intercept: Tensor) -> Solved:
    """Models in a chunk's coordinates, (S * Q, K, r) and (S * Q, K), as models of features."""
    num_sets, num_problems = chunk.problems.shape
    outputs = intercept.shape[1]
    raw, offset = axes.raw_models(
        coefficient.reshape(num_sets, num_problems * outputs, -1),
        intercept.reshape(num_sets, num_problems * outputs),
    )
    models = LinearModels(
        raw.reshape(num_sets * num_problems, outputs, -1).numpy(),
        offset.reshape(num_sets * num_problems, outputs).numpy(),
    )
    return Solved(chunk.problems.ravel(), models)


def gather_models(parts: Iterable[Solved], *, num_problems: int) -> LinearModels:
    """All models in the order of their problems."""
    every = list(parts)
    where = np.concatenate([part.problems for part in every])
    _, first = np.unique(where, return_index=True)
    assert len(first) == num_problems
    coefficient = np.concatenate([part.models.coefficient for part in every])[first]
    intercept = np.concatenate([part.models.intercept for part in every])[first]
    return LinearModels(coefficient, intercept)


def gather_decisions(parts: Iterable[Solved], features: Floats, *, num_problems: int) -> Floats:
    """(B, n, K): what each model says of every row, with no more models in memory than a chunk."""
    decisions: Floats | None = None
    for part in parts:
        values = part.models.decision(features)
        if decisions is None:
            decisions = np.empty((num_problems, *values.shape[1:]))
        decisions[part.problems] = values
    assert decisions is not None
    return decisions


class _Linear:
    """The objective over points that are coefficients and intercepts, each by its curvature."""

    def __init__(self, axes: Axes, loss: Loss, chunk: Chunk, penalty: Tensor) -> None:
        num_problems = chunk.problems.shape[1]
        self._inside, self._loss = axes.inside, loss
        self._total = chunk.weights.sum((1, 2))
        self._penalty = (penalty / self._total)[:, None, None]
        square = axes.square.repeat_interleave(num_problems, dim=0)[:, None, :]
        bend = loss.curvature[:, :, None] * square / self._total[:, None, None] + self._penalty
        self._unit = torch.cat([bend, loss.curvature[:, :, None]], dim=2).rsqrt()

    def start(self) -> Tensor:
        point = torch.zeros_like(self._unit)
        point[:, :, -1] = self._loss.start / self._unit[:, :, -1]
        return point.flatten(1)

    def unpacked(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, K, r) and intercepts (B, K)."""
        both = point.reshape(self._unit.shape) * self._unit
        return both[:, :, :-1], both[:, :, -1]

    def logits(self, point: Tensor) -> Tensor:
        coefficient, intercept = self.unpacked(point)
        flat = coefficient.reshape(len(self._inside), -1, coefficient.shape[2])
        values = flat @ self._inside.mT
        return values.reshape(*intercept.shape, -1) + intercept[:, :, None]

    def value(self, logits: Tensor, point: Tensor) -> Tensor:
        coefficient, _ = self.unpacked(point)
        penalty = 0.5 * self._penalty[:, 0, 0] * coefficient.square().sum((1, 2))
        return self._loss.value(logits) / self._total + penalty

    def gradient(self, logits: Tensor, point: Tensor) -> Tensor:
        coefficient, _ = self.unpacked(point)
        pull = self._loss.slope(logits) / self._total[:, None, None]
        flat = pull.reshape(len(self._inside), -1, pull.shape[2])
        inner = (flat @ self._inside).reshape(coefficient.shape) + self._penalty * coefficient
        both = torch.cat([inner, pull.sum(2, keepdim=True)], dim=2)
        return (both * self._unit).flatten(1)
