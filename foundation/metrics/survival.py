"""Metrics of a risk against times that may be censored.

Label is (n, 2), time and event (1) or censoring (0); score is a risk (n,), larger is earlier;
weight is (B, n), the result (B,).
"""

import numpy as np
from numpy.typing import NDArray

from foundation.metrics.binary import ratio, weighted_auroc

Floats = NDArray[np.float64]

_PAIRS_AT_ONCE = 4_000_000  # of a (rows, subjects) matrix of pairs: 32 MB
_QUARTILES = (0.25, 0.5, 0.75)


def concordance(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Harrell's C: of the pairs whose order is known, the share whose risks have that order.

    The order of a pair is known when the earlier time is an event; an event also comes before a
    censoring at the same time. Two events at one time are no pair. Equal risks count one half.
    """
    return concordant_share(label[:, 0], label[:, 1], score, weight)


def concordant_share(time: Floats, event: Floats, risk: Floats, weight: Floats) -> Floats:
    """Weighted share of concordant pairs, every pair counted once, ties of risk one half."""
    concordant, comparable = np.zeros(len(weight)), np.zeros(len(weight))
    first = np.flatnonzero(event > 0)  # only an event can be the earlier of a pair
    step = max(1, _PAIRS_AT_ONCE // max(1, len(time)))
    for start in range(0, len(first), step):
        rows = first[start : start + step]
        pairs = known_order(time, event, rows)
        above = np.sign(risk[rows, None] - risk[None, :])
        comparable += (weight[:, rows] * (weight @ pairs.T)).sum(1)
        concordant += (weight[:, rows] * (weight @ (pairs * (above + 1) / 2).T)).sum(1)
    return ratio(concordant, comparable)


def known_order(time: Floats, event: Floats, rows: NDArray[np.int64]) -> Floats:
    """(rows, n): 1 where the row has its event before the other subject's time."""
    later = time[rows, None] < time[None, :]
    censored_then = (time[rows, None] == time[None, :]) & (event[None, :] == 0)
    return ((later | censored_then) & (event[rows, None] > 0)).astype(np.float64)


def time_dependent_auroc(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Cumulative/dynamic AUROC, its mean over the quartiles of the event times.

    At a time, those with an event until then are positives and those still followed after it
    negatives (Heagerty, Lumley and Pepe 2000). Positives are weighted by the inverse probability
    of not being censored before their event (Uno et al. 2007; Blanche et al. 2013), by a
    Kaplan-Meier estimate of the same rows. A time that leaves nobody on one side is left out.
    """
    time, event = label.T
    uncensored = censoring_survival(label, weight)
    inverse = np.divide(
        weight * event, uncensored, out=np.zeros(weight.shape), where=uncensored > 0
    )
    values = np.stack(
        [
            weighted_auroc(score, inverse * (time <= when), weight * (time > when))
            for when in evaluation_times(label)
        ]
    )
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(0), known.sum(0).astype(np.float64))


def evaluation_times(label: Floats) -> Floats:
    """The times at which a quarter, half and three quarters of the observed events are over."""
    times: Floats = np.quantile(label[label[:, 1] > 0, 0], _QUARTILES, method="inverted_cdf")
    return times


def censoring_survival(label: Floats, weight: Floats) -> Floats:
    """(B, n): the probability of not being censored before each subject's own time.

    Kaplan-Meier of the censoring: whoever has an event at a time is no longer at risk of being
    censored at it.
    """
    time, event = label.T
    order = np.argsort(time, kind="stable")
    starts = np.flatnonzero(np.diff(time[order], prepend=-np.inf))
    events = np.add.reduceat((weight * event)[:, order], starts, axis=1)
    censored = np.add.reduceat((weight * (1 - event))[:, order], starts, axis=1)
    at_risk = np.cumsum((events + censored)[:, ::-1], axis=1)[:, ::-1] - events
    hazard = np.divide(censored, at_risk, out=np.zeros(at_risk.shape), where=at_risk > 0)
    survival = np.cumprod(1.0 - hazard, axis=1)
    before = np.concatenate([np.ones((len(weight), 1)), survival[:, :-1]], axis=1)
    return before[:, np.searchsorted(time[order][starts], time)]
