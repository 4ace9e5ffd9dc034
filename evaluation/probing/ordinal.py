"""Classes in order: one logistic regression for each step up, then probabilities of the classes.

Frank and Hall (2001): the chance of reaching at least class k is learnt as a binary problem of its
own for every k. What comes out need not fall with k, so it is made to.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.probing.estimator import Floats
from evaluation.probing.logistic import BinaryLoss
from evaluation.probing.row_sets import Chunk
from evaluation.probing.solver import Solved, solve


def reached(label: Floats, num_classes: int) -> Floats:
    """(n,) class indices to (n, K - 1): 1 where class 1, 2, ... is reached."""
    reaches: Floats = (label[:, None] >= np.arange(1, num_classes)).astype(np.float64)
    return reaches


def solve_ordinal(
    features: ArrayLike, steps: ArrayLike, weight: ArrayLike, strength: ArrayLike, **options: Any
) -> Iterator[Solved]:
    """Log-odds of reaching each class.

    Args:
        features: (N, P), shared.
        steps: See :func:`reached`, (N, K - 1).
        weight: Of each row in each problem, (B, N).
        strength: C of each problem, (B,), the same for all its steps.
        options: ``scales``, ``tolerance`` and ``max_iterations`` of
            :func:`evaluation.probing.solver.solve`.
    """
    raw, rows = np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    up = np.asarray(steps, dtype=np.float64)
    truth = np.broadcast_to(up, (len(rows), *up.shape))

    def loss_of(chunk: Chunk) -> BinaryLoss:
        return BinaryLoss(chunk.of_rows(truth).mT.contiguous(), chunk.weights)

    penalty = 1.0 / np.asarray(strength, dtype=np.float64)
    num_outputs = up.shape[1]
    return solve(
        raw, weight=rows, penalty=penalty, num_outputs=num_outputs, loss_of=loss_of, **options
    )


def class_probabilities(reaching: Floats) -> Floats:
    """(..., K - 1) chances of reaching each class to (..., K) chances of being it.

    The chances are first made to fall: the mean of the lowest so far and the highest to come.
    """
    lowest = np.minimum.accumulate(reaching, axis=-1)
    highest = np.maximum.accumulate(reaching[..., ::-1], axis=-1)[..., ::-1]
    falling = 0.5 * (lowest + highest)
    ends = np.ones((*reaching.shape[:-1], 1))
    bounded = np.concatenate([ends, falling, 0.0 * ends], axis=-1)
    shares: Floats = bounded[..., :-1] - bounded[..., 1:]
    return shares
