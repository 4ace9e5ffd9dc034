"""A made-up store with two fine-tunings: one from a backbone, one from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.storing import store
from tests.evaluation.report_store import make_store, model_entry

TITLES = {"tuned": "fine-tuned mae", "scratch": "supervised from scratch"}
SIZES = {0.05: 5, 0.2: 18, 1.0: 90}
SIGNAL = {"tuned": 0.95, "scratch": 0.7}


def make_trained_store(
    folder: Path,
    *,
    tasks: Sequence[str] = ("stroke", "lesion", "volume"),
    trained: Sequence[str] = ("stroke", "lesion"),
) -> Path:
    """A store whose ``trained`` tasks have rows and curves of both fine-tunings."""
    make_store(folder, tasks=tasks)
    rng = np.random.default_rng(7)
    for task in trained:
        stored = store.read_statistics(folder, task)
        content = {name: value for name, value in stored.items() if not name.endswith("digest")}
        store.write_statistics(folder, task, _with_rows(rng, content))
    run = {name: value for name, value in store.read_run(folder).items() if name != "digest"}
    models = {name: entry for name, entry in run["models"].items() if entry["kind"] == "backbone"}
    models |= {name: _model(name) for name in TITLES}
    reason = "this fine-tuning has no finished part for this task"
    skipped = [
        {"task": task, "model": name, "protocol": "fine_tuned", "reason": reason}
        for task in tasks
        if task not in trained
        for name in TITLES
    ]
    run |= {"models": {**models, **run["models"]}, "skipped": [*run["skipped"], *skipped]}
    store.write_run(folder, run)
    return folder


def _model(name: str) -> dict[str, Any]:
    begun = "scratch" if name == "scratch" else "mae"
    return {
        "kind": "trained",
        "title": TITLES[name],
        "description": f"What {TITLES[name]} is, in one line.",
        "digest": "fe" * 32,
        "architecture": None,
        "seen": "known" if name == "scratch" else "unknown",
        "provenance": {"initialised_from": {"name": begun}, "tune": "full"},
    }


def _with_rows(rng: np.random.Generator, content: dict[str, Any]) -> dict[str, Any]:
    kind, n, metric = content["kind"], content["n"], content["metric"]
    rows = [_row(rng, name, kind, n) for name in TITLES]
    own = [one for one in content["models"] if one["kind"] == "backbone"]
    floors = [one for one in content["models"] if one["kind"] == "floor"]
    protocol = own[0]["protocol"]
    against = [
        _pair(one, "scratch", protocol, "fine_tuned", metric, n, -0.12)
        for one in ("mae", "dino", "foreign")
    ]
    return content | {
        "models": [*own, *rows, *floors],
        "comparisons": [*content["comparisons"], *against],
        "fractions": {
            "lines": [_line(rng, name, n) for name in TITLES],
            "comparisons": [
                _pair("tuned", "scratch", "fine_tuned", "fine_tuned", metric, n, 0.3 - 0.2 * share)
                | {"fraction": share, "num_train": size}
                for share, size in SIZES.items()
            ],
        },
    }


def _row(rng: np.random.Generator, name: str, kind: str, n: int) -> dict[str, Any]:
    like = model_entry(rng, "mae", "fine_tuned", kind, n=n, split="val")
    return like | {"model": name, "kind": "trained", "training_spread": None}


def _line(rng: np.random.Generator, name: str, n: int) -> dict[str, Any]:
    points = []
    for share, size in SIZES.items():
        value = 0.5 + 0.4 * SIGNAL[name] * share**0.2 + float(rng.normal(0, 0.005))
        known = {"value": value, "low": value - 0.09, "high": min(1.0, value + 0.07)}
        about = {"method": "BCa bootstrap", "coverage": 0.93, "reason": None}
        sizes = {"fraction": share, "num_train": size, "n": n, "positives": None}
        points.append({**sizes, **known, **about})
    if name == "scratch":
        gone = dict.fromkeys(("value", "low", "high", "method", "coverage"))
        points[0] |= gone | {"reason": "one class only among the scored subjects"}
    return {"model": name, "is_scratch": name == "scratch", "points": points}


def _pair(
    a: str, b: str, protocol: str, b_protocol: str, metric: str, n: int, difference: float
) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "protocol": protocol,
        "b_protocol": b_protocol,
        "metric": metric,
        "difference": difference,
        "low": difference - 0.08,
        "high": difference + 0.09,
        "p": 0.0301,
        "p_delong": None,
        "detectable": 0.12,
        "n": n,
        "reason": None,
    }
