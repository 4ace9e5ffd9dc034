"""What is watched of a run's health, and the k-NN that scores features without any training.

Evaluation scores with the same k-NN.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recipes.load import Section

Floats = NDArray[np.float64]

TEMPERATURE = 0.07
LARGEST_SHARE = 0.02
"""Of a run's work that may go into watching it."""
LEAST_SCANS = 8
"""Fewer pinned scans tell nothing."""

_MOST_SCANS = 64
_K = 10
_WARMUP_STEPS = 100
_ENTRIES_AT_ONCE = 8_000_000


class HealthConfig(Section):
    """What is watched, and what an alarm does."""

    every_steps: int = Field(
        default=50, ge=1, description="less often where this would be over 2% of the work"
    )
    num_scans: int = Field(
        default=32,
        ge=LEAST_SCANS,
        le=_MOST_SCANS,
        description="pinned scans, each of another subject; the healthy ranges are for a few dozen",
    )
    label: str | None = Field(
        default=None,
        description="column for the k-NN score: modality, source, split, or one of the cohort's "
        "own; numbers of many values are cut at their median; null: no k-NN score",
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description=f"no alarm before; null: {_WARMUP_STEPS}, or longer where the learning rate "
        f"still rises or the last layer is still frozen",
    )
    patience_steps: int = Field(
        default=50, ge=1, description="a monitor may be outside its range for so long"
    )
    on_alarm: Literal["warn", "roll_back", "stop"] = Field(
        default="roll_back",
        description="to a healthy checkpoint where features collapse and there is one",
    )

    def interval(self, *, num_scans: int, global_batch: int, log_every_steps: int) -> int:
        """Updates between two checks, from counted forwards and so the same on any machine.

        A check costs the forward of ``num_scans``. An update costs at least the forward of each of
        its scans: a MAE that hides three quarters takes the other quarter forward and backward,
        and a decoder; DINO's costs several times as much. What is found goes into a line of the
        log, so checks fall where one is written.
        """
        cheap = math.ceil(num_scans / (LARGEST_SHARE * global_batch))
        return math.ceil(max(self.every_steps, cheap) / log_every_steps) * log_every_steps

    def first_judged(self, *, warmup_steps: int, freeze_last_layer_steps: int) -> int:
        """Updates after which alarms begin; the arguments are the optimiser's and the method's."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return max(_WARMUP_STEPS, warmup_steps, freeze_last_layer_steps)


def knn_vote(
    features: Floats,
    values: Floats,
    train: NDArray[np.bool_],
    *,
    ks: Sequence[int],
    temperature: float,
) -> Floats:
    """Weighted mean of the values of each row's nearest training rows by cosine, never itself.

    Weights are exp(cosine / temperature), as in DINO (Caron et al. 2021, appendix F).

    Args:
        features: (n, P).
        values: (n,), such as 0 and 1 for a class.
        train: (B, n), which rows may vote, in each of B votings.
        ks: Neighbours of each voting; a row that has fewer asks them all.
        temperature: Infinite weighs all neighbours alike.

    Returns:
        (B, n).
    """
    similarity = _cosines(features)
    scores = np.empty(train.shape)
    step = max(1, _ENTRIES_AT_ONCE // similarity.size)
    for start in range(0, len(train), step):
        some = slice(start, start + step)
        masked = np.where(train[some, None, :], similarity, -np.inf)  # (b, n, n)
        asked = np.asarray(ks[some])[:, None, None]
        scores[some] = _vote(masked, values, k=asked, temperature=temperature)
    return scores


def knn_auroc(features: Floats, *, labels: Sequence[str | None]) -> float | None:
    """How well each subject's class is told from the other subjects nearest to it.

    Two rows, of the class and of another, are compared by votes from which both are left out
    (leave-pair-out, Airola et al. 2011): left out alone, a row finds its own class rarer than the
    row that it is compared with does, and chance would score below a half.

    Args:
        features: (n, P), one row a subject.
        labels: (n,), None where unknown; such rows, and those alone in their class, do not count.

    Returns:
        AUROC of each class against the rest, averaged over classes: 0.5 is chance however many
        classes there are and whatever their sizes. None where there are not two classes.
    """
    sizes = Counter(label for label in labels if label is not None)
    classes = sorted(label for label, size in sizes.items() if size > 1)
    if len(classes) < 2:
        return None
    rows = np.array([label in classes for label in labels])
    known = np.array([label for label in labels if label in classes])
    similarity = _cosines(features[rows])
    return float(np.mean([_one_against_rest(similarity, known == label) for label in classes]))


def _one_against_rest(similarity: Floats, label: NDArray[np.bool_]) -> float:
    """The share of pairs whose member of the class gets the larger vote; a tie counts one half."""
    inside, outside = np.meshgrid(np.flatnonzero(label), np.flatnonzero(~label), indexing="ij")
    pairs = np.stack([inside.ravel(), outside.ravel()])  # (2, M)
    masked = similarity[pairs]  # (2, M, n)
    for member in pairs:
        np.put_along_axis(masked, member[None, :, None], -np.inf, axis=2)
    k = np.full((1, 1, 1), _K)
    higher, lower = _vote(masked, label.astype(np.float64), k=k, temperature=TEMPERATURE)
    # Votes that differ by rounding alone are a tie.
    difference = np.round(higher - lower, 9)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def _cosines(features: Floats) -> Floats:
    """(n, n); minus infinity of each row with itself."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    similarity: Floats = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity


def _vote(
    similarity: Floats, values: Floats, *, k: NDArray[np.int64], temperature: float
) -> Floats:
    """(..., n) similarities to (...) votes; minus infinity has none, and k broadcasts."""
    nearest = np.argsort(-similarity, axis=-1, kind="stable")[..., : int(k.max())]
    closeness = np.take_along_axis(similarity, nearest, axis=-1)
    counted = (np.arange(nearest.shape[-1]) < k) & np.isfinite(closeness)
    with np.errstate(invalid="ignore"):
        weight = np.exp((closeness - closeness[..., :1]) / temperature)
    weight = np.where(counted, weight, 0.0)
    votes: Floats = (weight * values[nearest]).sum(-1) / weight.sum(-1)
    return votes
