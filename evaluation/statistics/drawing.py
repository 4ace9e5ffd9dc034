"""How the subjects of a metric are drawn, and one set of draws for all that are drawn alike."""

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.bootstrap import Draws, Statistic, strata_of
from foundation.metrics.by_name import METRICS

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def statistic_of(label: Floats, score: Floats, metric: str) -> Statistic:
    """The metric as a function of the weights on these rows."""
    return lambda weight: METRICS[metric](label, score, weight)


def strata_for(label: Floats, score: Floats, metric: str) -> list[Rows]:
    """What keeps its size in every draw; nothing for a metric that is a mean over subjects.

    How many subjects of each class a cohort holds is chance too. What compares classes with each
    other (AUROC, recalls) does not depend on it; a mean over everybody does, and an interval that
    held the counts would be too narrow.
    """
    if not METRICS[metric].stratified:
        return [np.arange(len(label))]
    return strata_of(label, METRICS[metric].kind_of(label, score))


class SharedDraws:
    """One set of draws for all models and metrics that are drawn alike on the same subjects."""

    def __init__(self, *, num: int, seed: int) -> None:
        self._num, self._seed = num, seed
        self._made: dict[bytes, Draws] = {}

    def of(self, label: Floats, score: Floats, metric: str) -> Draws:
        """The draws of these rows for this metric."""
        strata = strata_for(label, score, metric)
        key = b" ".join(rows.tobytes() for rows in strata)
        if key not in self._made:
            self._made[key] = Draws(strata, num=self._num, seed=self._seed)
        return self._made[key]
