"""What the statistics store says of one task, as types; a number that is None has a reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One metric with its 95% interval.

    Attributes:
        coverage: How often such intervals held the truth in a simulation; None where not measured.
        threshold_on: Whose scores its threshold is from, where it has one of its own.
        specificity: What that threshold came to on the scored subjects.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    method: str | None
    coverage: float | None
    threshold_on: str | None
    specificity: float | None
    reason: str | None


@dataclass(frozen=True)
class OutputScore:
    """The score of one class or label."""

    output: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    positives: int | None
    method: str | None
    reason: str | None


@dataclass(frozen=True)
class Limits:
    """An interval of another method beside the shown one."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Spread:
    """The primary metric over ``num`` trainings or folds."""

    num: int | None
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve: mean probability, and how often it came true."""

    mean_score: float
    rate: float
    n: int


@dataclass(frozen=True)
class Quality:
    """How far probabilities are from frequencies; chance alone gives calibrated ones an error."""

    ece: float | None
    ece_by_chance: float | None
    nll: float | None
    brier: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Calibration:
    """Before and after temperature scaling."""

    temperature: float | None
    fitted_on: str | None
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Sets:
    """Share of prediction sets that hold the label, and their mean size."""

    coverage: float | None
    mean_size: float | None
    n: int | None


@dataclass(frozen=True)
class Conformal:
    """Conformal sets of one level: over all subjects, and by column and value of a group."""

    level: float
    coverage: float | None
    mean_size: float | None
    n: int | None
    calibrated_on: str | None
    by_group: dict[str, dict[str, Sets]]


@dataclass(frozen=True)
class RiskCoverage:
    """Risk among the most certain share of subjects."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float | None


@dataclass(frozen=True)
class ModelResult:
    """Everything said of one model under one protocol; ``scores`` has the primary metric first."""

    model: str
    kind: str
    protocol: str
    n: int
    positives: int | None
    scores: tuple[Score, ...]
    by_output: tuple[OutputScore, ...]
    delong: Limits | None
    bootstrap: Limits | None
    training_spread: Spread | None
    folds: Spread | None
    calibration: Calibration | None
    conformal: Conformal | None
    risk_coverage: RiskCoverage | None


@dataclass(frozen=True)
class Comparison:
    """``a`` less ``b`` on the same subjects; ``p_holm`` is adjusted within the whole report.

    Attributes:
        fraction: Share of the training subjects that both were trained on; None where the two are
            compared as they stand in the table.
    """

    a: str
    b: str
    protocol: str
    b_protocol: str | None
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_delong: float | None
    detectable: float | None
    n: int | None
    reason: str | None
    p_holm: float | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class FewShotPoint:
    """Over draws: mean, SD, 5th to 95th percentile, and the paired difference to the reference."""

    x: float
    unit: str
    draws: int | None
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    reason: str | None


@dataclass(frozen=True)
class FewShotCurve:
    """One model's points, and the area under its label-efficiency curve."""

    model: str
    kind: str
    protocol: str
    points: tuple[FewShotPoint, ...]
    area: float | None
    area_low: float | None
    area_high: float | None


@dataclass(frozen=True)
class FewShot:
    """All curves of a task; differences are taken to the floor ``reference``."""

    curves: tuple[FewShotCurve, ...]
    reference: str | None
    reference_protocol: str | None


@dataclass(frozen=True)
class FractionPoint:
    """One network that was trained on a share of the training subjects."""

    fraction: float
    num_train: int
    n: int
    positives: int | None
    value: float | None
    low: float | None
    high: float | None
    method: str | None
    coverage: float | None
    reason: str | None


@dataclass(frozen=True)
class FractionLine:
    """One fine-tuning; ``is_scratch`` where its networks were never pretrained."""

    model: str
    is_scratch: bool
    points: tuple[FractionPoint, ...]


@dataclass(frozen=True)
class Fractions:
    """The label-fraction curve of a task, and its comparisons at the same share."""

    lines: tuple[FractionLine, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Shuffled:
    """The probe on shuffled training labels: the mean over ``num`` shuffles must be chance."""

    model: str | None
    protocol: str | None
    metric: str | None
    chance: float | None
    num: int | None
    mean: float | None
    se: float | None
    passed: bool | None
    reason: str | None


@dataclass(frozen=True)
class Results:
    """The statistics store of one task."""

    metric: str
    metrics: tuple[str, ...]
    split: str
    n: int
    positives: int | None
    outputs: tuple[str, ...]
    num_bootstraps: int
    num_permutations: int | None
    seed: int
    rows: tuple[ModelResult, ...]
    comparisons: tuple[Comparison, ...]
    few_shot: FewShot | None
    shuffled: tuple[Shuffled, ...]
    fractions: Fractions | None = None

    @property
    def ceilings(self) -> set[str]:
        """Models that were trained from scratch on all training subjects."""
        lines = self.fractions.lines if self.fractions else ()
        whole = [line for line in lines if any(point.fraction == 1.0 for point in line.points)]
        return {line.model for line in whole if line.is_scratch}

    @property
    def all_comparisons(self) -> tuple[Comparison, ...]:
        """Of rows of the table, then of points of the label-fraction curve."""
        return (*self.comparisons, *(self.fractions.comparisons if self.fractions else ()))
