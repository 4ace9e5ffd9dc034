"""What a trained probe predicts of each kind: its loss, and the scores its logits stand for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.probing.cox import CoxLoss
from evaluation.probing.estimator import Floats
from evaluation.probing.logistic import BinaryLoss, sigmoid
from evaluation.probing.multinomial import SoftmaxLoss, one_hot, softmax
from evaluation.probing.ordinal import class_probabilities, reached
from evaluation.probing.solver import Loss

Masks = NDArray[np.bool_]


class Head(NamedTuple):
    """The end of a network.

    Attributes:
        num_outputs: K' logits; one less than the classes of an ordinal task.
        loss: (positions of m rows, which of them train (B, m)) -> the loss of B problems.
        scores: (logits (B, n, K'), training rows (B, n)) -> scores (B, n, K).
    """

    num_outputs: int
    loss: Callable[[NDArray[np.int64], Tensor], Loss]
    scores: Callable[[Floats, Masks], Floats]


def head_of(kind: str, label: Floats) -> Head:
    """The head for a task's labels, as in ``Task.label``."""
    if kind == "survival":
        return Head(1, lambda rows, masks: _cox(label[rows], masks), lambda logits, _: logits)
    if kind == "regression":
        return Head(
            1,
            lambda rows, masks: SquaredLoss(_standardised(label[rows], masks), _weight(masks)),
            lambda logits, train: _restored(logits, label, train),
        )
    if kind == "multiclass":
        target = one_hot(label, int(label.max()) + 1)
        return Head(
            target.shape[1],
            lambda rows, masks: SoftmaxLoss(_truth(target[rows], masks), _weight(masks)),
            lambda logits, _: softmax(logits),
        )
    if kind == "ordinal":
        steps = reached(label, int(label.max()) + 1)
        return Head(
            steps.shape[1],
            lambda rows, masks: BinaryLoss(_truth(steps[rows], masks), _weight(masks)),
            lambda logits, _: class_probabilities(sigmoid(logits)),
        )
    if kind in ("binary", "multilabel"):
        columns = label.reshape(len(label), -1)
        return Head(
            columns.shape[1],
            lambda rows, masks: _labels(columns[rows], masks),
            lambda logits, _: sigmoid(logits),
        )
    raise ValueError(f"no attentive probe for a {kind} task")


class SquaredLoss:
    """``sum_i w_i (z_i - y_i)^2 / 2``.

    Args:
        truth: (B, 1, m).
        weight: (B, 1, m).
    """

    def __init__(self, truth: Tensor, weight: Tensor) -> None:
        self._truth, self._weight = truth, weight
        self.start = torch.zeros(truth.shape[:2], dtype=truth.dtype)
        self.curvature = torch.ones_like(self.start)

    def value(self, logits: Tensor) -> Tensor:
        return 0.5 * (self._weight * (logits - self._truth).square()).sum((1, 2))

    def slope(self, logits: Tensor) -> Tensor:
        return self._weight * (logits - self._truth)


def _weight(masks: Tensor) -> Tensor:
    return masks[:, None].double()


def _truth(columns: Floats, masks: Tensor) -> Tensor:
    """(m, K) to (B, K, m)."""
    return torch.from_numpy(columns).T.expand(len(masks), -1, -1)


def _labels(columns: Floats, masks: Tensor) -> BinaryLoss:
    """A missing label weighs nothing."""
    truth = _truth(columns, masks)
    return BinaryLoss(truth.nan_to_num(), _weight(masks) * truth.isfinite())


def _cox(outcome: Floats, masks: Tensor) -> CoxLoss:
    time, event = _truth(outcome, masks).contiguous().unbind(1)
    return CoxLoss(time.contiguous(), event.contiguous(), _weight(masks))


def _standardised(value: Floats, masks: Tensor) -> Tensor:
    mean, spread = _moments(value, masks.numpy())
    return torch.from_numpy((value - mean) / spread)[:, None]


def _restored(logits: Floats, value: Floats, train: Masks) -> Floats:
    mean, spread = _moments(value, train)
    restored: Floats = logits * spread[:, :, None] + mean[:, :, None]
    return restored


def _moments(value: Floats, train: Masks) -> tuple[Floats, Floats]:
    """Mean and spread of the training values of each problem, (B, 1)."""
    share = train / train.sum(axis=1, keepdims=True)
    mean = (share @ value)[:, None]
    spread = np.sqrt((share * (value - mean) ** 2).sum(axis=1, keepdims=True))
    return mean, np.where(spread > 0, spread, 1.0)
