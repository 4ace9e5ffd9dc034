"""Which rows stand for a model and a task: main protocol, overview, strongest floor, the best."""

from collections.abc import Collection, Iterable, Sequence

from evaluation.reporting.numbers import SHOWN_DIGITS
from evaluation.reporting.results import Comparison, ModelResult, Results
from evaluation.reporting.titles import is_lower_better
from evaluation.statistics.kinds import BACKBONE, FLOOR, TRAINED, place_of

PREFERRED_PROTOCOL = "linear"


def main_protocol(rows: Sequence[ModelResult]) -> str | None:
    """The linear probe, else the protocol that the table begins with."""
    protocols = [row.protocol for row in sorted(rows, key=lambda row: place_of(row.kind))]
    if PREFERRED_PROTOCOL in protocols:
        return PREFERRED_PROTOCOL
    return protocols[0] if protocols else None


def in_order(rows: Sequence[ModelResult], models: Sequence[str]) -> list[ModelResult]:
    """By kind, models in the order of the run, the main protocol first in each."""
    main = main_protocol(rows)
    place = {model: at for at, model in enumerate(models)}
    return sorted(
        rows, key=lambda row: (place_of(row.kind), place[row.model], row.protocol != main)
    )


def one_per_model(rows: Sequence[ModelResult]) -> list[ModelResult]:
    """Of each model its row of the main protocol, else its first row; in the order given."""
    main = main_protocol(rows)
    chosen: dict[str, ModelResult] = {}
    for row in rows:
        if row.model not in chosen or (row.protocol == main and chosen[row.model].protocol != main):
            chosen[row.model] = row
    return list(chosen.values())


def contenders(rows: Sequence[ModelResult]) -> list[ModelResult]:
    """One row per model, and a floor's row by each protocol that no backbone has (RBF-SVM)."""
    mains = {id(row) for row in one_per_model(rows)}
    usual = {row.protocol for row in rows if row.kind == BACKBONE}
    return [
        row
        for row in rows
        if id(row) in mains or (usual and row.kind == FLOOR and row.protocol not in usual)
    ]


def best_of(metric: str, values: Iterable[float | None]) -> float | None:
    """The best of the shown values; equal at the shown digits is equally best."""
    known = [round(value, SHOWN_DIGITS) for value in values if value is not None]
    if not known:
        return None
    return min(known) if is_lower_better(metric) else max(known)


def is_best(value: float | None, best: float | None) -> bool:
    """Whether ``value`` is the one that :func:`best_of` found."""
    return value is not None and round(value, SHOWN_DIGITS) == best


def strongest(rows: Sequence[ModelResult], kind: str) -> ModelResult | None:
    """The best of one kind by the primary metric, of its contenders; the first of equals."""
    able = [
        row
        for row in contenders(rows)
        if row.kind == kind and row.scores and row.scores[0].value is not None
    ]
    sign = -1.0 if able and is_lower_better(able[0].scores[0].metric) else 1.0
    return max(able, key=lambda row: sign * (row.scores[0].value or 0.0), default=None)


def featured(rows: Sequence[ModelResult]) -> list[ModelResult]:
    """What a figure shows: all but the floors, and the strongest of these, one row each."""
    floor = strongest(rows, FLOOR)
    return [row for row in contenders(rows) if row.kind != FLOOR or row is floor]


def verdict(results: Results) -> Comparison | None:
    """The strongest backbone against the strongest floor it was compared with."""
    return _of_best_backbone(results, {row.model for row in results.rows if row.kind == FLOOR})


def distance_to_ceiling(results: Results) -> Comparison | None:
    """The strongest backbone against the strongest network trained from scratch."""
    tops = [row for row in results.rows if row.model in results.ceilings]
    top = strongest(tops, TRAINED)
    return _of_best_backbone(results, {top.model} if top else set())


def _of_best_backbone(results: Results, others: Collection[str]) -> Comparison | None:
    backbone = strongest(results.rows, BACKBONE)
    if backbone is None:
        return None
    pairs = [
        one
        for one in results.comparisons
        if (one.a, one.protocol) == (backbone.model, backbone.protocol) and one.b in others
    ]
    return pairs[0] if pairs else None
