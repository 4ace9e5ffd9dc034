"""What a run in trouble does: skip, cool down, roll back, and at last stop.

An incident is an update whose loss or gradient is not finite (which no rank applies), a loss that
has jumped, or a monitor that says the features collapse. Each one cools the learning rate for a
while. Too many of them in a stretch take the run back to its last healthy checkpoint, to go on
behind the scans that were seen since; too many returns end it. All follows from numbers that every
rank has, and from ``incidents.json``, so all ranks and resumed runs decide alike.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from recipes.load import Section
from shards.files import write_json

Kind = Literal["loss", "gradient", "spike", "collapse", "rollback"]

_RECENT = 100
_JUDGED = 5
_MAD_TO_STD = 1.4826


class SafetyConfig(Section):
    """Limits of what a run may go through by itself."""

    cool_factor: float = Field(
        default=0.5, gt=0, le=1, description="of the learning rate, for each incident"
    )
    cool_steps: int = Field(default=100, ge=1, description="updates that an incident cools")
    tolerance: int = Field(
        default=3, ge=0, description="incidents in cool_steps updates; one more rolls back"
    )
    max_rollbacks: int = Field(default=2, ge=0, description="one more stops the run")
    spike_deviations: float | None = Field(
        default=10.0,
        gt=0,
        description="a loss is a spike this many standard deviations above its last hundred "
        "values; null: never",
    )
    stall_s: float = Field(
        default=300.0, gt=0, description="without a sign of life a rank is told to hang"
    )


class Incident(NamedTuple):
    """Something that went wrong, or what was done about it."""

    step: int
    """updates done, that one included; of a rollback, those of the checkpoint gone back to"""
    kind: Kind
    passed: int = 0
    """of a rollback: updates' worth of scans that are not seen again"""


class Ladder:
    """The incidents of a run, and what they ask for.

    Attributes:
        incidents: In the order of their happening.
    """

    def __init__(self, config: SafetyConfig, incidents: Sequence[Incident] = ()) -> None:
        self._config = config
        self.incidents = list(incidents)

    @property
    def passed(self) -> int:
        """Updates' worth of scans that were passed over so far."""
        return sum(each.passed for each in self.incidents)

    @property
    def num_rollbacks(self) -> int:
        """Returns so far."""
        return sum(each.kind == "rollback" for each in self.incidents)

    def lr_scale(self, step: int) -> float:
        """Share of the learning rate for the update after ``step`` of them."""
        return float(self._config.cool_factor ** len(self._recent(step)))

    def is_healthy(self, step: int) -> bool:
        """No incident for long enough to come back to a checkpoint of now."""
        return not [each for each in self._recent(step) if each.kind != "rollback"]

    def note(self, incident: Incident) -> bool:
        """Take an incident down; whether it is one too many, so that the run must roll back."""
        self.incidents.append(incident)
        recent = [each for each in self._recent(incident.step) if each.kind != "rollback"]
        return len(recent) > self._config.tolerance

    def may_roll_back(self) -> bool:
        """Another return is within the recipe's limit."""
        return self.num_rollbacks < self._config.max_rollbacks

    def before(self, step: int) -> int:
        """Checkpoints of fewer updates than this may be gone back to, from ``step``.

        Where trouble comes back soon after a return, that checkpoint had it in it already.
        """
        returns = [each.step for each in self.incidents if each.kind == "rollback"]
        if returns and 0 < step - returns[-1] <= self._config.cool_steps:
            return returns[-1]
        return step

    def roll_back(self, *, at: int, to: int) -> None:
        """Forget what came after ``to`` updates, and pass over the scans seen since."""
        kept = [each for each in self.incidents if each.step <= to or each.kind == "rollback"]
        kept = [each._replace(step=min(each.step, to)) for each in kept]
        self.incidents = [*kept, Incident(to, "rollback", at - to)]

    def _recent(self, step: int) -> list[Incident]:
        start = step - self._config.cool_steps
        return [each for each in self.incidents if start < each.step <= step]


class Spikes:
    """Tells a loss that has jumped from one that wavers.

    Attributes:
        recent: The last losses, oldest first; a resumed run goes on with a checkpoint's.
    """

    def __init__(self, deviations: float | None, recent: Sequence[float] = ()) -> None:
        self._deviations = deviations
        self.recent = list(recent)

    def see(self, loss: float) -> bool:
        """Whether the last few losses lie far above those before; they are then forgotten.

        A spike is judged by the median of five losses, so that one odd batch is none, against the
        median of the hundred before them and their spread (by the median absolute deviation).
        """
        self.recent = [*self.recent, loss][-(_RECENT + _JUDGED) :]
        before, judged = self.recent[:-_JUDGED], self.recent[-_JUDGED:]
        if self._deviations is None or len(before) < _RECENT:
            return False
        middle = float(np.median(before))
        spread = _MAD_TO_STD * float(np.median(np.abs(np.asarray(before) - middle)))
        if np.median(judged) <= middle + self._deviations * max(spread, 1e-3 * abs(middle)):
            return False
        self.recent = []
        return True


def not_finite(loss: float, norm: float) -> Literal["loss", "gradient"] | None:
    """Which of an update's numbers is none, if any."""
    if not math.isfinite(loss):
        return "loss"
    return None if math.isfinite(norm) else "gradient"


def read_incidents(path: Path, *, up_to: int) -> list[Incident]:
    """Those that a run going on after ``up_to`` updates has behind it."""
    if not path.exists():
        return []
    entries = [Incident(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    return [each for each in entries if each.step <= up_to]


def write_incidents(path: Path, incidents: Sequence[Incident]) -> None:
    """For :func:`read_incidents`, whole or as it was."""
    write_json(path, [each._asdict() for each in incidents])
