"""What a disease does to the body: the generator's own lesion variables, and their look-alikes.

Every subject gets a budget per process (so much bright tissue in the brain, so much dense tissue
in the lung, so much calcium), drawn without looking at the label. In a patient it becomes a lesion,
in everyone else a part of it becomes a harmless structure of the same grey value that differs in
shape, texture or place. Hence neither the mean nor the histogram of a scan tells much.
"""

from dataclasses import asdict, dataclass

import numpy as np

LESION_LABELS = {
    "stroke": 1,
    "infection": 2,
    "diabetes": 3,
    "copd": 4,
    "cancer": 5,
    "cardiovascular": 6,
    "neurodegenerative": 7,
}
"""Values in a lesion mask; 0 is none."""

LOOK_ALIKE_SHARE = {
    "stroke": 0.35,
    "infection": 0.8,
    "cancer": 0.3,
    "copd": 0.45,
    "cardiovascular": 0.35,
    "diabetes": 0.5,
}
"""How much of the budget that is not lesion becomes a look-alike; 1 would hide the disease from
everything but its shape and place."""


@dataclass(frozen=True)
class Lesions:
    """Lesions of one subject, and look-alikes (``benign_...``) cut from the same budgets."""

    stroke_volume_ml: float
    infection_volume_ml: float
    nodule_volume_ml: float
    nodule_count: int
    emphysema_share: float
    liver_fat_share: float
    liver_scale: float
    abdominal_calcium_ml: float
    cardiac_calcium_ml: float
    heart_scale: float
    atrophy: float
    """0 to 1: share of the spare fluid that lies in temporal horns and cortical sulci."""
    benign_brain_ml: float
    benign_lung_ml: float
    benign_vessel_ml: float
    benign_hole_share: float
    benign_abdominal_ml: float
    benign_thoracic_ml: float

    def variables(self) -> dict[str, float]:
        """Columns of ``lesions.csv``: what the disease did, without the look-alikes."""
        columns = asdict(self)
        return {
            name: round(float(value), 4)
            for name, value in columns.items()
            if not name.startswith("benign_")
        }


def draw_lesions(rng: np.random.Generator, labels: dict[str, int]) -> Lesions:
    """Draw the lesions of one subject from its labels (0 or 1 per disease)."""
    brain, lung = rng.uniform(25, 70), rng.uniform(80, 280)
    vessel, holes = rng.uniform(25, 60), rng.uniform(0.14, 0.34)
    cardiac, abdominal = rng.uniform(5, 15), rng.uniform(5, 15)
    stroke = brain * _focal(rng, labels["stroke"])
    infection = lung * _focal(rng, labels["infection"])
    nodules = vessel * _focal(rng, labels["cancer"])
    emphysema = holes * _diffuse(rng, labels["copd"])
    heart_calcium = cardiac * _diffuse(rng, labels["cardiovascular"])
    abdominal_calcium = abdominal * _diffuse(rng, labels["diabetes"])
    fat = _diffuse(rng, labels["diabetes"])
    return Lesions(
        stroke_volume_ml=stroke,
        infection_volume_ml=infection,
        nodule_volume_ml=nodules,
        nodule_count=int(rng.integers(3, 7)) if labels["cancer"] else 0,
        emphysema_share=emphysema,
        liver_fat_share=fat,
        liver_scale=1 + 0.05 * fat + 0.05 * float(np.clip(rng.standard_normal(), -2, 2)),
        abdominal_calcium_ml=abdominal_calcium,
        cardiac_calcium_ml=heart_calcium,
        heart_scale=1
        + 0.13 * labels["cardiovascular"]
        + 0.05 * float(np.clip(rng.standard_normal(), -2, 2)),
        atrophy=_diffuse(rng, labels["neurodegenerative"]),
        benign_brain_ml=LOOK_ALIKE_SHARE["stroke"] * (brain - stroke),
        benign_lung_ml=LOOK_ALIKE_SHARE["infection"] * (lung - infection),
        benign_vessel_ml=LOOK_ALIKE_SHARE["cancer"] * (vessel - nodules),
        benign_hole_share=LOOK_ALIKE_SHARE["copd"] * (holes - emphysema),
        benign_abdominal_ml=LOOK_ALIKE_SHARE["diabetes"] * (abdominal - abdominal_calcium),
        benign_thoracic_ml=LOOK_ALIKE_SHARE["cardiovascular"] * (cardiac - heart_calcium),
    )


def _focal(rng: np.random.Generator, label: int) -> float:
    """Share of the budget that is lesion: nearly all in a patient, none in anyone else."""
    share = float(rng.uniform(0.8, 1.0))
    return share if label else 0.0


def _diffuse(rng: np.random.Generator, label: int) -> float:
    """The same for what comes by degrees: the healthy have some, some patients have little."""
    return float(rng.beta(7, 3) if label else rng.beta(2, 6.5))
