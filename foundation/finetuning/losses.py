"""What a fine-tuned network is trained for: a loss of each scan, by the kind of its label.

The loss of a scan depends on no other scan, and weights are fitted once, on all training labels: so
a mean over ranks is what one rank gives for the joined batch.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from foundation.finetuning.links import precise
from foundation.finetuning.target import Target
from foundation.metrics.by_name import Kind
from recipes.load import Section

_OF_CLASSES: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "ordinal")


class LossConfig(Section):
    """How labels weigh; each setting belongs to some kinds of task, and is refused for others."""

    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class, level or side of a label weighs alike"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of a label that is spread over all classes"
    )
    huber_delta: float | None = Field(
        default=None,
        gt=0,
        description="of a quantity: the error, in standard deviations of the training labels, from "
        "which it counts by its size instead of its square; null: always its square",
    )


class LossWeights(NamedTuple):
    """Fitted on training labels; their mean over the labels they were fitted on is 1."""

    by_class: Tensor
    """(K,) float32 of classes or levels; (L, 2) of the two sides of each label; (0,) of others"""


def loss_weights(label: NDArray[np.float64], *, target: Target, config: LossConfig) -> LossWeights:
    """Weights of the classes, inverse to how often they are, or all 1.

    Args:
        label: Of the training subjects, (n,), or (n, L) with NaN where one is missing.
        target: What is predicted.
        config: Of the loss.

    Raises:
        ValueError: A setting that this kind of task has no use for.
    """
    _check(config, kind=target.kind)
    if target.kind not in _OF_CLASSES:
        return LossWeights(torch.ones(0))
    if target.kind == "multilabel":
        sides = [_inverse(column, num=2, config=config) for column in label.T]
        return LossWeights(torch.stack(sides))
    num = 2 if target.kind == "binary" else len(target.outputs)
    return LossWeights(_inverse(label, num=num, config=config))


def label_loss(
    logits: Tensor,
    labels: Tensor,
    target: Target,
    weights: LossWeights,
    *,
    label_smoothing: float,
    huber_delta: float | None,
) -> Tensor:
    """The loss of each scan, in float32 or better also under autocast.

    Args:
        logits: (B, ``target.num_logits``).
        labels: (B,), or (B, L) with NaN where one is missing, or (B, 2) days and event.
        target: What is predicted, not a segmentation.
        weights: Of the classes.
        label_smoothing: Of kinds with classes.
        huber_delta: Of a quantity, in standard deviations.

    Returns:
        (B,), to be averaged.
    """
    logits, labels = precise(logits), labels.to(logits.device)
    if target.kind == "regression":
        return _of_quantity(logits[:, 0], labels, target=target, delta=huber_delta)
    if target.kind == "survival":
        return survival_loss(logits, labels, ends_days=target.ends_days)
    by_class = weights.by_class.to(logits)
    if target.kind == "multilabel":
        return _of_labels(logits, labels, sides=by_class, smoothing=label_smoothing)
    classes = labels.long()
    if target.kind == "multiclass":
        loss = functional.cross_entropy(
            logits, classes, label_smoothing=label_smoothing, reduction="none"
        )
    else:
        assert target.kind in ("binary", "ordinal"), "masks have a loss of their own"
        steps = torch.arange(1, logits.shape[1] + 1, device=logits.device)
        reached = (classes[:, None] >= steps).to(logits.dtype)
        loss = _yes_or_no(logits, reached, smoothing=label_smoothing).mean(dim=1)
    return by_class[classes] * loss


def survival_loss(logits: Tensor, labels: Tensor, *, ends_days: tuple[float, ...]) -> Tensor:
    """Minus the log-likelihood of logistic hazards (Gensheimer and Narasimhan 2019, eq. 2).

    An event tells of its interval and all before. A censored scan tells of the intervals that end
    until then: the one it is lost in does not count. After the last end nothing more is told.

    Args:
        logits: Log-odds of each interval's hazard, (B, J).
        labels: Days and event (1, or 0 for censored), (B, 2).
        ends_days: Of the J intervals, the first of which begins at 0.
    """
    days, event = labels.unbind(dim=1)
    # Ends are rounded as the days are: a subject whose own time is an end is on its near side.
    ends = labels.new_tensor(ends_days)
    lived_through = ends <= days[:, None]
    begun = functional.pad(ends[:-1], (1, 0)) < days[:, None]
    dies_in = begun & (ends >= days[:, None]) & (event > 0)[:, None]
    lived = lived_through & ~dies_in
    died, stayed = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    return -(torch.where(dies_in, died, 0.0) + torch.where(lived, stayed, 0.0)).sum(dim=1)


def _check(config: LossConfig, *, kind: Kind) -> None:
    of_classes = kind in _OF_CLASSES
    unfit = {
        "class_weights": config.class_weights != "none" and not of_classes,
        "label_smoothing": config.label_smoothing > 0 and not of_classes,
        "huber_delta": config.huber_delta is not None and kind != "regression",
    }
    if found := [name for name, is_unfit in unfit.items() if is_unfit]:
        raise ValueError(
            f"loss.{found[0]} says nothing for a {kind} task; leave it out, or take another card"
        )


def _inverse(label: NDArray[np.float64], *, num: int, config: LossConfig) -> Tensor:
    """(num,) weights, whose mean over the known labels is 1; a class nobody has weighs 1."""
    weights = np.ones(num)
    if config.class_weights == "balanced":
        count = np.bincount(label[np.isfinite(label)].astype(np.int64), minlength=num)
        there = count > 0
        weights[there] = count.sum() / (there.sum() * count[there])
    return torch.from_numpy(weights).float()


def _yes_or_no(logits: Tensor, truth: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy of each cell; a smoothed label gives half of the share to the other side."""
    smoothed = truth * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")


def _of_labels(logits: Tensor, labels: Tensor, *, sides: Tensor, smoothing: float) -> Tensor:
    """(B,): the sum over the labels that are known, over the number of labels."""
    known = labels.isfinite()
    truth = torch.where(known, labels, 0.0).to(logits.dtype)
    weight = torch.where(truth > 0, sides[:, 1], sides[:, 0]) * known
    return (weight * _yes_or_no(logits, truth, smoothing=smoothing)).mean(dim=1)


def _of_quantity(
    prediction: Tensor, labels: Tensor, *, target: Target, delta: float | None
) -> Tensor:
    """(B,): the squared error in standard deviations; past ``delta`` it grows straight on.

    Huber (1964) halves both parts; here they are whole, so that a large ``delta`` is the square.
    """
    truth = ((labels - target.centre) / target.scale).to(prediction.dtype)
    if delta is None:
        return (prediction - truth).square()
    return 2 * functional.huber_loss(prediction, truth, delta=delta, reduction="none")
