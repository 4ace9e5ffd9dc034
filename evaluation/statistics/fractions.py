"""How the score of a network that is trained on the labels grows with how many of them it has.

A curve is one fine-tuning, a point one network of it, trained on a share of the training subjects
and scored on the same subjects as everything else. Its interval is over the scored subjects: there
is one network a share, so nothing is said of other training subjects.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.statistics.drawing import SharedDraws
from evaluation.statistics.kinds import FINE_TUNED, SCRATCH
from evaluation.statistics.one_model import Facts, positives_of, score_entry
from evaluation.statistics.pairs import Pairs
from evaluation.statistics.reliability import Shown
from evaluation.statistics.shown import all_shown

if TYPE_CHECKING:
    import pandas

Point = tuple[str, float]
"""A line and its share of the training subjects."""

Training = Mapping[str, Any]
"""Of a network: model, fraction, num_train, begun, trained_digest."""

_OTHERS = "the two were not trained on the same subjects"


def ceilings(trainings: Sequence[Training]) -> list[str]:
    """Lines that began from scratch and were trained on all training subjects."""
    return [
        each["model"] for each in trainings if each["begun"] == SCRATCH and each["fraction"] == 1.0
    ]


def fraction_curves(
    predictions: "pandas.DataFrame",
    trainings: Sequence[Training],
    facts: Facts,
    *,
    split: str,
    draws: SharedDraws,
    num_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """The ``fractions`` entry of a task's statistics.

    Args:
        predictions: ``FRACTION_COLUMNS``, all splits that are stored.
        trainings: Of every network in them, lines in the order of the table.
        facts: Of the task.
        split: The shown one.
        draws: Of subjects.
        num_permutations: Random flips of a comparison.
        seed: Of flips and folds.

    Returns:
        ``lines``, each with its points from few subjects to all; and ``comparisons``: at each
        share every line that began from a backbone less every one from scratch.
    """
    shown = _shown(predictions, split, facts.kind, seed=seed)
    about = {(each["model"], each["fraction"]): each for each in trainings}
    points = {key: _point(shown[key], about[key], facts, draws) for key in about}
    lines = [
        {
            "model": model,
            "is_scratch": about[own[0]]["begun"] == SCRATCH,
            "points": [points[key] for key in sorted(own, key=lambda key: key[1])],
        }
        for model, own in _by_model(about).items()
    ]
    scored = {key: shown[key] for key, point in points.items() if point["value"] is not None}
    pairs = Pairs(scored, facts, draws=draws, num_permutations=num_permutations, seed=seed)
    found = [
        _comparison(pairs, about[a], about[b], metric=facts.metrics[0])
        for a, b in _couples(about)
        if a in scored and b in scored
    ]
    return {"lines": lines, "comparisons": found}


def _shown(
    predictions: "pandas.DataFrame", split: str, kind: str, *, seed: int
) -> dict[Point, Shown]:
    found: dict[Point, Shown] = {}
    for fraction, rows in predictions.groupby("fraction", sort=True):
        of_one = all_shown(rows.assign(protocol=FINE_TUNED), split, kind, seed=seed)
        found |= {(model, float(fraction)): one for (model, _), one in of_one.items()}
    return found


def _point(shown: Shown, about: Training, facts: Facts, draws: SharedDraws) -> dict[str, Any]:
    score = score_entry(shown, facts, facts.metrics[0], draws)
    return {
        "fraction": about["fraction"],
        "num_train": about["num_train"],
        "n": len(shown.label),
        "positives": positives_of(shown.label, facts.kind),
        **score,
    }


def _by_model(about: Mapping[Point, Training]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for key in about:
        found.setdefault(key[0], []).append(key)
    return found


def _couples(about: Mapping[Point, Training]) -> list[tuple[Point, Point]]:
    """At each share, few subjects first: what began from a backbone, and from scratch."""
    shares = sorted({fraction for _, fraction in about})
    scratch = [key for key, each in about.items() if each["begun"] == SCRATCH]
    tuned = [key for key, each in about.items() if each["begun"] != SCRATCH]
    return [(a, b) for share in shares for a in tuned for b in scratch if a[1] == b[1] == share]


def _comparison(pairs: Pairs, a: Training, b: Training, *, metric: str) -> dict[str, Any]:
    key = (a["model"], a["fraction"]), (b["model"], b["fraction"])
    found = pairs.compare(*key)
    if found["reason"] is None and a["trained_digest"] != b["trained_digest"]:
        found["reason"] = _OTHERS
    return {
        "a": a["model"],
        "b": b["model"],
        "protocol": FINE_TUNED,
        "b_protocol": FINE_TUNED,
        "metric": metric,
        "fraction": a["fraction"],
        "num_train": a["num_train"],
        **found,
    }
