"""Each method against random initialisation: a bootstrap over stores, backbones and subjects.

The difference of a backbone is its mean over the tasks of the probe's metric, less that of the
untrained networks of its architecture, on the same subjects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.claiming.scored import (
    Floats,
    Scored,
    common_methods,
    measure_tasks,
    share_subjects,
    subject_counts,
)


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
    drawn = _drawn(stores, num_bootstraps=num_bootstraps, seed=seed)
    return {method: _finding(method, stores, drawn) for method in methods}


class _Drawn(NamedTuple):
    """What the bootstrap drew; S stores make S places in each draw."""

    chosen: NDArray[np.int64]
    """(draws, S), the store in each place"""
    weights: list[list[Floats]]
    """by place and store: (draws, subjects), how often each subject is drawn"""
    uniform: Floats
    """(draws, S, R) in [0, 1), which choose among up to R backbones of a method"""


def _drawn(stores: Sequence[Scored], *, num_bootstraps: int, seed: int) -> _Drawn:
    rng = np.random.default_rng(seed)
    num = len(stores)
    chosen = rng.integers(0, num, (num_bootstraps, num))
    if share_subjects(stores):
        # Whoever is drawn is drawn in every store: their scores rise and fall together.
        alike = subject_counts(rng, stores[0], num_bootstraps)
        weights = [[alike] * num] * num
    else:
        weights = [
            [subject_counts(rng, each, num_bootstraps) for each in stores] for _ in range(num)
        ]
    most = max(len(names) for each in stores for names in each.runs.values())
    return _Drawn(chosen, weights, rng.random((num_bootstraps, num, most)))


def _finding(method: str, stores: Sequence[Scored], drawn: _Drawn) -> Finding:
    everyone = [np.ones((1, each.num_subjects)) for each in stores]
    parts = [_parts(each, method, weight) for each, weight in zip(stores, everyone, strict=True)]
    # (2, tasks) of each store: the pretrained and the untrained.
    point = np.stack([part[..., 0].mean(axis=0) for part in parts])
    difference = point[:, 0] - point[:, 1]
    draws = [
        [_difference(each, method, weight) for each, weight in zip(stores, place, strict=True)]
        for place in drawn.weights
    ]
    boot = np.zeros(len(drawn.chosen))
    for place in range(len(stores)):
        for number in range(len(stores)):
            mine = drawn.chosen[:, place] == number
            runs = draws[place][number]  # (runs, draws)
            picked = (drawn.uniform[:, place, : len(runs)] * len(runs)).astype(int)
            one = np.take_along_axis(runs, picked.T, axis=0).mean(axis=0)
            boot[mine] += one[mine] / len(stores)
    low, high = np.nanpercentile(boot, [2.5, 97.5])
    tasks = list(stores[0].tasks)
    return Finding(
        difference=float(difference.mean()),
        interval=(float(low), float(high)),
        by_store={each.where: float(d.mean()) for each, d in zip(stores, difference, strict=True)},
        by_task={name: float(d) for name, d in zip(tasks, difference.mean(axis=0), strict=True)},
        pretrained=float(point[:, 0].mean()),
        random=float(point[:, 1].mean()),
        num_runs=sum(len(each.runs[method]) for each in stores),
        num_subjects=len({subject for each in stores for subject in each.subjects}),
    )


def _difference(scored: Scored, method: str, weight: Floats) -> Floats:
    """(runs, draws): pretrained less untrained, the mean over tasks."""
    parts = _parts(scored, method, weight)
    difference: Floats = (parts[:, 0] - parts[:, 1]).mean(axis=1)
    return difference


def _parts(scored: Scored, method: str, weight: Floats) -> Floats:
    """(runs, 2, tasks, draws): each backbone's metric, and the mean of its untrained twins'."""
    runs = scored.runs[method]
    models = {*runs, *(twin for run in runs for twin in scored.twins[run])}
    measured = {name: measure_tasks(scored, name, weight) for name in models}
    return np.stack(
        [
            [measured[run], np.mean([measured[twin] for twin in scored.twins[run]], axis=0)]
            for run in runs
        ]
    )
