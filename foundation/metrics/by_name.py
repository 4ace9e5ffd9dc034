"""The metrics by name: what each kind of task is scored by, and which rows define a score.

One row stands for one subject; several scans of a subject are pooled before they come here.

| kind | label | score |
|---|---|---|
| binary | (n,) 0 or 1 | (n,) probability of 1 |
| multiclass, ordinal | (n,) index | (n, K) probabilities |
| multilabel | (n, L) 0, 1 or NaN | (n, L) probabilities |
| regression | (n,) | (n,) predicted value |
| survival | (n, 2) time and event | (n,) risk, larger is earlier |
| segmentation | (n,) not read | (n, K) Dice, NaN where a class is in neither mask |
| retrieval | (n,) not read | (n, 3) average precision, hit at 1, hit at 5 |

A score (n, 1) is read as (n,).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foundation.metrics import binary, continuous, multiclass, survival
from foundation.metrics.rows import StatisticsError as StatisticsError
from foundation.metrics.rows import as_columns, check_rows

Floats = NDArray[np.float64]
Weighted = Callable[[Floats, Floats, Floats], Floats]
"""(label, score, weight (B, n)) -> (B,), NaN for a draw that does not define the metric."""

Kind = Literal[
    "binary",
    "multiclass",
    "multilabel",
    "regression",
    "ordinal",
    "survival",
    "segmentation",
    "retrieval",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Metric:
    """A metric of one or several kinds of task.

    Attributes:
        name: In recipes and stores.
        title: In a report.
        forms: What computes it for each kind.
        lower_is_better: An error.
        stratified: Drawn within classes; not so for a mean over all subjects.
        chance: Of a score that knows nothing, whatever the cohort; None where it depends on it.
    """

    name: str
    title: str
    forms: Mapping[str, Weighted]
    lower_is_better: bool = False
    stratified: bool = True
    chance: float | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of task it scores."""
        return tuple(self.forms)

    def __call__(self, label: Floats, score: Floats, weight: Floats) -> Floats:
        """The metric of each weighting of the rows, (B, n) -> (B,); the rows are not checked."""
        label, score = as_columns(label, score)
        return self.forms[self.kind_of(label, score)](label, score, weight)

    def kind_of(self, label: Floats, score: Floats) -> str:
        """The kind of task these rows are of, told by their shapes.

        Raises:
            StatisticsError: The metric scores no task of such rows.
        """
        fitting: tuple[str, ...]
        if label.ndim == 2:
            fitting = ("survival",) if score.ndim == 1 else ("multilabel",)
        elif score.ndim == 2:
            fitting = ("multiclass", "ordinal", "segmentation", "retrieval")
        else:
            fitting = ("binary", "regression", "segmentation")
        for kind in fitting:
            if kind in self.forms:
                return kind
        raise StatisticsError(
            f"{self.name} is a metric of {' and '.join(self.kinds)}, got labels {label.shape} and "
            f"scores {score.shape}"
        )


