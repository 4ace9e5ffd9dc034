"""The words for names that the store uses: metrics, protocols, splits, kinds, provenance."""

from evaluation.statistics.kinds import BACKBONE, FINE_TUNED, FLOOR, TRAINED
from foundation.metrics.by_name import METRICS

PROTOCOL_TITLES = {
    "linear": "linear probe",
    "knn": "k-NN",
    "prototypes": "prototypes",
    "attentive": "attentive probe",
    "svm": "RBF-SVM",
    "dense": "linear probe on patch tokens",
    "retrieval": "nearest neighbours",
    "constant": "constant score",
    "linear_clinical": "linear + clinical",
    "atlas": "training masks",
    "intensity": "brightness",
    "few_shot": "few-shot",
    FINE_TUNED: "trained network",
}
SPLIT_TITLES = {
    "train": "training",
    "val": "validation",
    "test": "test",
    "cv": "cross-validation",
}
KIND_TITLES = {
    "binary": "binary",
    "multiclass": "multi-class",
    "multilabel": "multi-label, missing labels left out",
    "regression": "regression",
    "ordinal": "ordinal",
    "survival": "survival",
    "segmentation": "segmentation",
    "retrieval": "retrieval",
}
BY_OUTPUT_TITLES = {
    "multiclass": "One class against the rest: AUROC",
    "multilabel": "Each label: AUROC",
    "segmentation": "Each class: Dice",
    "retrieval": "Each score of retrieval",
}
PROVENANCE_TITLES = {
    "method": "Method",
    "network": "Network",
    "weights": "Weights",
    "initialised_from.name": "Initialised from",
    "initialised_from.licence": "Licence of the initialisation",
    "tune": "Weights that were trained",
    "shards.name": "Shards",
    "shards.digest": "Digest of the shards",
    "shards.num_samples": "Scans",
    "shards.num_subjects": "Subjects",
    "shards.sources": "Cohorts",
    "shards.modalities": "Modalities",
    "steps": "Steps",
    "scans_seen": "Scans seen",
    "hours": "Wall time",
    "world_size": "Processes",
    "device": "Device",
    "finished": "Finished",
    "licence": "Licence",
    "recipe_digest": "Digest of the recipe",
    "versions.scanfm": "scanfm",
    "versions.torch": "torch",
    "versions.deepspeed": "deepspeed",
}
KIND_OF_MODEL = {
    BACKBONE: "Frozen backbones",
    TRAINED: "Trained on the labels",
    FLOOR: "Floors",
}


def metric_title(name: str) -> str:
    """As the field writes it, to begin a line; a metric of a later version by its own name."""
    title = METRICS[name].title if name in METRICS else name.replace("_", " ")
    return title[:1].upper() + title[1:] if title != "mAP" else title


def is_lower_better(metric: str) -> bool:
    """Whether a smaller value is the better one."""
    return metric in METRICS and METRICS[metric].lower_is_better


def constant_score(metric: str) -> float | None:
    """What a constant score gets, whatever the cohort; None where that depends on it."""
    if metric == "r2":
        return 0.0
    return METRICS[metric].chance if metric in METRICS else None


def protocol_title(name: str | None) -> str:
    """In words; "all" where nothing is named."""
    return PROTOCOL_TITLES.get(name, name.replace("_", " ")) if name else "all"


def split_title(name: str) -> str:
    """In words."""
    return SPLIT_TITLES.get(name, name)
