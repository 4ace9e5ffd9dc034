"""A made-up store that has everything a real one can have: every kind of task, every warning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.storing import store
from foundation.metrics.by_name import METRICS_OF, PRIMARY
from tests.evaluation.report_run import (
    CLASSIFIED,
    MODELS,
    OUTPUTS,
    SECRET,
    SPLIT_SIZES,
    TASKS,
    leakage,
    run,
)


def make_store(
    folder: Path, *, seed: int = 0, split: str = "val", tasks: Sequence[str] = tuple(TASKS)
) -> Path:
    """Write a store of eleven tasks and nine models to the contract of its module."""
    rng = np.random.default_rng(seed)
    for task in tasks:
        kind = TASKS[task]
        shown = "cv" if task == "sarcoma" else split
        store.write_predictions(folder, task, predictions(shown))
        store.write_statistics(folder, task, statistics(rng, task, kind, shown, seed))
    steps = list(range(0, 600, 3))
    for number, (model, method) in enumerate([("mae", "mae"), ("dino", "dino")]):
        loss = np.exp(-np.arange(200) / 60) + 0.1 * rng.random(200) + 7 * number
        curve = {"steps": steps, "loss": loss.tolist(), "method": method, "wall_s": 81.4}
        store.write_curve(folder, model, curve)
    shapes = rng.random((3, 24, 40)).astype(np.float32)
    triptych = {"original": shapes, "masked": shapes * (shapes > 0.7), "reconstruction": shapes**2}
    store.write_pictures(folder, "mae_reconstructions", triptych)
    slices = {f"stroke__label {at % 2}__{at}": shapes[at % 3] for at in range(6)}
    slices |= {f"CT__all__{at}": shapes[at].T for at in range(3)}
    store.write_pictures(folder, "cohort", slices)
    store.write_leakage(folder, leakage())
    store.write_run(folder, run(folder.name, split, seed, tasks))
    return folder


def predictions(split: str, **changes: Any) -> pd.DataFrame:
    """Rows that the report must never show."""
    fixed = {"model": "mae", "protocol": "linear", "split": split, "output": 0, "event": np.nan}
    subjects = [f"{SECRET}{at:04d}" for at in range(9)]
    return pd.DataFrame({**fixed, "subject": subjects, "label": 1.0, "score": 0.5, **changes})


def statistics(
    rng: np.random.Generator, task: str, kind: str, split: str, seed: int
) -> dict[str, Any]:
    """What a run computes of a task, with numbers drawn around each model's strength."""
    n = 51 if split == "cv" else SPLIT_SIZES[split]
    positives = n // 3 if kind == "binary" else None
    models = [
        model_entry(rng, model, protocol, kind, n=n, split=split)
        for model in MODELS
        for protocol in protocols_of(kind, model)
    ]
    return {
        "task": task,
        "kind": kind,
        "metric": PRIMARY[kind],
        "metrics": list(METRICS_OF[kind]),
        "split": split,
        "n": n,
        "positives": positives,
        "outputs": list(OUTPUTS.get(kind, ("1",))),
        "num_bootstraps": 500,
        "seed": seed,
        "subjects": [f"{SECRET}{at:04d}" for at in range(n)],
        "models": models,
        "comparisons": comparisons(rng, kind, n),
        "few_shot": None if kind in ("segmentation", "retrieval") else few_shot(rng, kind),
        "shuffled": shuffled(kind) if kind in ("binary", "regression", "survival") else None,
    }


def protocols_of(kind: str, model: str) -> tuple[str, ...]:
    if kind in ("segmentation", "retrieval"):
        return ("dense",) if kind == "segmentation" else ("retrieval",)
    if model == "constant":
        return ("constant",)
    if model in ("one_feature", "clinical"):
        return ("linear",)
    return ("linear", "knn", "attentive") if MODELS[model][0] == "backbone" else ("linear", "knn")