def auroc(label: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve; a tie between a positive and a negative counts one half.

    Raises:
        StatisticsError: One class is missing, or a value is not finite or not 0/1.
    """
    return measure(label, score, "auroc")


def r2(label: ArrayLike, score: ArrayLike) -> float:
    """Share of the label's variance that is explained; negative when worse than the mean."""
    return measure(label, score, "r2")


def decided(score: Floats, threshold: float) -> Floats:
    """1 where the score is at least the threshold, else 0: for metrics that cut at one half."""
    return (score >= threshold).astype(np.float64)


def measure(label: ArrayLike, score: ArrayLike, metric: str) -> float:
    """The metric named ``metric`` (see ``METRICS``) over one row per subject.

    Raises:
        StatisticsError: The rows do not define it.
    """
    truth, value = checked(label, score, metric)
    found = float(METRICS[metric](truth, value, np.ones((1, len(truth))))[0])
    if not np.isfinite(found):
        raise StatisticsError(f"{metric} is not defined by these {len(truth)} subjects")
    return found


def checked(label: ArrayLike, score: ArrayLike, metric: str) -> tuple[Floats, Floats]:
    """Label and score as arrays that define the metric.

    Raises:
        StatisticsError: They do not; it says why.
    """
    if metric not in METRICS:
        raise StatisticsError(f"no metric {metric!r}; known: {', '.join(sorted(METRICS))}")
    truth, value = as_columns(
        np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    )
    check_rows(truth, value, kind=METRICS[metric].kind_of(truth, value), metric=metric)
    return truth, value


def _mean_of_column(column: int) -> Weighted:
    def mean(label: Floats, score: Floats, weight: Floats) -> Floats:
        return multiclass.dice(label, score[:, [column]], weight)

    return mean


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("auroc", "AUROC", {"binary": binary.auroc}, chance=0.5),
        Metric("average_precision", "AUPRC", {"binary": binary.average_precision}),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            {"binary": binary.balanced_accuracy, "multiclass": multiclass.balanced_accuracy},
        ),
        Metric(
            "sensitivity_at_90_specificity",
            "sensitivity at 90% specificity",
            {"binary": binary.sensitivity},
        ),
        Metric("accuracy", "accuracy", {"multiclass": multiclass.accuracy}, stratified=False),
        Metric(
            "macro_auroc",
            "macro AUROC",
            {
                "multiclass": multiclass.macro_auroc,
                "multilabel": multiclass.macro_auroc_of_labels,
            },
            chance=0.5,
        ),
        Metric(
            "macro_average_precision",
            "macro AUPRC",
            {"multilabel": multiclass.macro_average_precision},
        ),
        Metric(
            "brier",
            "Brier score",
            {
                "binary": binary.brier,
                "multiclass": multiclass.brier,
                "multilabel": multiclass.brier_of_labels,
            },
            lower_is_better=True,
            stratified=False,
        ),
        Metric(
            "nll",
            "negative log-likelihood",
            {"binary": binary.nll, "multiclass": multiclass.nll},
            lower_is_better=True,
            stratified=False,
        ),
        Metric("r2", "R²", {"regression": continuous.r2}),
        Metric(
            "mean_absolute_error",
            "mean absolute error",
            {"regression": continuous.mean_absolute_error, "ordinal": continuous.level_error},
            lower_is_better=True,
            stratified=False,
        ),
        Metric(
            "quadratic_kappa",
            "quadratic kappa",
            {"ordinal": continuous.quadratic_kappa},
            chance=0.0,
        ),
        Metric(
            "concordance",
            "C-index",
            {
                "regression": continuous.concordance,
                "ordinal": continuous.level_concordance,
                "survival": survival.concordance,
            },
            chance=0.5,
        ),
        Metric(
            "time_dependent_auroc",
            "time-dependent AUROC",
            {"survival": survival.time_dependent_auroc},
            chance=0.5,
        ),
        Metric("dice", "Dice", {"segmentation": multiclass.dice}),
        Metric("mean_average_precision", "mAP", {"retrieval": _mean_of_column(0)}),
        Metric("hit_at_1", "hit at 1", {"retrieval": _mean_of_column(1)}),
        Metric("hit_at_5", "hit at 5", {"retrieval": _mean_of_column(2)}),
    )
}

METRICS_OF: dict[str, tuple[str, ...]] = {
    "binary": (
        "auroc",
        "average_precision",
        "balanced_accuracy",
        "sensitivity_at_90_specificity",
        "brier",
        "nll",
    ),
    "multiclass": ("macro_auroc", "accuracy", "balanced_accuracy", "brier", "nll"),
    "multilabel": ("macro_auroc", "macro_average_precision", "brier"),
    "regression": ("r2", "mean_absolute_error"),
    "ordinal": ("quadratic_kappa", "mean_absolute_error", "concordance"),
    "survival": ("concordance", "time_dependent_auroc"),
    "segmentation": ("dice",),
    "retrieval": ("mean_average_precision", "hit_at_1", "hit_at_5"),
}
"""What a task of each kind is shown with, its primary metric first."""

PRIMARY: dict[str, str] = {kind: metrics[0] for kind, metrics in METRICS_OF.items()}

CHANCE_METRIC: dict[str, str] = {
    "binary": "auroc",
    "multiclass": "macro_auroc",
    "multilabel": "macro_auroc",
    "regression": "concordance",
    "ordinal": "concordance",
    "survival": "concordance",
}
"""What shuffled labels are judged by: it is one half by chance, whatever the cohort."""
