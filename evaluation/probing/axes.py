"""Wide features made narrow, exactly: the principal axes of each problem's standardised rows.

A linear model with an L2 penalty never leaves the span of its training rows, so of thousands of
features only as many directions count as there are rows. Along the principal axes the curvature of
the loss is nearly diagonal as well, and a minimiser that divides by it needs few steps. Each set
standardises by the weighted mean and spread of its own rows: nothing outside them is used.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_DEAD = 1e-13  # of the largest squared singular value: rounding, no direction


class Axes(NamedTuple):
    """S sets of m rows in r = min(m, P) coordinates.

    Attributes:
        inside: Coordinates of the rows, (S, m, r), with columns that are orthogonal under the
            weights; 0 along a direction that the rows do not span, and in rows of weight 0.
        square: Weighted sum of squares of each column, (S, r).
        mean: Of the features, (S, P).
        scale: Of the features, (S, P); 1 for a feature that never varies.
        turn: (S, d, r); of ``spanned`` rows it makes directions in standardised features.
        spanned: (S, d, P): the weighted rows; None where the directions are ``turn`` themselves.
    """

    inside: Tensor
    square: Tensor
    mean: Tensor
    scale: Tensor
    turn: Tensor
    spanned: Tensor | None

    def raw_models(self, coefficient: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Models in coordinates, (S, M, r) and (S, M), to models of raw features, (S, M, P)."""
        raw = coefficient @ self.turn.mT
        if self.spanned is not None:
            raw = raw @ self.spanned
        raw = raw / self.scale[:, None]
        return raw, intercept - (raw @ self.mean[:, :, None])[:, :, 0]


def principal_axes(features: Tensor, *, weight: Tensor, scales: bool = True) -> Axes:
    """Standardise S sets of rows and turn them to their axes.

    Args:
        features: (S, m, P), float64.
        weight: (S, m); not all 0 in a set.
        scales: False only centres: the features have their scale from elsewhere.
    """
    share = weight / weight.sum(1, keepdim=True)
    mean = (share[:, None] @ features)[:, 0]
    centred = features - mean[:, None]
    variance = (share[:, None] @ centred.square())[:, 0]
    varies = variance > (1e-10 * mean).square() + 1e-30
    scale = torch.where(varies & scales, variance, 1.0).sqrt()
    root = weight.sqrt()[:, :, None]
    rows = root * (centred * (varies / scale)[:, None])
    if rows.shape[1] > rows.shape[2]:
        square, alive, vector = _eigen(rows.mT @ rows)
        turn, inside, spanned = vector * alive, rows @ (vector * alive), None
    else:
        square, alive, vector = _eigen(rows @ rows.mT)
        length = torch.where(alive, square, 1.0).sqrt()
        turn, inside, spanned = vector * alive / length, vector * alive * length, rows
    inside = torch.where(root > 0, inside / torch.where(root > 0, root, 1.0), 0.0)
    return Axes(inside, square[:, 0], mean, scale, turn, spanned)


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (S, 1, r), which of them are more than rounding, and eigenvectors (S, r, r)."""
    value, vector = torch.linalg.eigh(gram)
    value = value[:, None, :]
    alive = value > _DEAD * value[..., -1:].clamp_min(1e-300)
    return torch.where(alive, value, 0.0), alive, vector
