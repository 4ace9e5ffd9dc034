"""What a made-up run says of itself: every kind of task, nine models, every leakage answer."""

from collections.abc import Sequence
from typing import Any

from foundation.metrics.by_name import METRICS_OF, PRIMARY

TASKS = {
    "stroke": "binary",
    "copd": "binary",
    "cancer": "binary",
    "sarcoma": "binary",
    "organ": "multiclass",
    "diseases": "multilabel",
    "volume": "regression",
    "grade": "ordinal",
    "survival": "survival",
    "lesion": "segmentation",
    "scanner": "retrieval",
}
# Name -> (kind, title, how much of the label its score sees).
MODELS: dict[str, tuple[str, str, float]] = {
    "mae": ("backbone", "MAE, tiny", 0.9),
    "dino": ("backbone", "DINO, tiny", 0.8),
    "foreign": ("backbone", "ViT-S/16, 2D slices", 0.7),
    "random": ("floor", "Random initialisation", 0.4),
    "pca": ("floor", "Raw voxels, PCA", 0.5),
    "histogram": ("floor", "Intensity histogram", 0.3),
    "one_feature": ("floor", "Volume", 0.25),
    "clinical": ("floor", "Clinical columns", 0.6),
    "constant": ("floor", "Constant", 0.0),
}
OUTPUTS = {
    "multiclass": tuple(f"organ {at}" for at in range(11)),
    "multilabel": ("stroke", "infection", "copd", "cancer"),
    "segmentation": ("anterior", "posterior"),
    "ordinal": ("mild", "moderate", "severe"),
    "retrieval": ("average_precision", "hit_at_1", "hit_at_5"),
}
SPLIT_SIZES = {"train": 90, "val": 40, "test": 50}
CLASSIFIED = ("binary", "multiclass")
SECRET = "5ec7e75ec7e7"  # every pseudonym begins so; none may reach a report


def card(task: str, kind: str) -> dict[str, Any]:
    """The task's entry in ``run.json``."""
    sizes: dict[str, int] = {"cv": 51} if task == "sarcoma" else SPLIT_SIZES
    return {
        "title": task.replace("_", " ").capitalize(),
        "disease": "a disease | with a pipe",
        "kind": kind,
        "metric": PRIMARY[kind],
        "metrics": list(METRICS_OF[kind]),
        "outputs": list(OUTPUTS.get(kind, ("1",))),
        "data": "sarcoma" if task == "sarcoma" else "phantom cohort, seed 1",
        "data_digest": "da" * 32,
        "licence": "Apache-2.0",
        "source": "generated <here>",
        "protocol_note": "split of the cohort, by subject; settings chosen on validation",
        "split_provenance": "drawn by the makers of the cohort",
        "unit": "subject",
        "n": sizes,
        "positives": {name: n // 3 for name, n in sizes.items()} if kind == "binary" else None,
        "label": f"column {task}",
        "groups": {
            "sex": {"F": 20, "M": 31},
            "subject": {f"{SECRET}{at:04d}": 1 for at in range(51)},
        },
        "known_floors": "volume alone .688",
        "known_leaks": "",
    }


def leakage() -> dict[str, Any]:
    """All four answers a check can have."""
    fine = {"status": "passed", "count": 0, "detail": "subjects in two splits", "reason": ""}
    checks: list[dict[str, Any]] = [
        {"task": task, "check": "subject in two splits", "model": None, **fine} for task in TASKS
    ]
    overlap = {"task": "cancer", "check": "scored subject in pretraining", "model": "dino"}
    checks.append(
        {
            **overlap,
            "status": "overridden",
            "count": 3,
            "detail": "of 40 scored subjects are in the pretraining shards",
            "reason": "scans of another visit",
        }
    )
    checks.append(
        {
            **overlap,
            "task": "stroke",
            "model": "foreign",
            "status": "unknown",
            "count": 0,
            "detail": "",
            "reason": "the backbone does not say what it learned from",
        }
    )
    return {"checks": checks, "passed": False}


def run(name: str, split: str, seed: int, tasks: Sequence[str]) -> dict[str, Any]:
    """``run.json``."""
    grid = [{"C": 10.0**power, "score": 0.7 + 0.02 * power} for power in range(-4, 2)]
    return {
        "name": name,
        "title": "Phantom cohort" if name == "demo" else f"Store {name}",
        "date": "2026-01-31",
        "recipe_digest": "cd" * 32,
        "split": split,
        "tier": "quick",
        "seed": seed,
        "num_bootstraps": 500,
        "tasks": {task: card(task, TASKS[task]) for task in tasks},
        "models": {model: model_run(model) for model in MODELS},
        "selections": [
            {"task": task, "model": "mae", "protocol": "linear", "chosen": {"C": 1.0}, "grid": grid}
            for task in tasks
        ],
        "skipped": [
            {
                "task": "cancer",
                "model": "one_feature",
                "protocol": "knn",
                "reason": "has one column",
            }
        ],
        "notes": ["Two backbones, pretrained for a few minutes."],
    }


def model_run(model: str) -> dict[str, Any]:
    """A model's entry in ``run.json``."""
    kind, title, _ = MODELS[model]
    provenance = {
        "schema_version": 1,
        "method": "mae",
        "steps": 600,
        "scans_seen": 9600,
        "hours": 0.0226,
        "world_size": 2,
        "device": "cpu",
        "finished": "2026-01-31",
        "versions": {"scanfm": "0.1.0", "torch": "2.15.0"},
        "shards": {
            "name": "phantom",
            "digest": "ab" * 32,
            "num_samples": 180,
            "num_subjects": 90,
            "sources": [{"name": "phantom", "licence": "CC0-1.0", "num_samples": 180}],
            "modalities": {"CT": 90, "MR": 90},
        },
        "subjects": [f"{SECRET}{at:04d}" for at in range(90)],
    }
    return {
        "kind": kind,
        "title": title,
        "description": f"What {title} is, in one line.",
        "digest": "ef" * 32 if kind == "backbone" else None,
        "architecture": "ab" * 32 if kind == "backbone" else None,
        "seen": {"mae": "known", "dino": "known", "foreign": "unknown"}.get(model),
        "provenance": provenance if kind == "backbone" else None,
    }