def model_entry(
    rng: np.random.Generator, model: str, protocol: str, kind: str, *, n: int, split: str
) -> dict[str, Any]:
    group, _, signal = MODELS[model]
    scores = {name: score(rng, name, signal) for name in METRICS_OF[kind]}
    if model == "constant" and kind == "binary":
        scores["sensitivity_at_90_specificity"] = missing("every score is the same")
    outputs = OUTPUTS.get(kind) if kind in ("multiclass", "multilabel", "segmentation") else None
    by_output = {name: around(rng, signal) | {"n": n - 3, "reason": None} for name in outputs or ()}
    if outputs:
        by_output[outputs[-1]] = missing("no subject of this class in the split") | {"n": n}
    first = scores[METRICS_OF[kind][0]]
    is_classified = kind in CLASSIFIED and model != "constant"
    return {
        "model": model,
        "kind": group,
        "protocol": protocol,
        "n": n,
        "positives": n // 3 if kind == "binary" else None,
        "scores": scores,
        "by_output": by_output or None,
        "delong": {"low": first["low"], "high": first["high"]} if kind == "binary" else None,
        "bootstrap": {"low": first["low"], "high": first["high"]} if kind == "binary" else None,
        "training_spread": spread(rng, first["value"], 20) if split != "cv" else None,
        "folds": spread(rng, first["value"], 100) if split == "cv" else None,
        "calibration": calibration(rng, signal, n) if is_classified else None,
        "conformal": conformal(rng, n) if kind in (*CLASSIFIED, "regression") else None,
        "risk_coverage": risk_coverage(signal) if is_classified else None,
    }


def around(rng: np.random.Generator, signal: float) -> dict[str, float]:
    value = float(np.clip(0.5 + 0.45 * signal + rng.normal(0, 0.03), 0, 0.99))
    return {"value": value, "low": value - 0.12, "high": min(1.0, value + 0.09)}


def score(rng: np.random.Generator, metric: str, signal: float) -> dict[str, Any]:
    found: dict[str, Any] = around(rng, signal)
    if metric == "mean_absolute_error":
        found = {name: 400 * (1.5 - value) for name, value in found.items()}
        found["low"], found["high"] = found["high"], found["low"]
    if metric == "r2":
        found = {name: 2 * value - 1.1 for name, value in found.items()}
    method = "logit DeLong" if metric == "auroc" else "BCa bootstrap"
    coverage = 0.931 if metric == "auroc" else None
    threshold = {"threshold_on": "validation"} if metric.startswith("sensitivity") else {}
    return {**found, "method": method, "coverage": coverage, "reason": None, **threshold}


def missing(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "method": None, "reason": reason}


def spread(rng: np.random.Generator, value: float, num: int) -> dict[str, float]:
    mean = value + rng.normal(0, 0.01)
    return {"num": num, "mean": mean, "sd": 0.04, "low": mean - 0.07, "high": mean + 0.07}


