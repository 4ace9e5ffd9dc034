"""Whether an estimator looks at held-out subjects: it is run again with some of them changed.

Its scores of held-out subjects must stay as they are when features of *other* held-out subjects
change, and when held-out labels do. A scaler over all rows, a neighbourhood that takes in the
queries, or a label that is read where it must not be, does not pass. Segmentations, whose features
and labels are files, are scored with and without other held-out subjects beside them.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Bags, Estimator, Floats, Rows, Scorer
from evaluation.probing.subjects import Part

_CHANGED = 1e-3  # of the spread of the scores: far above the solver's tolerance
_ROUNDING = 1e-6  # of the largest score
_FEW = 8  # training subjects where each is read from files


class Sees(NamedTuple):
    """What of other held-out subjects reaches the score of one."""

    features: bool
    labels: bool


def sees_held_out(scorer: Scorer, label: Floats, train: Rows, held_out: Rows) -> Sees | None:
    """Whether held-out features, or held-out labels, change the scores of held-out subjects.

    The first features of the scorer are used, at one middle setting: two or three fits.

    Returns:
        None where the features are of a kind that can neither be altered nor cut.
    """
    features = next(iter(scorer.features.values()))
    part = Part.of(features, label, np.union1d(train, held_out))  # nobody else is read
    inside, outside = part.positions(train), part.positions(held_out)
    values, kept = part.fitted(train), outside[::2]
    changed = _altered(values, outside[1::2], inside)
    if changed is None:
        return _misses_others(scorer.estimator, features, label, train, held_out)
    before = _scores(scorer.estimator, values, part.label, inside)
    by_features = _scores(scorer.estimator, changed, part.label, inside)
    if scorer.estimator.name == "retrieval":  # it is scored by its own label, and trains on none
        return Sees(_differ(before, by_features, kept), False)
    relabelled = _relabelled(part.label, outside, inside)
    by_labels = _scores(scorer.estimator, values, relabelled, inside)
    return Sees(_differ(before, by_features, kept), _differ(before, by_labels, outside))


def _misses_others(
    estimator: Estimator, features: Any, label: Floats, train: Rows, held_out: Rows
) -> Sees | None:
    """The same for features that are read scan by scan, with masks for labels: a few subjects are
    scored with others beside them and without."""
    if not hasattr(features, "take") or len(held_out) < 2:
        return None
    few = train[:: 1 + len(train) // _FEW]
    kept, others = held_out[: _FEW // 2 : 2], held_out[1 : _FEW // 2 : 2]
    scored = np.arange(len(few), len(few) + len(kept))
    without, beside = (
        _scores(estimator, features.take(rows), label[rows], np.arange(len(few)))
        for rows in (np.concatenate([few, kept]), np.concatenate([few, kept, others]))
    )
    return Sees(_differ(without, beside, scored), False)


def _altered(features: Any, rows: Rows, train: Rows) -> Any:
    """The features with those of ``rows`` moved away and spread out, or None."""
    if isinstance(features, np.ndarray) and features.dtype.kind == "f":
        moved = features.copy()
        moved[rows] = _moved(features[rows], features[train])
        return moved
    if isinstance(features, Bags):
        tokens = features.tokens.copy()
        inside = np.repeat(np.isin(np.arange(len(features)), rows), np.diff(features.starts))
        tokens[inside] = _moved(tokens[inside], tokens)
        return replace(features, tokens=tokens)
    return None


def _moved(values: NDArray[Any], usual: NDArray[Any]) -> NDArray[Any]:
    centre, spread = usual.mean(axis=0), usual.std(axis=0)
    moved: NDArray[Any] = centre + 3.0 * (values - centre) + spread
    return moved


def _relabelled(label: Floats, held_out: Rows, train: Rows) -> Floats:
    """Every held-out label another one that occurs; what is missing stays missing."""
    changed = label.copy()
    for row in held_out:
        differs = (label[train] != label[row]).reshape(len(train), -1).any(axis=1)
        others = label[train[differs]]
        if len(others):
            changed[row] = np.where(np.isnan(label[row]), np.nan, others[int(row) % len(others)])
    return changed


def _scores(estimator: Estimator, features: Any, label: Floats, train: Rows) -> Floats:
    mask = np.zeros((1, len(label)), dtype=np.bool_)
    mask[0, train] = True
    setting = estimator.settings[len(estimator.settings) // 2]
    return estimator.predict(features, label, mask, [setting])[0]


def _differ(before: Floats, after: Floats, rows: Rows) -> bool:
    first, second = before[rows], after[rows]
    known = np.isfinite(first)
    if (known != np.isfinite(second)).any():
        return True
    if not known.any():
        return False
    tolerance = _CHANGED * np.ptp(first[known]) + _ROUNDING * np.abs(first[known]).max()
    return bool(np.abs(first - second)[known].max() > tolerance)
