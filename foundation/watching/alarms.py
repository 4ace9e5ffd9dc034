"""The healthy range of every monitor, and the alarm where one stays outside of it.

What was seen follows from the log's lines alone, so a resumed run goes on as if never stopped.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foundation.running.ranks import stop_all


class Unhealthy(ValueError):
    """A run that ``health.on_alarm: stop`` ends."""


class Healthy(NamedTuple):
    """The range of one monitor, the same for every batch and width: each is a share."""

    low: float
    high: float
    below: str = ""
    """what a value below means, and what helps; empty where there is nothing below"""
    above: str = ""


class Alarm(NamedTuple):
    """A monitor that is outside its range, and has been for too long to be chance."""

    step: int
    name: str
    value: float
    """the median of what was read"""
    for_steps: int
    """that the readings span"""

    @property
    def line(self) -> dict[str, Any]:
        """Of the log."""
        healthy = HEALTHY[self.name]
        return {
            "step": self.step,
            "alarm": self.name,
            "value": self.value,
            "healthy": [healthy.low, healthy.high],
            "for_steps": self.for_steps,
        }

    def __str__(self) -> str:
        healthy = HEALTHY[self.name]
        advice = healthy.below if self.value < healthy.low else healthy.above
        return (
            f"after {self.step} steps {self.name} is {self.value:.3g}, the median over "
            f"{self.for_steps} steps, and healthy is {healthy.low:g} to {healthy.high:g}: {advice}"
        )


_UNIFORM = (
    "the teacher prefers no prototype, and the loss stays at ln K (uniform collapse); lower "
    "teacher_temp, take sinkhorn targets or fewer prototypes, or freeze the last layer for longer"
)
_AT_LN_K = (
    f"{_UNIFORM}; where the loss is far above ln K instead, the teacher changes faster than the "
    f"student can follow: raise momentum_teacher, or lower the learning rate"
)
_ONE_PROTOTYPE = (
    "the teacher gives nearly all scans the same prototypes (constant output); take sinkhorn "
    "targets, lower center_momentum, or raise momentum_teacher"
)
_ONE_FEATURE = (
    "all scans get nearly the same features (collapse); look at the other monitors, and whether "
    "the loss falls at all; lower the learning rate, or position_scale of a small backbone"
)
_FEW_DIRECTIONS = (
    "features differ in one or two directions only (dimensional collapse); take a larger batch, "
    "KoLeo, or less weight decay at the end (0.2)"
)
_PATCHES_ARE_CLASS = (
    "patch tokens say no more than the class token; give iBOT its weight, or hide more patches"
)
_CHANCE = (
    "the nearest scans are of other classes, more than by chance; look at the label and at what "
    "else divides the scans, such as the scanner"
)

# Of the method, at every step. A healthy teacher's entropy lies above 0.7 with centring, and above
# that of scans that share out all prototypes with Sinkhorn-Knopp; a batch of 8 whose scans all
# prefer one prototype uses 0.125 of them.
_OF_THE_METHOD = {
    "teacher_entropy": Healthy(0.15, 0.99, _ONE_PROTOTYPE, _UNIFORM),
    "ln_k_distance": Healthy(0.002, 0.95, _AT_LN_K, _ONE_PROTOTYPE),
    "prototype_use": Healthy(0.15, 1.0, _ONE_PROTOTYPE),
}

# Of the pinned scans. The spread is 1 for directions all over the sphere (Chen & He 2021), and with
# a mean cosine g its square is about 1 - g, so those two limits are one. Ranks are of the n - 1 or
# n that n scans can reach (Roy & Vetterli 2007, Garrido et al. 2023): of 32 scans, 0.05 is one
# direction and a half. 0.2 is three standard errors of 32 scans below chance.
_OF_THE_FEATURES = {
    "feature_std": Healthy(0.05, 1.0, _ONE_FEATURE),
    "gram_off_diagonal": Healthy(-1.0, 0.9975, "", _ONE_FEATURE),
    "effective_rank": Healthy(0.05, 1.0, _FEW_DIRECTIONS),
    "rankme": Healthy(0.04, 1.0, _FEW_DIRECTIONS),
    "cls_patch_cosine": Healthy(-1.0, 0.995, "", _PATCHES_ARE_CLASS),
    "knn_auroc": Healthy(0.2, 1.0, _CHANCE),
}

HEALTHY: dict[str, Healthy] = _OF_THE_METHOD | _OF_THE_FEATURES

NO_COLLAPSE = ("effective_rank", "rankme", "cls_patch_cosine", "knn_auroc")
"""Monitors that tell of poor features, not of features that are lost; an alarm is all they give."""


class Reading(NamedTuple):
    """Of one monitor in one line."""

    step: int
    value: float


class Alarms:
    """Watches the log's lines go by."""

    def __init__(self, *, first_judged: int, patience_steps: int) -> None:
        """Judge what was logged after ``first_judged`` updates, and later."""
        self._first_judged = first_judged
        self._patience_steps = patience_steps
        self._readings: defaultdict[str, list[Reading]] = defaultdict(list)
        self._told: set[str] = set()

    def see(self, line: Mapping[str, Any]) -> list[Alarm]:
        """What this line gives alarm for; once, until the monitor has been healthy again.

        A monitor is judged by the median of its readings over ``patience_steps``, of two readings
        at least where they are rarer: a collapsed run may well look healthy for a step.
        """
        step = line["step"]
        if step < self._first_judged:
            return []
        found = []
        for name, healthy in HEALTHY.items():
            if name not in line or (judged := self._judged(name, step, line[name])) is None:
                continue
            if healthy.low <= judged.value <= healthy.high:
                self._told.discard(name)
            elif name not in self._told:
                self._told.add(name)
                found.append(judged)
        return found

    def _judged(self, name: str, step: int, value: float) -> Alarm | None:
        """The monitor's last readings, as they would be told; None where they span too little."""
        readings = self._readings[name]
        readings.append(Reading(step, value))
        while len(readings) > 2 and step - readings[1].step >= self._patience_steps:
            readings.pop(0)
        span = step - readings[0].step
        if span < self._patience_steps:
            return None
        return Alarm(step, name, float(np.median([each.value for each in readings])), span)


def stop_for(alarms: Sequence[Alarm]) -> None:
    """End the run where there is any alarm; every rank has the same.

    Raises:
        Unhealthy: On rank 0, with the first one in words.
    """
    if alarms:
        stop_all(
            Unhealthy(
                f"{alarms[0]}; the last checkpoint is kept, and health.on_alarm=warn goes on "
                f"from it"
            )
        )
