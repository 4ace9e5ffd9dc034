"""The report command over a made-up store that has everything a real one can have."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation import store
from evaluation.report import main

KINDS = ("html", "md", "csv", "json")
TASKS = {"stroke": "binary", "copd": "binary", "cancer": "binary", "sarcoma": "binary"}
TASKS |= {"volume": "regression"}
# Name -> (kind, title, how much of the label its score sees).
MODELS: dict[str, tuple[str, str, float]] = {
    "mae": ("backbone", "MAE, tiny", 1.3),
    "dino": ("backbone", "DINO, tiny", 1.1),
    "random": ("floor", "Random initialisation", 0.7),
    "pca": ("floor", "Raw voxels, PCA", 0.8),
    "histogram": ("floor", "Intensity histogram", 0.5),
    "one_feature": ("floor", "Volume", 0.4),
    "clinical": ("floor", "Clinical columns", 1.0),
    "constant": ("floor", "Constant", 0.0),
}
SPLIT_SIZES = {"train": 90, "val": 40, "test": 50}
SECRET = "5ec7e75ec7e7"  # every pseudonym begins so; none may reach a report


def make_store(folder: Path, *, seed: int = 0, split: str = "val", num_bootstraps: int = 200) -> Path:
    """Write a store of five tasks and eight models to the contract of ``evaluation.store``."""
    rng = np.random.default_rng(seed)
    cards = {}
    for task, kind in TASKS.items():
        rows = _predictions(rng, kind, "cv" if task == "sarcoma" else split)
        cards[task] = _card(task, kind, rows)
        store.write_predictions(folder, task, rows)
        if kind == "binary":
            store.write_few_shot(folder, task, _few_shot(rng), {"seed": seed, "draws": []})
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
    store.write_leakage(folder, _leakage())
    store.write_run(folder, _run(folder.name, cards, split, seed, num_bootstraps))
    return folder


def _predictions(rng: np.random.Generator, kind: str, split: str) -> pd.DataFrame:
    n = 51 if split == "cv" else SPLIT_SIZES[split]
    subjects = [f"{SECRET}{at:04d}" for at in range(n)]
    label = (np.arange(n) % 3 == 0).astype(float) if kind == "binary" else rng.normal(3400, 400, n)
    parts = []
    for model, (_, _, signal) in MODELS.items():
        for protocol in ("linear", "knn") if model not in ("clinical", "constant") else ("linear",):
            if kind == "binary":
                score = 1 / (1 + np.exp(1 - 2 * signal * label - rng.normal(0, 1.0, n) * (signal > 0)))
            else:
                score = 3400 + 0.5 * signal * (label - 3400) + rng.normal(0, 80, n)
            fixed = {"model": model, "protocol": protocol, "split": split}
            parts.append(pd.DataFrame({**fixed, "subject": subjects, "label": label, "score": score}))
    return pd.concat(parts, ignore_index=True)


def _few_shot(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for draw in range(20):
        luck = rng.normal(0, 0.05)
        for shots in (1, 2, 4, 8, 16):
            for model, (_, _, signal) in MODELS.items():
                score = min(0.5 + 0.07 * signal * np.log2(1 + shots) + luck + rng.normal(0, 0.01), 1)
                rows.append({"model": model, "shots": shots, "draw": draw, "score": score})
    return pd.DataFrame(rows)


def _card(task: str, kind: str, rows: pd.DataFrame) -> dict[str, Any]:
    sizes: dict[str, int] = {"cv": 51} if task == "sarcoma" else SPLIT_SIZES
    return {
        "title": task.replace("_", " ").capitalize(),
        "disease": "a disease | with a pipe",
        "kind": kind,
        "metric": {"binary": "auroc", "regression": "r2"}[kind],
        "data": "sarcoma" if task == "sarcoma" else "phantom cohort, seed 1",
        "licence": "Apache-2.0",
        "source": "generated <here>",
        "protocol_note": "split of the cohort, by subject; settings chosen on validation",
        "n": sizes,
        "positives": {name: n // 3 for name, n in sizes.items()} if kind == "binary" else None,
        "label": f"column {task}",
        "known_floors": "volume alone .688",
        "known_leaks": "",
    }


def _leakage() -> dict[str, Any]:
    checks = [
        {"task": task, "check": "subjects in two splits", "passed": True, "count": 0, "detail": ""}
        for task in TASKS
    ]
    overlap = {"check": "subjects seen in pretraining", "passed": True, "count": 0, "detail": "none"}
    checks += [{"task": "stroke", "model": model, **overlap} for model in ("mae", "dino")]
    return {"checks": checks, "passed": True}


def _run(
    name: str, cards: dict[str, Any], split: str, seed: int, num_bootstraps: int
) -> dict[str, Any]:
    provenance = {
        "steps": 600,
        "wall_s": 81.4,
        "code_version": "0.1.0",
        "shards": {"name": "phantom", "digest": "ab" * 32, "num_samples": 180, "num_subjects": 90},
        "subjects": [f"{SECRET}{at:04d}" for at in range(90)],
    }
    grid = [{"C": 10.0**power, "score": 0.7 + 0.02 * power} for power in range(-4, 2)]
    return {
        "name": name,
        "title": "Phantom cohort" if name == "demo" else f"Store {name}",
        "date": "2026-01-31",
        "recipe_digest": "cd" * 32,
        "split": split,
        "seed": seed,
        "num_bootstraps": num_bootstraps,
        "tasks": cards,
        "models": {
            model: {
                "kind": kind,
                "title": title,
                "description": f"What {title} is, in one line.",
                "digest": "ef" * 32 if kind == "backbone" else None,
                "provenance": provenance if kind == "backbone" else None,
            }
            for model, (kind, title, _) in MODELS.items()
        },
        "selections": [
            {"task": task, "model": "mae", "protocol": "linear", "chosen": {"C": 1.0}, "grid": grid}
            for task in TASKS
        ],
        "skipped": [
            {"task": "cancer", "model": "one_feature", "protocol": "knn", "reason": "has one column"}
        ],
        "notes": ["Two backbones, pretrained for a few minutes."],
    }
