"""Each method against random initialisation: over stores, seeds and subjects.

The difference of a backbone is its mean over the tasks of the probe's metric, less that of the
untrained networks of its architecture, on the same subjects. Its interval is made as that of two
methods is (``methods.py``): seeds of pretraining and of initialisation are drawn with the subjects
of one cohort, or cohorts are drawn, and few of them widen it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluation.claiming.methods import estimate
from evaluation.claiming.scored import (
    Floats,
    Scored,
    common_methods,
    drawn_subjects,
    measure_tasks,
)

Sides = list[tuple[float, Floats]]


class Finding(NamedTuple):
    """A method's difference from its random initialisations."""

    difference: float
    interval: tuple[float, float]
    by_store: dict[str, float]
    by_task: dict[str, float]
    pretrained: float
    random: float
    num_runs: int
    num_subjects: int


def compare(
    stores: Sequence[Scored], *, num_bootstraps: int = 2000, seed: int = 0
) -> dict[str, Finding]:
    """Every method that all stores hold, with its 95% interval.

    Raises:
        ClaimError: The stores differ in their tasks or split, share some of their subjects only,
            or have no method in common.
    """
    methods = common_methods(stores)
    rng = np.random.default_rng(seed)
    weights, is_pooled = drawn_subjects(stores, num_bootstraps=num_bootstraps, rng=rng)
    return {
        method: _finding(method, stores, weights, is_pooled=is_pooled, rng=rng)
        for method in methods
    }


def _finding(
    method: str,
    stores: Sequence[Scored],
    weights: Sequence[Floats],
    *,
    is_pooled: bool,
    rng: np.random.Generator,
) -> Finding:
    measured = [_measured(each, method, w) for each, w in zip(stores, weights, strict=True)]
    parts = [_parts(each, method, values) for each, values in zip(stores, measured, strict=True)]
    # (2, tasks) of each store: the pretrained and the untrained.
    point = np.stack([part[..., 0].mean(axis=0) for part in parts])
    difference = point[:, 0] - point[:, 1]
    if is_pooled:
        sides = _seeds(stores, method, measured)
    else:
        sides = [(1.0, np.stack([_difference(part) for part in parts]))]
    found = estimate(sides, rng=rng)
    middle = float(difference.mean())
    low, high = (middle + end - found.difference for end in found.interval)
    return Finding(
        difference=middle,
        interval=(low, high),
        by_store={each.where: float(d.mean()) for each, d in zip(stores, difference, strict=True)},
        by_task={
            name: float(d) for name, d in zip(stores[0].tasks, difference.mean(axis=0), strict=True)
        },
        pretrained=float(point[:, 0].mean()),
        random=float(point[:, 1].mean()),
        num_runs=sum(len(each.runs[method]) for each in stores),
        num_subjects=len({subject for each in stores for subject in each.subjects}),
    )


def _measured(scored: Scored, method: str, weight: Floats) -> dict[str, Floats]:
    """(tasks, 1 + draws) of each backbone of a method and of each of their untrained twins."""
    runs = scored.runs[method]
    names = dict.fromkeys([*runs, *(twin for run in runs for twin in scored.twins[run])])
    return {name: measure_tasks(scored, name, weight) for name in names}


def _parts(scored: Scored, method: str, measured: dict[str, Floats]) -> Floats:
    """(runs, 2, tasks, draws): each backbone's metric, and the mean of its untrained twins'."""
    return np.stack(
        [
            [measured[run], np.mean([measured[twin] for twin in scored.twins[run]], axis=0)]
            for run in scored.runs[method]
        ]
    )


def _difference(parts: Floats) -> Floats:
    """(draws,): pretrained less untrained, the mean over backbones and tasks."""
    apart: Floats = (parts[:, 0] - parts[:, 1]).mean(axis=(0, 1))
    return apart


def _seeds(stores: Sequence[Scored], method: str, measured: Sequence[dict[str, Floats]]) -> Sides:
    """Seeds of pretraining against seeds of initialisation, on the same subjects; each once."""
    trained: dict[str, Floats] = {}
    untrained: dict[str, Floats] = {}
    for each, values in zip(stores, measured, strict=True):
        for run in each.runs[method]:
            trained.setdefault(each.digests[run], values[run].mean(axis=0))
            for twin in each.twins[run]:
                untrained.setdefault(twin, values[twin].mean(axis=0))
    return [(1.0, np.stack(list(trained.values()))), (-1.0, np.stack(list(untrained.values())))]
