"""Few-shot probes: k subjects per class, a hundred nested draws, the same for every model.

A draw is an order of the training subjects of each class; its first k are the k-shot set. So the
sets of one draw are nested, and models are compared on the same draws. Nothing is tuned: C is a
constant of the protocol and every feature is used, so no labels beyond the shots are spent.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from evaluation.probing.linear import fit_logistic
from evaluation.probing.protocols import Features, Floats
from evaluation.statistics.metrics import measure
from evaluation.tasks.task import Task
from recipes.load import Section


class FewShotConfig(Section):
    """How many subjects per class, how often drawn, and the fixed strength of the probe."""

    shots: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)
    num_draws: PositiveInt = 100
    C: PositiveFloat = Field(
        default=1.0, description="of the logistic probe, for every number of shots"
    )
    seed: int = 0


class Draws(NamedTuple):
    """Positions of training subjects, drawn without replacement.

    Attributes:
        order: (num_draws, 2, longest): by draw and class; the first k are the k-shot set.
        missing: Shots that a class has too few training subjects for, with the reason.
    """

    order: NDArray[np.int64]
    shots: tuple[int, ...]
    missing: dict[int, str]


def unsuitable(task: Task) -> str | None:
    """Why a task has no few-shot scores, or None."""
    if task.card.kind != "binary":
        return "few-shot draws are per class; this is a regression"
    if task.card.protocol.repeated_cv is not None:
        return "few-shot draws need a training split; this task is cross-validated"
    return None


def draw(task: Task, config: FewShotConfig) -> Draws:
    """The draws of a task; they depend on the seed and the training labels, on no model."""
    train = task.rows("train")
    classes = [train[task.label[train] == level] for level in (0, 1)]
    fewest = min(len(members) for members in classes)
    shots = tuple(k for k in sorted(config.shots) if k <= fewest)
    missing = {
        k: f"the rarer class has {fewest} training subjects, fewer than {k}"
        for k in sorted(config.shots)
        if k > fewest
    }
    rng = np.random.default_rng(config.seed)
    longest = max(shots, default=0)
    order = [
        [rng.permutation(members)[:longest] for members in classes] for _ in range(config.num_draws)
    ]
    return Draws(np.array(order, dtype=np.int64), shots, missing)


def stored_draws(task: Task, draws: Draws, config: FewShotConfig) -> dict[str, Any]:
    """The draws as the store keeps them: pseudonyms by draw and class, in nested order."""
    named = [
        {str(level): [task.subjects[row] for row in rows] for level, rows in enumerate(classes)}
        for classes in draws.order
    ]
    return {
        "seed": config.seed,
        "C": config.C,
        "shots": list(draws.shots),
        "missing": {str(k): reason for k, reason in draws.missing.items()},
        "draws": named,
    }


def score_draws(
    task: Task, features: Features, draws: Draws, config: FewShotConfig, *, split: str
) -> list[tuple[int, int, float]]:
    """Score every draw on one split.

    Features that are fitted (a PCA) are fitted on the training split without its labels.

    Returns:
        (shots, draw, score by the task's metric), draws in order.
    """
    train, held_out = task.rows("train"), task.rows(split)
    values = features(train) if callable(features) else features
    results = []
    for k in draws.shots:
        decisions = _decide(values, task.label, draws.order[:, :, :k], held_out, c=config.C)
        for number, decision in enumerate(decisions):
            score = measure(task.label[held_out], decision, task.card.metric)
            results.append((k, number, score))
    return results


def _decide(
    values: Floats,
    label: Floats,
    order: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    c: float,
) -> Sequence[Floats]:
    """Log-odds of the held-out rows by each draw's model, all draws solved together."""
    rows = order.reshape(len(order), -1)
    models = fit_logistic(
        values[rows], label[rows], np.ones(rows.shape), np.full(len(rows), c), tolerance=1e-5
    )
    return list(models.decision(values[held_out]))
