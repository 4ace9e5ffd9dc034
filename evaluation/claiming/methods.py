"""Methods against each other, and whether a difference may be called one.

A method is all its pretraining seeds: one backbone that beats one other says nothing of methods, so
fewer than ``SEEDS_NEEDED`` seeds make no claim, however many subjects there are. Seeds and subjects
are drawn in one bootstrap, seeds of each method by themselves; over different cohorts the cohorts
are drawn, each with both methods. A bootstrap of U seeds is too narrow by U - 1 over U, and its
percentiles know nothing of how poorly three values tell a spread: with seeds that differ, they
cover three times in four. So the seeds' part is widened to its unbiased size, and the interval is
Student's with the degrees of freedom that the seeds' share of the variance leaves (Satterthwaite
1946).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from evaluation.claiming.scored import (
    Floats,
    Scored,
    common_methods,
    drawn_subjects,
    measure_tasks,
)
from evaluation.statistics.paired import holm
from foundation.metrics.by_name import METRICS

SEEDS_NEEDED = 3
ALPHA = 0.05


class Estimate(NamedTuple):
    """A difference of two means over seeds.

    Attributes:
        difference: Of the first less the second.
        interval: 95%.
        p: Of no difference, two-sided.
        freedom: Degrees of freedom; infinite where seeds have no part in the variance.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    freedom: float


class Duel(NamedTuple):
    """Two methods on the tasks of one metric.

    Attributes:
        a: The first.
        b: The second.
        metric: Its name.
        estimate: Of a - b.
        num_seeds: Pretraining seeds of each: backbones that differ, whatever they are called.
        by_store: a - b in each store.
        by_task: a - b on each task, the mean over stores.
        pretrained: Mean of each method.
    """

    a: str
    b: str
    metric: str
    estimate: Estimate
    num_seeds: tuple[int, int]
    by_store: dict[str, float]
    by_task: dict[str, float]
    pretrained: tuple[float, float]


class Verdict(NamedTuple):
    """What may be said of a duel: exactly one of claim and reason is given.

    Attributes:
        p_holm: Adjusted over all duels that have seeds enough; None for one that has not.
        claim: ``A beats B``, or None.
        reason: Why there is no claim.
    """

    p_holm: float | None
    claim: str | None
    reason: str | None


def compare_methods(
    stores: Sequence[Scored], *, num_bootstraps: int = 2000, seed: int = 0
) -> list[Duel]:
    """Every pair of methods that all stores hold, on tasks of one metric.

    Raises:
        ClaimError: As :func:`evaluation.claiming.pretraining.compare`.
    """
    pairs = list(combinations(common_methods(stores), 2))
    rng = np.random.default_rng(seed)
    weights, is_pooled = drawn_subjects(stores, num_bootstraps=num_bootstraps, rng=rng)
    return [_duel(a, b, stores, weights, is_pooled=is_pooled, rng=rng) for a, b in pairs]


def judge(duels: Mapping[str, Sequence[Duel]]) -> dict[str, list[Verdict]]:
    """What may be said of each duel, by metric, corrected over all of them together."""
    every = [duel for part in duels.values() for duel in part]
    able = [min(duel.num_seeds) >= SEEDS_NEEDED for duel in every]
    adjusted = holm(
        [duel.estimate.p if can else math.nan for duel, can in zip(every, able, strict=True)]
    )
    verdicts = iter([_verdict(duel, float(p)) for duel, p in zip(every, adjusted, strict=True)])
    return {metric: [next(verdicts) for _ in part] for metric, part in duels.items()}


def estimate(sides: Sequence[tuple[float, Floats]], *, rng: np.random.Generator) -> Estimate:
    """A signed sum of means over seeds, with seeds and subjects drawn.

    Args:
        sides: Sign, and the score of each seed under each draw of subjects, (U, 1 + draws); the
            first column is of all subjects.
        rng: Draws the seeds.
    """
    difference = sum(sign * float(values[:, 0].mean()) for sign, values in sides)
    draws = np.zeros(sides[0][1].shape[1] - 1)
    of_seeds = []
    for sign, values in sides:
        num, inside = len(values), values[:, 1:]
        mean = inside.mean(axis=0)
        picked = rng.integers(0, num, (num, inside.shape[1]))
        moved = np.take_along_axis(inside, picked, axis=0).mean(axis=0) - mean
        moved *= math.sqrt(num / (num - 1)) if num > 1 else 0.0
        draws += sign * (mean + moved)
        of_seeds.append((float(np.nanvar(moved)), num - 1))
    variance = float(np.nanvar(draws))
    doubt = sum(part**2 / freedom for part, freedom in of_seeds if part > 0)
    freedom = variance**2 / doubt if doubt > 0 else math.inf
    return _student(difference, math.sqrt(variance), freedom)


