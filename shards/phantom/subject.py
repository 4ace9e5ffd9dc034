"""Who the subjects are: age, labels, laboratory and genomic columns, survival.

Labels are drawn from risk factors, the columns from the labels and noise: so the columns carry
a part of the signal (AUROC .6 to .75) and determine nothing.
"""

from dataclasses import dataclass

import numpy as np

DISEASES = (
    "stroke",
    "infection",
    "diabetes",
    "copd",
    "cancer",
    "cardiovascular",
    "neurodegenerative",
)

VARIANTS = {
    "apoe4": 0.18,
    "tcf7l2": 0.30,
    "cdkn2b": 0.40,
    "chrna5": 0.33,
    "notch3": 0.15,
    "foxo3": 0.35,
}
"""Frequency of the counted allele; each subject carries 0, 1 or 2."""

_RISKS: dict[str, dict[str, float]] = {
    "stroke": {"age": 0.35, "male": 0.2, "notch3": 0.7},
    "infection": {"age": 0.2, "pack_years": 0.25},
    "diabetes": {"age": 0.15, "bmi": 0.45, "tcf7l2": 0.5},
    "copd": {"age": 0.25, "pack_years": 0.6, "chrna5": 0.25},
    "cancer": {"age": 0.3, "pack_years": 0.4, "chrna5": 0.3},
    "cardiovascular": {"age": 0.4, "male": 0.3, "bmi": 0.2, "cdkn2b": 0.4},
    "neurodegenerative": {"age": 0.5, "apoe4": 0.8},
}
"""Log odds per standard deviation (age, pack_years, bmi), for men, and per allele."""

_PREVALENCE_LOGIT = -0.85

_LABORATORY: dict[str, tuple[str, float, float, float, int]] = {
    "hba1c": ("diabetes", 5.6, 0.8, 0.6, 1),
    "crp": ("infection", 1.2, 0.9, 0.7, 2),
    "ldl": ("cardiovascular", 3.1, 0.8, 0.45, 2),
    "d_dimer": ("stroke", 0.0, 0.7, 0.6, 2),
    "eosinophils": ("copd", 0.2, 0.08, 0.5, 3),
    "cea": ("cancer", 0.7, 0.6, 0.6, 2),
    "nfl": ("neurodegenerative", 2.9, 0.4, 0.5, 2),
}
"""Column: disease that raises it, mean, standard deviation, rise in deviations, decimals."""

_SKEWED = ("crp", "d_dimer", "cea", "nfl")
"""Drawn on a log scale."""

_LOG_HAZARD = {
    "stroke": 0.5,
    "infection": 0.2,
    "diabetes": 0.2,
    "copd": 0.4,
    "cancer": 0.9,
    "cardiovascular": 0.5,
    "neurodegenerative": 0.4,
}


@dataclass(frozen=True)
class Subject:
    """One subject of the cohort; everything a hospital would know, nothing of the generator's."""

    name: str
    age: int
    sex: str
    bmi: float
    pack_years: float
    site: int
    laboratory: dict[str, float]
    variants: dict[str, int]
    labels: dict[str, int]
    survival_days: int
    event: int


def draw_subject(rng: np.random.Generator, *, name: str, num_sites: int) -> Subject:
    """Draw one subject from its own generator."""
    age = int(np.clip(np.rint(rng.normal(62, 12)), 30, 90))
    male = bool(rng.random() < 0.5)
    bmi = round(float(np.clip(rng.normal(27, 4.5), 17, 45)), 1)
    smokes = rng.random() < 0.55
    pack_years = round(float(np.clip(rng.gamma(2.0, 12.0), 0, 90)), 1) if smokes else 0.0
    variants = {gene: int(rng.binomial(2, share)) for gene, share in VARIANTS.items()}
    factors = {
        "age": (age - 62) / 12,
        "male": float(male) - 0.5,
        "bmi": (bmi - 27) / 4.5,
        "pack_years": (pack_years - 13) / 16,
        **{gene: variants[gene] - 2 * share for gene, share in VARIANTS.items()},
    }
    labels = {disease: _label(rng, factors, _RISKS[disease]) for disease in DISEASES}
    survival_days, event = _survival(rng, factors, labels)
    return Subject(
        name=name,
        age=age,
        sex="M" if male else "F",
        bmi=bmi,
        pack_years=pack_years,
        site=int(rng.integers(num_sites)),
        laboratory=_laboratory(rng, labels),
        variants=variants,
        labels=labels,
        survival_days=survival_days,
        event=event,
    )


def _label(rng: np.random.Generator, factors: dict[str, float], risks: dict[str, float]) -> int:
    logit = _PREVALENCE_LOGIT + sum(weight * factors[name] for name, weight in risks.items())
    return int(rng.random() < 1 / (1 + np.exp(-logit)))


def _laboratory(rng: np.random.Generator, labels: dict[str, int]) -> dict[str, float]:
    values = {}
    for column, (disease, mean, deviation, rise, decimals) in _LABORATORY.items():
        value = mean + deviation * (rng.standard_normal() + rise * labels[disease])
        value = float(np.exp(value)) if column in _SKEWED else max(value, 0.0)
        values[column] = round(value, decimals)
    return values


def _survival(
    rng: np.random.Generator, factors: dict[str, float], labels: dict[str, int]
) -> tuple[int, int]:
    """Weibull time to death (shape 1.3), censored when the study ends after one to nine years."""
    log_hazard = 0.45 * factors["age"] - 0.35 * factors["foxo3"]
    log_hazard += sum(weight * (labels[disease] - 0.3) for disease, weight in _LOG_HAZARD.items())
    years = 9.0 * (-np.log(1 - rng.random()) * np.exp(-log_hazard)) ** (1 / 1.3)
    censored = rng.uniform(1, 9)
    return int(max(1, np.rint(365.25 * min(years, censored)))), int(years <= censored)
