"""What a fine-tuned network predicts; it lies in the artefact, and says what each number means.

What is fitted on training labels (the scale of a quantity, the intervals of a survival) is fitted
once, by :func:`target_of`, and never on anybody else's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from foundation.metrics.by_name import Kind
from foundation.tasks.labels import TaskError
from foundation.tasks.task import Task
from recipes.load import Section

Rows = NDArray[np.int64]

UNFIT: tuple[Kind, ...] = ("retrieval",)
"""Kinds that nothing is trained for."""
NUM_INTERVALS = 8


class Target(Section):
    """Of a task card, and of the labels that were trained on."""

    task: str
    kind: Kind
    outputs: tuple[str, ...] = Field(min_length=1, description="names of the columns of a score")
    classes: tuple[str, ...] = Field(
        default=(), description="of classes, levels or labels; of a segmentation without background"
    )
    mask_values: dict[str, int] = Field(
        default_factory=dict, description="of a segmentation: value in the mask of each class"
    )
    centre: float = Field(default=0.0, description="of a quantity, in its own unit")
    scale: float = Field(default=1.0, gt=0)
    ends_days: tuple[float, ...] = Field(
        default=(), description="of a survival: ends of the intervals that hazards are of"
    )

    @model_validator(mode="after")
    def _check(self) -> "Target":
        if self.kind in UNFIT:
            raise ValueError(f"nothing is trained for kind {self.kind}")
        if (self.kind == "survival") != bool(self.ends_days):
            raise ValueError("ends_days belong to a survival")
        if (
            list(self.ends_days) != sorted(set(self.ends_days))
            or min(self.ends_days, default=1) <= 0
        ):
            raise ValueError(f"ends_days must rise from above 0, got {self.ends_days}")
        if self.kind == "segmentation" and tuple(self.mask_values) != self.outputs:
            raise ValueError("mask_values of a segmentation name its outputs, in order")
        return self

    @property
    def num_logits(self) -> int:
        """Numbers that a network gives: of a segmentation for each voxel, background first."""
        return {
            "binary": 1,
            "regression": 1,
            "ordinal": len(self.outputs) - 1,
            "survival": len(self.ends_days),
            "segmentation": len(self.outputs) + 1,
        }.get(self.kind, len(self.outputs))


def target_of(task: Task, train: Rows) -> Target:
    """Of a task, with what is fitted on its training subjects.

    Raises:
        TaskError: Nothing is trained for this kind of task.
    """
    card = task.card
    if card.kind in UNFIT:
        raise TaskError(
            f"task {card.name}: kind {card.kind} scores features as they are, nothing is trained "
            "for it; take another card"
        )
    fitted: dict[str, Any] = {}
    label = task.label[train]
    if card.kind == "regression":
        fitted = {"centre": float(label.mean()), "scale": float(label.std()) or 1.0}
    if card.kind == "survival":
        fitted = {"ends_days": interval_ends(label[:, 0], label[:, 1])}
    if card.kind == "segmentation":
        fitted = {"mask_values": dict(card.label.mask_values)}
    return Target(
        task=card.name, kind=card.kind, outputs=task.outputs, classes=task.classes, **fitted
    )


def interval_ends(
    days: NDArray[np.float64], event: NDArray[np.float64], *, num: int = NUM_INTERVALS
) -> tuple[float, ...]:
    """Quantiles of the event times, so that each interval has as many events, and the last time."""
    shares = np.linspace(0, 1, num + 1)[1:]
    ends = np.quantile(days[event > 0], shares, method="inverted_cdf")
    ends[-1] = max(ends[-1], days.max())
    return tuple(float(end) for end in np.unique(ends))
