"""Which training subjects a few-shot probe sees: a hundred nested draws, the same for every model.

A draw is an order of the training subjects of each class; its first k are the k-shot set, and its
first tenth the 10% set. So the sets of one draw are nested, and models are compared on the same
draws. A draw depends on the seed and on what the training labels stratify by, and on no model.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from evaluation.probing.estimator import Rows
from foundation.tasks.folds import strata
from foundation.tasks.task import Task
from recipes.load import Section

SHOTS, FRACTION = "shots", "fraction"
KINDS_OF_SHOTS = ("binary", "multiclass")
_LEAST_SUBJECTS = 2


class FewShotConfig(Section):
    """How many subjects, how often drawn, and the fixed strength of the probes."""

    shots: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 4, 8, 16, 32), description="subjects per class, of tasks with classes"
    )
    fractions: tuple[float, ...] = Field(
        default=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0), description="of the training subjects"
    )
    num_draws: PositiveInt = 100
    C: PositiveFloat = Field(
        default=1.0, description="of the logistic probe, for every number of subjects"
    )
    alpha: PositiveFloat = Field(default=100.0, description="of ridge and Cox probes, likewise")
    temperature: PositiveFloat = Field(default=0.1, description="of the class means")
    tune_from: int | None = Field(
        default=None,
        ge=2,
        description="where every class has so many subjects, choose C (or alpha of a ridge) by "
        "cross-validation among them; null: never",
    )
    seed: NonNegativeInt = 0


class Point(NamedTuple):
    """How many subjects a set has: ``x`` per class (``shots``), or of all (``fraction``)."""

    x: float
    unit: str

    def __str__(self) -> str:
        if self.unit == SHOTS:
            return f"{self.x:g} shots"
        return f"{100 * self.x:g}% of the training subjects"


class Draws(NamedTuple):
    """Orders of the training subjects.

    Attributes:
        order: By stratum, positions in the task, (num_draws, members).
        points: That can be drawn, shots first, ascending.
        missing: That cannot, each with its reason.
    """

    order: dict[int, Rows]
    points: tuple[Point, ...]
    missing: dict[Point, str]

    def sizes(self, point: Point) -> dict[int, int]:
        """Subjects of each stratum in a set."""
        return {stratum: _size(members.shape[1], point) for stratum, members in self.order.items()}

    def sets(self, point: Point) -> Rows:
        """Positions in the task of each draw's set, (num_draws, size), by stratum and order."""
        sizes = self.sizes(point)
        return np.concatenate(
            [members[:, : sizes[stratum]] for stratum, members in self.order.items()], axis=1
        )

    def masks(self, point: Point, *, num_subjects: int) -> NDArray[np.bool_]:
        """The same as (num_draws, n)."""
        sets = self.sets(point)
        masks = np.zeros((len(sets), num_subjects), dtype=np.bool_)
        np.put_along_axis(masks, sets, True, axis=1)
        return masks


def unsuitable(task: Task) -> str | None:
    """Why a task has no few-shot scores, or None."""
    if task.card.kind in ("segmentation", "retrieval"):
        return f"few-shot probes learn from one label a subject; this is a {task.card.kind}"
    if task.card.protocol.repeated_cv is not None:
        return "few-shot draws need a training split; this task is cross-validated"
    return None


def draw(task: Task, config: FewShotConfig) -> Draws:
    """The draws of a task that is not :func:`unsuitable`."""
    train = task.rows("train")
    stratum = strata(task.label[train], kind=task.card.kind)
    rng = np.random.default_rng(config.seed)
    order = {}
    for each in np.unique(stratum):
        members = np.tile(train[stratum == each], (config.num_draws, 1))
        order[int(each)] = rng.permuted(members, axis=1)
    names = {each: _name(task, each) for each in order}
    reasons = {point: _too_few(order, names, point) for point in _wanted(task, config)}
    points = tuple(point for point, reason in reasons.items() if reason is None)
    missing = {point: reason for point, reason in reasons.items() if reason is not None}
    return Draws(order, points, missing)


def stored_draws(task: Task, draws: Draws, config: FewShotConfig) -> dict[str, Any]:
    """The draws as the store keeps them, enough to repeat every set.

    ``orders`` holds, for each stratum and draw, positions in ``subjects`` (pseudonyms), as far as
    any set but the whole training split reaches.
    """
    train = task.rows("train")
    parts = [point for point in draws.points if point != Point(1.0, FRACTION)]
    orders = {}
    for stratum, members in draws.order.items():
        longest = max((draws.sizes(point)[stratum] for point in parts), default=0)
        orders[str(stratum)] = np.searchsorted(train, members[:, :longest]).tolist()
    return {
        **config.model_dump(mode="json", exclude={"shots", "fractions"}),
        "points": [point._asdict() for point in draws.points],
        "missing": [
            {**point._asdict(), "reason": reason} for point, reason in draws.missing.items()
        ],
        "subjects": [task.subjects[row] for row in train],
        "orders": orders,
    }


def _wanted(task: Task, config: FewShotConfig) -> list[Point]:
    shots = sorted(set(config.shots)) if task.card.kind in KINDS_OF_SHOTS else []
    fractions = sorted(set(config.fractions))
    return [Point(float(k), SHOTS) for k in shots] + [Point(f, FRACTION) for f in fractions]


def _size(members: int, point: Point) -> int:
    return int(point.x) if point.unit == SHOTS else int(point.x * members + 0.5)


def _too_few(order: dict[int, Rows], names: dict[int, str], point: Point) -> str | None:
    """Why a point cannot be drawn: a class that has too few, or would be left without any."""
    members = {each: rows.shape[1] for each, rows in order.items()}
    rarest = min(members, key=lambda each: members[each])
    if point.unit == SHOTS:
        if members[rarest] >= point.x:
            return None
        return f"{names[rarest]} has {members[rarest]} training subjects, fewer than {point.x:g}"
    sizes = {each: _size(count, point) for each, count in members.items()}
    if empty := [each for each, size in sizes.items() if not size]:
        return f"{point} leaves none of the {members[empty[0]]} of {names[empty[0]]}"
    if sum(sizes.values()) < _LEAST_SUBJECTS:
        return f"{point} is fewer than {_LEAST_SUBJECTS}"
    return None


def _name(task: Task, stratum: int) -> str:
    if task.card.kind in ("multiclass", "ordinal"):
        return f"class {task.outputs[stratum]}"
    return {
        "binary": f"class {stratum}",
        "survival": "those with an event" if stratum else "those without an event",
        "multilabel": f"those with {stratum} positive labels",
        "regression": "the training split",
    }[task.card.kind]