def calibration(rng: np.random.Generator, signal: float, n: int) -> dict[str, Any]:
    place = np.linspace(0.05, 0.95, 12)
    far = 0.25 * np.sin(2 * np.pi * place)

    def quality(size: float) -> dict[str, Any]:
        rate = np.clip(place + size * far + rng.normal(0, 0.03, 12), 0, 1)
        bins = [
            {"mean_score": float(p), "rate": float(r), "n": n // 12 + 1}
            for p, r in zip(place, rate, strict=True)
        ]
        return {
            "ece": 0.12 * size + 0.02,
            "nll": 0.7 - 0.2 * signal + 0.1 * size,
            "brier": 0.25 - 0.1 * signal,
            "bins": bins,
        }

    return {
        "temperature": 1.62,
        "fitted_on": "validation",
        "before": quality(1.0),
        "after": quality(0.2),
    }


def conformal(rng: np.random.Generator, n: int) -> dict[str, Any]:
    def sets(count: int) -> dict[str, Any]:
        coverage = min(1.0, 0.9 + rng.normal(0, 0.03))
        return {"coverage": coverage, "mean_size": 1.3, "n": count}

    groups = {"sex": {"F": sets(n // 2), "M": sets(n - n // 2)}}
    groups["site"] = {f"site {at}": sets(n // 3) for at in range(3)}
    groups["subject"] = {f"{SECRET}{at:04d}": sets(1) for at in range(n)}
    return {"level": 0.9, **sets(n), "by_group": groups, "calibrated_on": "validation"}


def risk_coverage(signal: float) -> dict[str, Any]:
    coverage = np.linspace(0.05, 1, 20)
    risk = (0.5 - 0.4 * signal) * coverage ** (0.3 + signal)
    return {"coverage": coverage.tolist(), "risk": risk.tolist(), "area": float(risk.mean())}


def comparisons(rng: np.random.Generator, kind: str, n: int) -> list[dict[str, Any]]:
    pairs = [("mae", "dino"), ("mae", "foreign"), ("dino", "foreign")]
    pairs += [(model, "clinical") for model in ("mae", "dino", "foreign")]
    protocol = protocols_of(kind, "mae")[0]
    found = []
    for a, b in pairs:
        difference = 0.4 * (MODELS[a][2] - MODELS[b][2]) + float(rng.normal(0, 0.02))
        p = float(np.clip(0.5 - 4 * abs(difference), 0.0004, 1))
        found.append(
            {
                "a": a,
                "b": b,
                "protocol": protocol,
                "b_protocol": protocol,
                "metric": PRIMARY[kind],
                "difference": difference,
                "low": difference - 0.08,
                "high": difference + 0.09,
                "p": p,
                "p_delong": p * 1.1 if kind == "binary" else None,
                "detectable": 0.121,
                "n": n,
                "reason": None,
            }
        )
    return found


def few_shot(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    sizes: list[tuple[str, float]] = [("fraction", x) for x in (0.05, 0.1, 0.25, 0.5, 1.0)]
    if kind in CLASSIFIED:
        sizes = [("shots", x) for x in (1, 2, 4, 8, 16, 32)] + sizes
    models = []
    for model, (group, _, signal) in MODELS.items():
        if model == "constant":
            continue
        for protocol in ("linear", "prototypes") if group == "backbone" else ("linear",):
            points = [few_shot_point(rng, model, unit, x, signal) for unit, x in sizes]
            area = 0.55 + 0.3 * signal
            models.append(
                {
                    "model": model,
                    "kind": group,
                    "protocol": protocol,
                    "points": points,
                    "area": area,
                    "area_low": area - 0.05,
                    "area_high": area + 0.05,
                }
            )
    return {"models": models, "reference": "clinical", "reference_protocol": "linear"}


def few_shot_point(
    rng: np.random.Generator, model: str, unit: str, x: float, signal: float
) -> dict[str, Any]:
    names = ("draws", "mean", "sd", "low", "high", "difference", "difference_low")
    empty: dict[str, Any] = dict.fromkeys((*names, "difference_high"))
    if unit == "shots" and x == 32:
        reason = "the rarer class has 30 training subjects, fewer than 32"
        return {"x": x, "unit": unit, **empty, "draws": 0, "reason": reason}
    size = x if unit == "shots" else 32 * x
    mean = min(0.5 + 0.09 * signal * np.log2(1 + size) + rng.normal(0, 0.01), 1)
    point = {"draws": 100, "mean": mean, "sd": 0.05, "low": mean - 0.1, "high": mean + 0.08}
    if model != "clinical":
        apart = 0.3 * (signal - 0.6)
        ends = {"difference_low": apart - 0.04, "difference_high": apart + 0.05}
        point |= {"difference": apart, **ends}
    return {"x": x, "unit": unit, **empty, **point, "reason": None}


def shuffled(kind: str) -> dict[str, Any]:
    metric = "auroc" if kind == "binary" else "concordance"
    found = {"metric": metric, "chance": 0.5, "num": 20, "mean": 0.507, "se": 0.009}
    return {"model": "mae", "protocol": "linear", **found, "passed": True, "reason": None}
