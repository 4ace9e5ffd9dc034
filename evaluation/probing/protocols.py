"""Choose settings on validation, predict, and open the test split only when told to.

Every estimator answers the same question: trained on these rows with this setting, what is the
score of every row? So choosing a setting is written once, whatever is trained. A small cohort is
cross-validated instead: see ``cross_validation.py``.
"""

from typing import Any, NamedTuple

import numpy as np

from evaluation.probing.cross_validation import cross_validate
from evaluation.probing.estimator import Floats, Scorer, Setting
from evaluation.probing.predictions import predict
from evaluation.probing.resampled import resampled_scores
from evaluation.probing.subjects import Part
from foundation.metrics.quality import as_score, qualities
from foundation.tasks.task import Task


class Outcome(NamedTuple):
    """Predictions with how they came about.

    Attributes:
        scores: By split (``val`` and perhaps ``test``, or ``cv``), (m, K), subjects in its order.
        chosen: Features and setting.
        grid: Every candidate with its score on validation, None where it has none.
        folds: Primary metric of each outer fold, NaN where it has none; None for a split.
        spread: Primary metric of the shown split after each refit on a resampled training set;
            None where there is none.
    """

    scores: dict[str, Floats]
    chosen: dict[str, Any]
    grid: list[dict[str, Any]]
    folds: Floats | None
    spread: Floats | None


class _Tried(NamedTuple):
    quality: float  # larger is better
    features: str
    setting: Setting
    score: Floats


def evaluate(
    task: Task, scorer: Scorer, *, open_test: bool, spread: int = 0, seed: int = 0
) -> Outcome:
    """Score one protocol of one model on one task.

    Args:
        task: With a split, or to be cross-validated.
        scorer: Features, of which one is chosen, and what is trained on them.
        open_test: Also refit on training and validation with the chosen setting and score the
            test split. Its subjects are not handed to anything otherwise.
        spread: Refits at the chosen setting on resampled training sets, for how much the score
            depends on who was in training; not under cross-validation.
        seed: Of the resampled training sets, which are the same for every model.
    """
    cv = task.card.protocol.repeated_cv
    if cv is not None:
        found = cross_validate(task, scorer, cv)
        return Outcome({"cv": found.scores}, found.chosen, found.grid, found.folds, None)
    tried = _try_all(task, scorer)
    best = max(tried, key=lambda one: one.quality)
    grid = [
        {
            "features": one.features,
            **one.setting,
            "score": as_score(one.quality, task.card.metric),
        }
        for one in tried
    ]
    scores = {"val": best.score}
    if open_test:
        scores["test"] = _refit(task, scorer, best)
    values = None
    if spread:
        values = resampled_scores(
            task, scorer, features=best.features, setting=best.setting, open_test=open_test,
            num=spread, seed=seed,
        )  # fmt: skip
    return Outcome(scores, {"features": best.features, **best.setting}, grid, None, values)


def _try_all(task: Task, scorer: Scorer) -> list[_Tried]:
    """Every candidate, trained on training and scored on validation; no test subject is read."""
    train, val = task.rows("train"), task.rows("val")
    settings = list(scorer.estimator.settings)
    tried = []
    for name, features in scorer.features.items():
        part = Part.of(features, task.label, task.rows("train", "val"))
        scores = predict(
            scorer.estimator,
            part.fitted(train),
            part.label,
            part.masks([train] * len(settings)),
            settings,
            num_outputs=len(task.outputs),
        )[:, part.positions(val)]
        found = qualities(task.label[val], scores, task.card.metric)
        for setting, score, value in zip(settings, scores, found, strict=True):
            tried.append(_Tried(float(value), name, setting, score))
    return tried


def _refit(task: Task, scorer: Scorer, best: _Tried) -> Floats:
    """Scores of the test split, trained with the chosen setting on all others."""
    both = task.rows("train", "val")
    part = Part.of(scorer.features[best.features], task.label, np.arange(len(task.label)))
    scores = predict(
        scorer.estimator,
        part.fitted(both),
        part.label,
        part.masks([both]),
        [best.setting],
        num_outputs=len(task.outputs),
    )
    return scores[0, part.positions(task.rows("test"))]