def _student(difference: float, error: float, freedom: float) -> Estimate:
    from scipy.special import stdtr, stdtrit

    if error == 0:
        return Estimate(difference, (difference, difference), float(difference == 0), freedom)
    known = min(freedom, 1e9)  # where Student is normal
    reach = float(stdtrit(known, 1 - ALPHA / 2)) * error
    p = 2 * float(stdtr(known, -abs(difference) / error))
    return Estimate(difference, (difference - reach, difference + reach), p, freedom)


def _duel(
    a: str,
    b: str,
    stores: Sequence[Scored],
    weights: Sequence[Floats],
    *,
    is_pooled: bool,
    rng: np.random.Generator,
) -> Duel:
    # Of each method, by store: (seeds, tasks, 1 + draws).
    scores = {
        method: [_of_seeds(each, method, w) for each, w in zip(stores, weights, strict=True)]
        for method in (a, b)
    }
    mean = {
        method: np.stack([part[..., 0].mean(axis=0) for part in scores[method]])
        for method in (a, b)
    }  # (stores, tasks)
    apart = mean[a] - mean[b]
    return Duel(
        a,
        b,
        next(iter(stores[0].tasks.values())).metric,
        estimate(_sides(a, b, stores, scores, is_pooled=is_pooled), rng=rng),
        (_num_seeds(a, stores), _num_seeds(b, stores)),
        {each.where: float(d.mean()) for each, d in zip(stores, apart, strict=True)},
        {task: float(d) for task, d in zip(stores[0].tasks, apart.mean(axis=0), strict=True)},
        (float(mean[a].mean()), float(mean[b].mean())),
    )


def _of_seeds(scored: Scored, method: str, weight: Floats) -> Floats:
    """(seeds, tasks, draws): the metric of each backbone of a method in a store."""
    return np.stack([measure_tasks(scored, run, weight) for run in scored.runs[method]])


def _sides(
    a: str,
    b: str,
    stores: Sequence[Scored],
    scores: Mapping[str, Sequence[Floats]],
    *,
    is_pooled: bool,
) -> list[tuple[float, Floats]]:
    """What is drawn: the seeds of each method, or cohorts with the difference of both in each."""
    if not is_pooled:
        pairs = zip(scores[a], scores[b], strict=True)
        return [(1.0, np.stack([x.mean(axis=(0, 1)) - y.mean(axis=(0, 1)) for x, y in pairs]))]
    sides = []
    for sign, method in ((1.0, a), (-1.0, b)):
        distinct: dict[str, Floats] = {}
        for each, part in zip(stores, scores[method], strict=True):
            for run, values in zip(each.runs[method], part, strict=True):
                distinct.setdefault(each.digests[run], values.mean(axis=0))
        sides.append((sign, np.stack(list(distinct.values()))))
    return sides


def _num_seeds(method: str, stores: Sequence[Scored]) -> int:
    return len({each.digests[run] for each in stores for run in each.runs[method]})


def _verdict(duel: Duel, p_holm: float) -> Verdict:
    seeds = min(duel.num_seeds)
    if seeds < SEEDS_NEEDED:
        counted = f"{seeds} pretraining seed{'s' if seeds > 1 else ''}"
        return Verdict(None, None, f"{counted}, three are needed")
    if not p_holm < ALPHA:
        return Verdict(p_holm, None, f"the difference is within chance (Holm p = {p_holm:.3f})")
    is_better = (duel.estimate.difference > 0) != METRICS[duel.metric].lower_is_better
    winner, loser = (duel.a, duel.b) if is_better else (duel.b, duel.a)
    return Verdict(p_holm, f"{winner} beats {loser}", None)
