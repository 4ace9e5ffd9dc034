"""The linear probe of each kind of task: logistic, softmax, ordinal, ridge or Cox regression.

Settings are the strengths of regularisation. All of them, and all sets of training rows, are
solved in one call.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.cox import solve_cox
from evaluation.probing.estimator import Estimator, Floats, Setting
from evaluation.probing.logistic import sigmoid, solve_logistic
from evaluation.probing.multinomial import one_hot, softmax, solve_multinomial
from evaluation.probing.ordinal import class_probabilities, reached, solve_ordinal
from evaluation.probing.ridge import solve_ridge
from evaluation.probing.solver import TOLERANCE, Solved, gather_decisions

CS = tuple(float(value) for value in np.logspace(-4.5, 1.0, 12))
ALPHAS = tuple(float(value) for value in np.logspace(5.0, -0.5, 12))

Masks = NDArray[np.bool_]
Strengths = NDArray[np.float64]


class How(NamedTuple):
    """See :func:`evaluation.probing.solver.solve`."""

    scales: bool
    tolerance: float


Solver = Callable[[Floats, Floats, Masks, Strengths, How], Floats]


def linear_probe(kind: str) -> Estimator:
    """The linear probe of a task's kind, over 12 values of C, or of alpha for ridge and Cox."""
    strength = strength_name(kind)
    values = CS if strength == "C" else ALPHAS
    settings = tuple({strength: value} for value in values)

    def predict(
        features: Floats, label: Floats, train: Masks, settings: Sequence[Setting]
    ) -> Floats:
        chosen = np.array([float(setting[strength]) for setting in settings])
        return linear_scores(kind, features, label, train, chosen)

    return Estimator("linear", settings, predict)


def strength_name(kind: str) -> str:
    """``C`` of the kinds with probabilities, larger is freer; ``alpha`` of others, or stronger."""
    if kind not in SOLVERS:
        raise ValueError(f"no linear probe for a {kind} task; there is one for {sorted(SOLVERS)}")
    return "alpha" if kind in ("regression", "survival") else "C"


def linear_scores(
    kind: str,
    features: Floats,
    label: Floats,
    train: Masks,
    strength: Strengths,
    *,
    scales: bool = True,
    tolerance: float = TOLERANCE,
) -> Floats:
    """Scores (B, n, K) of all rows by B linear probes; see ``Estimator.predict``.

    Args:
        kind: Of the task.
        features: (n, P).
        label: As in ``Task.label``.
        train: (B, n).
        strength: C or alpha of each, (B,): see :func:`strength_name`.
        scales: False where the features have been scaled already; they are centred always.
        tolerance: See :func:`evaluation.probing.solver.solve`.
    """
    how = How(scales, tolerance)
    return SOLVERS[kind](features, label, train, strength, how)


def _binary(features: Floats, label: Floats, train: Masks, strength: Strengths, how: How) -> Floats:
    parts = solve_logistic(features, label, train, strength, **how._asdict())
    return sigmoid(gather_decisions(parts, features, num_problems=len(train)))


def _multiclass(
    features: Floats, label: Floats, train: Masks, strength: Strengths, how: How
) -> Floats:
    target = one_hot(label, int(label.max()) + 1)
    parts = solve_multinomial(features, target, train, strength, **how._asdict())
    return softmax(gather_decisions(parts, features, num_problems=len(train)))


def _ordinal(
    features: Floats, label: Floats, train: Masks, strength: Strengths, how: How
) -> Floats:
    steps = reached(label, int(label.max()) + 1)
    parts = solve_ordinal(features, steps, train, strength, **how._asdict())
    decisions = gather_decisions(parts, features, num_problems=len(train))
    return class_probabilities(sigmoid(decisions))


def _multilabel(
    features: Floats, label: Floats, train: Masks, strength: Strengths, how: How
) -> Floats:
    """A label's problem leaves out the rows where it is missing."""
    num_labels = label.shape[1]
    known = train[:, None, :] & ~np.isnan(label).T  # (B, L, n)
    unknown = ~known.any(axis=2, keepdims=True)  # nobody in training has this label: one half
    rows = np.where(unknown, train[:, None, :], known).reshape(-1, len(label))
    truth = np.where(unknown, 0.5, np.nan_to_num(label).T).reshape(-1, len(label))
    strengths = np.repeat(strength, num_labels)
    parts = solve_logistic(features, truth, rows, strengths, **how._asdict())
    odds = gather_decisions(parts, features, num_problems=len(rows))
    return sigmoid(odds.reshape(len(train), num_labels, -1).transpose(0, 2, 1))


def _regression(
    features: Floats, label: Floats, train: Masks, strength: Strengths, how: How
) -> Floats:
    parts = solve_ridge(features, label, train, strength, scales=how.scales)
    return gather_decisions(parts, features, num_problems=len(train))


def _survival(
    features: Floats, label: Floats, train: Masks, strength: Strengths, how: How
) -> Floats:
    parts: Iterator[Solved] = solve_cox(features, label, train, strength, **how._asdict())
    return gather_decisions(parts, features, num_problems=len(train))


SOLVERS: dict[str, Solver] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "ordinal": _ordinal,
    "regression": _regression,
    "survival": _survival,
}
