"""How much a score depends on who was in training: refits on bootstrapped training subjects.

The interval over test subjects says nothing of it. Fitted features (a PCA) stay those of the whole
training part: what is resampled is what the labels teach.
"""

from typing import Any

import numpy as np

from evaluation.probing.estimator import Fitted, Floats, Rows, Scorer, Setting
from evaluation.probing.predictions import predict
from foundation.metrics.quality import measures
from foundation.tasks.folds import strata
from foundation.tasks.task import Task

_ENTRIES_AT_ONCE = 8_000_000  # float64 of features, copies included: above, one refit at a time
_ROWS_AT_ONCE = 1_500  # likewise: neighbours are sought among all rows


def resampled_scores(
    task: Task,
    scorer: Scorer,
    *,
    features: str,
    setting: Setting,
    open_test: bool,
    num: int,
    seed: int,
) -> Floats | None:
    """The primary metric on the shown split after each refit, (num,).

    Args:
        task: With a split.
        scorer: Whose estimator is refitted.
        features: The chosen ones, by name.
        setting: The chosen one.
        open_test: The test split is shown, and training and validation are resampled; otherwise
            validation is shown.
        num: Bootstraps of the training subjects, each class or event on its own.
        seed: The same draws for every model.

    Returns:
        None for bags and dense features: every refit would cost as much as the model itself.
    """
    table = scorer.features[features]
    train = task.rows("train", "val") if open_test else task.rows("train")
    shown = task.rows("test" if open_test else "val")
    if isinstance(table, Fitted):
        # The closed test split stays out of the transform as it does out of the fit.
        fit = table.fit(table.values[train])
        inside, outside = fit(table.values[train]), fit(table.values[shown])
    elif isinstance(table, np.ndarray):
        inside, outside = table[train], table[shown]
    else:
        return None
    counts = bootstrap_counts(strata(task.label[train], kind=task.card.kind), num=num, seed=seed)
    num_rows = int(counts.max(axis=0).sum())
    fits = num_rows * inside.shape[1] <= _ENTRIES_AT_ONCE and num_rows <= _ROWS_AT_ONCE
    found = []
    for some in [counts] if fits else np.split(counts, num):
        score = _refit(task, scorer, setting, some, (inside, outside), (train, shown))
        found.append(measures(task.label[shown], score, task.card.metric))
    return np.concatenate(found)


def bootstrap_counts(stratum: Rows, *, num: int, seed: int) -> Rows:
    """How often each row is drawn, (num, n); every stratum keeps its size."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((num, len(stratum)), dtype=np.int64)
    for each in np.unique(stratum):
        members = np.flatnonzero(stratum == each)
        drawn = rng.integers(0, len(members), size=(num, len(members)))
        for line, picks in zip(counts, drawn, strict=True):
            line[members] = np.bincount(picks, minlength=len(members))
    return counts


def _refit(
    task: Task,
    scorer: Scorer,
    setting: Setting,
    counts: Rows,
    tables: tuple[Any, Any],
    rows: tuple[Rows, Rows],
) -> Floats:
    """Scores of the shown rows, (b, m, K).

    A subject stands in as many copies as it is drawn at the most, and trains in as many as it is
    drawn, so all bootstraps are one call. Of a single one the copies are the bootstrap itself.
    """
    (inside, outside), (train, shown) = tables, rows
    copies = counts.max(axis=0)
    member = np.repeat(np.arange(len(train)), copies)
    # A copy's number among those of its subject, from 0.
    number = np.arange(len(member)) - np.repeat(np.cumsum(copies) - copies, copies)
    features = np.concatenate([inside[member], outside])
    label = np.concatenate([task.label[train][member], task.label[shown]])
    masks = np.zeros((len(counts), len(label)), dtype=np.bool_)
    masks[:, : len(member)] = counts[:, member] > number
    scores = predict(
        scorer.estimator, features, label, masks, [setting] * len(counts),
        num_outputs=len(task.outputs),
    )  # fmt: skip
    return scores[:, len(member) :]
