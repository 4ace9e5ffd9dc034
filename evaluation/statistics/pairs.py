"""Pairs of scored models as the ``comparisons`` of a task's statistics hold them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.delong import paired_test
from evaluation.statistics.drawing import SharedDraws, statistic_of
from evaluation.statistics.one_model import Facts, score_for
from evaluation.statistics.paired import compare
from evaluation.statistics.reliability import Shown

Floats = NDArray[np.float64]
NUMBERS = ("difference", "low", "high", "p", "p_delong", "detectable")
_UNMOVED = "no draw of subjects moved the difference, so its error cannot be told"


class Scored(NamedTuple):
    """What the primary metric is computed on."""

    subjects: tuple[str, ...]
    label: Floats
    score: Floats


class Pairs:
    """Paired differences by one metric; the draws of a model are made once for all its pairs.

    Args:
        shown: By whatever names a model here, its rows; each has a value of the metric.
        facts: Of the task; the metric is its first.
        draws: Of subjects.
        num_permutations: Random flips of a comparison.
        seed: Of the flips.
    """

    def __init__(
        self,
        shown: Mapping[Any, Shown],
        facts: Facts,
        *,
        draws: SharedDraws,
        num_permutations: int,
        seed: int,
    ) -> None:
        self._metric = facts.metrics[0]
        self._scored = {key: _scored(one, facts) for key, one in shown.items()}
        self._draws, self._num_permutations, self._seed = draws, num_permutations, seed
        self._drawn: dict[Any, Floats] = {}

    def compare(self, a: Any, b: Any) -> dict[str, Any]:
        """``a`` less ``b``: ``NUMBERS``, n, and the reason for those that are None."""
        (subjects, label, one), (others, _, other) = self._scored[a], self._scored[b]
        if subjects != others:
            reason = "scored on other subjects"
            return dict.fromkeys(NUMBERS) | {"n": len(subjects), "reason": reason}
        mine = self._draws.of(label, one, self._metric)
        for key, score in ((a, one), (b, other)):
            if key not in self._drawn:
                self._drawn[key] = mine.of(statistic_of(label, score, self._metric))
        found = compare(
            label,
            one,
            other,
            self._metric,
            draws=mine,
            num_permutations=self._num_permutations,
            seed=self._seed,
            drawn=(self._drawn[a], self._drawn[b]),
        )
        p_delong = paired_test(label, one, other).p if self._metric == "auroc" else None
        values = found._asdict() | {"p_delong": p_delong}
        known = {name: finite(values[name]) for name in NUMBERS}
        return known | {"n": len(subjects), "reason": _UNMOVED if known["low"] is None else None}


def _scored(shown: Shown, facts: Facts) -> Scored:
    score = score_for(shown, facts, facts.metrics[0])
    assert score is not None, "what has a value has a score"
    return Scored(shown.subjects, shown.label, score)


def finite(value: float | None) -> float | None:
    """A number as JSON has it: None for what is not defined."""
    return float(value) if value is not None and np.isfinite(value) else None
