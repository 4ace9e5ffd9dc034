"""From logits to scores, as the metrics take them: probabilities, quantities and risks.

A survival is told by logistic hazards (Gensheimer and Narasimhan 2019): logit j is the log-odds of
the event in interval j for whoever reaches its begin. So the chances to live on multiply.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from foundation.finetuning.target import Target


def scores_of(logits: Tensor, target: Target) -> Tensor:
    """Scores of n scans, of the kinds in ``foundation/metrics/by_name.py``.

    Args:
        logits: (n, ``target.num_logits``).
        target: Of any kind but a segmentation, whose scores are Dice of masks.

    Returns:
        (n, K) float64, so that only equal logits are a tie: a column for each of
        ``target.outputs``.
    """
    assert target.kind != "segmentation", "a segmentation is scored by its masks"
    logits = logits.double()
    if target.kind in ("binary", "multilabel"):
        return logits.sigmoid()
    if target.kind == "multiclass":
        return logits.softmax(dim=1)
    if target.kind == "ordinal":
        return level_probabilities(logits)
    if target.kind == "regression":
        return logits * target.scale + target.centre
    return -mean_survival_days(survival_at_ends(logits), ends_days=target.ends_days)[:, None]


def precise(values: Tensor) -> Tensor:
    """Float32, or float64 where it is that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def level_probabilities(logits: Tensor) -> Tensor:
    """Log-odds (n, K - 1) of reaching levels 1, 2, ... to the probabilities (n, K) of being there.

    No level is reached more often than a lower one: the chances are cut to the lowest so far.
    """
    reached = logits.sigmoid().cummin(dim=1).values
    bounded = functional.pad(functional.pad(reached, (1, 0), value=1.0), (0, 1), value=0.0)
    return bounded[:, :-1] - bounded[:, 1:]


def hazards(logits: Tensor) -> Tensor:
    """(n, J) chances of the event within each interval, for whoever reaches its begin."""
    return precise(logits).sigmoid()


def survival_at_ends(logits: Tensor) -> Tensor:
    """(n, J) chances of no event until the end of each interval."""
    return functional.logsigmoid(-precise(logits)).cumsum(dim=1).exp()


def survival_at(survival: Tensor, *, days: Tensor, ends_days: Sequence[float]) -> Tensor:
    """Chances of no event until given times, on straight lines between the ends of the intervals.

    Args:
        survival: At the ends, (n, J).
        days: (m,) from 0; past the last end the curve stays where it is.
        ends_days: Of the J intervals, the first of which begins at 0.

    Returns:
        (n, m).
    """
    begins, ends = _edges(survival, ends_days=ends_days)
    days = days.to(survival)
    interval = torch.searchsorted(ends, days).clamp_max(len(ends) - 1)
    share = (days - begins[interval]) / (ends - begins)[interval]
    return torch.lerp(_at_begins(survival)[:, interval], survival[:, interval], share.clamp(0, 1))


def mean_survival_days(survival: Tensor, *, ends_days: Sequence[float]) -> Tensor:
    """(n,) expected days without event up to the last end: the area under the curve.

    Args:
        survival: At the ends of the intervals, (n, J); a straight line within each.
        ends_days: Of the J intervals, the first of which begins at 0.
    """
    begins, ends = _edges(survival, ends_days=ends_days)
    return ((ends - begins) * (_at_begins(survival) + survival) / 2).sum(dim=1)


def _edges(survival: Tensor, *, ends_days: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Begins and ends of the intervals, (J,) days each."""
    ends = survival.new_tensor(ends_days)
    return functional.pad(ends[:-1], (1, 0)), ends


def _at_begins(survival: Tensor) -> Tensor:
    """(n, J): everybody is there at the begin of the first interval."""
    return functional.pad(survival[:, :-1], (1, 0), value=1.0)
