"""Ridge regression in closed form, of each of many problems."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from evaluation.probing.solver import LinearModels, Solved, gather_models, narrowed, solved


def solve_ridge(
    features: ArrayLike,
    value: ArrayLike,
    weight: ArrayLike,
    strength: ArrayLike,
    *,
    scales: bool = True,
) -> Iterator[Solved]:
    """See :func:`fit_ridge`; models come chunk by chunk."""
    raw, rows = np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    target = np.broadcast_to(np.asarray(value, dtype=np.float64), rows.shape)
    alphas = np.asarray(strength, dtype=np.float64)
    for chunk, axes in narrowed(raw, weight=rows, num_outputs=1, scales=scales):
        counts = chunk.weights[:, 0]
        goal = chunk.of_rows(target)
        mean = (counts * goal).sum(1, keepdim=True) / counts.sum(1, keepdim=True)
        pull = (counts * (goal - mean)).reshape(*chunk.problems.shape, -1) @ axes.inside
        alpha = chunk.of_problems(alphas).reshape(chunk.problems.shape)
        coefficient = pull / (axes.square[:, None] + alpha[:, :, None])
        yield solved(chunk, axes, coefficient.flatten(0, 1)[:, None], mean)


def fit_ridge(
    features: ArrayLike, value: ArrayLike, weight: ArrayLike, strength: ArrayLike
) -> LinearModels:
    """Fit B ridge regressions.

    Args:
        features: (N, P), shared.
        value: (N,) or (B, N).
        weight: Of each row in each problem, (B, N); 0 leaves a row out.
        strength: alpha of each problem, (B,), on standardised features; larger is stronger.
    """
    parts = solve_ridge(features, value, weight, strength)
    return gather_models(parts, num_problems=len(np.asarray(weight)))
