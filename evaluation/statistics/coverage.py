"""What the 95% intervals really cover, measured on simulated cohorts.

    python -m evaluation.statistics.coverage --out evaluation/statistics/coverage.json

Draws thousands of cohorts whose true score is known, makes the interval of each by every method,
and counts how often it holds the truth. The file it writes is part of the package: the methods in
``intervals.py`` are chosen by it, and a report prints the coverage beside an interval of few
subjects.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.bootstrap import Bounds, Draws
from evaluation.statistics.drawing import statistic_of, strata_for
from evaluation.statistics.intervals import (
    BCA,
    DELONG,
    JACKKNIFE,
    LOGIT,
    PERCENTILE,
    auroc_bounds,
    bounds_by,
)
from evaluation.statistics.simulated import Cohort, clustered, clustered_scans, other_cohorts

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

STORED = Path(__file__).parent / "coverage.json"
ROWS_OF_SCANS = "percentile bootstrap of scans"
"""The mistake: scans drawn as if each were a subject; counted to show what it costs."""

AUROCS, PREVALENCES = (0.7, 0.8, 0.9), (0.2, 0.5)
SUBJECTS = (25, 50, 100, 200, 300)
FEWEST_SUBJECTS = 18
"""Below this no simulated cohort is near."""
_SHARES = frozenset(
    {
        "auroc",
        "average_precision",
        "balanced_accuracy",
        "sensitivity_at_90_specificity",
        "macro_auroc",
        "concordance",
        "time_dependent_auroc",
        "dice",
    }
)  # between 0 and 1, so that they have log-odds
_COHORTS_OF_A_DRAW = 10  # share one set of bootstrap draws: half the time, the same coverage


class Cell(NamedTuple):
    """One method on one kind of cohort of one size.

    Attributes:
        metric: What is measured.
        method: As in ``intervals.py``.
        n: Subjects.
        value: The true score.
        prevalence: Of positives, or None.
        coverage: Share of the intervals that hold the true score.
        width: Mean width.
        simulations: Cohorts drawn.
        defined: Share of them that have an interval; the others count as not covered.
    """

    metric: str
    method: str
    n: int
    value: float
    prevalence: float | None
    coverage: float
    width: float
    simulations: int
    defined: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=2000, help="of each AUROC cohort")
    parser.add_argument("--others", type=int, default=1000, help="of each other metric's cohort")
    parser.add_argument("--bootstraps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    print(f"writes  {words.out}", flush=True)
    cells = []
    for cohort, n, methods, simulations in plan(words.simulations, words.others):
        found = simulate(
            cohort,
            n,
            methods=methods,
            simulations=simulations,
            num_bootstraps=words.bootstraps,
            seed=words.seed,
        )
        cells += found
        said = ", ".join(f"{each.method} {100 * each.coverage:.1f}%" for each in found)
        print(f"{cohort.metric} {cohort.truth:.3f}, n = {n}: {said}", flush=True)
    write(words.out, cells, num_bootstraps=words.bootstraps, seed=words.seed)
    print(f"stored in {words.out}")


def plan(simulations: int, others: int) -> Iterator[tuple[Cohort, int, tuple[str, ...], int]]:
    """Every cohort with its size, the methods to try on it and how often it is drawn."""
    for auroc in AUROCS:
        for prevalence in PREVALENCES:
            for n in SUBJECTS:
                methods = (PERCENTILE, BCA, LOGIT, DELONG)
                yield clustered(auroc, prevalence), n, methods, simulations
    for auroc in AUROCS:
        for n in (50, 100, 200):
            yield clustered_scans(auroc, 0.5), n, (ROWS_OF_SCANS,), max(1, simulations // 4)
    for cohort in other_cohorts():
        for n in (25, 50, 100, 200):
            methods = (PERCENTILE, BCA, *((LOGIT, JACKKNIFE) if cohort.metric in _SHARES else ()))
            yield cohort, n, methods, others


def simulate(
    cohort: Cohort,
    n: int,
    *,
    methods: Sequence[str],
    simulations: int,
    num_bootstraps: int,
    seed: int,
) -> list[Cell]:
    """Coverage and mean width of each method over cohorts of n subjects."""
    which = (round(1e4 * cohort.truth), round(1e4 * (cohort.prevalence or 0)))
    rng = np.random.default_rng([seed, n, *which])
    found, made = [], _SharedDraws(cohort.metric, num_bootstraps)
    for _ in range(simulations):
        label, score = cohort.draw(rng, n)
        found.append(_intervals(label, score, cohort.metric, methods, made.of(label, score)))
    ends = np.array(found)  # (simulations, methods, 2)
    low, high = ends[..., 0], ends[..., 1]
    with np.errstate(invalid="ignore"):
        held = (low <= cohort.truth) & (cohort.truth <= high)
    return [
        Cell(
            cohort.metric,
            method,
            n,
            round(cohort.truth, 4),
            cohort.prevalence,
            round(float(held[:, place].mean()), 4),
            round(float(np.nanmean(high[:, place] - low[:, place])), 4),
            simulations,
            round(float(np.isfinite(low[:, place]).mean()), 4),
        )
        for place, method in enumerate(methods)
    ]


def measured_coverage(metric: str, method: str | None, n: int, value: float | None) -> float | None:
    """What this method covered on the simulated cohorts nearest to n and the score.

    The nearest in size first (by ratio), then in score; cohorts that differ in prevalence only are
    averaged. None where nothing like it was simulated.
    """
    cells = [each for each in read() if each.metric == metric and each.method == method]
    if not cells or value is None or n < FEWEST_SUBJECTS:
        return None
    size = min((each.n for each in cells), key=lambda other: abs(np.log(other / n)))
    cells = [each for each in cells if each.n == size]
    near = min((each.value for each in cells), key=lambda other: abs(other - value))
    return float(np.mean([each.coverage for each in cells if each.value == near]))


@lru_cache(maxsize=4)
def read(path: Path = STORED) -> tuple[Cell, ...]:
    """The cells that are stored with the package; empty where there are none."""
    if not path.is_file():
        return ()
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Cell(*row) for row in content["cells"])


def write(path: Path, cells: Sequence[Cell], *, num_bootstraps: int, seed: int) -> None:
    """Write the cells, one a line."""
    rows = ",\n".join("  " + json.dumps(list(each)) for each in cells)
    head = json.dumps({"num_bootstraps": num_bootstraps, "seed": seed, "columns": Cell._fields})
    path.write_text(f'{head[:-1]}, "cells": [\n{rows}\n]}}\n', encoding="utf-8")


class _SharedDraws:
    """One set of draws for every few cohorts of the same strata, new ones for the next few."""

    def __init__(self, metric: str, num: int) -> None:
        self._metric, self._num, self._uses = metric, num, 0
        self._draws: Draws | None = None

    def of(self, label: Floats, score: Floats) -> Draws:
        strata = strata_for(label, score, self._metric)
        draws = self._draws
        is_new = self._uses % _COHORTS_OF_A_DRAW == 0
        if draws is None or is_new or not _are_equal(draws.strata, strata):
            draws = self._draws = Draws(strata, num=self._num, seed=self._uses)
        self._uses += 1
        return draws


def _are_equal(some: Sequence[Rows], others: Sequence[Rows]) -> bool:
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def _intervals(
    label: Floats, score: Floats, metric: str, methods: Sequence[str], draws: Draws
) -> list[Bounds]:
    """Ends by each method on one cohort, from the same draws; NaN where there is none."""
    statistic = statistic_of(label, score, metric)
    point = float(statistic(np.ones((1, len(label))))[0])
    drawn = draws.of(statistic)
    return [
        auroc_bounds(label, score, point)
        if method == DELONG
        else bounds_by(method, point, statistic, draws, drawn=drawn)
        for method in methods
    ]


if __name__ == "__main__":
    main()
