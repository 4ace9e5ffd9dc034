"""What a fine-tuning leaves in its folder, made by hand, and a network that can tell a corner."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from foundation.tasks.task import Task
from shards.scan import Scan


class Corner:
    """Finds a bright corner; it counts the scans it is shown."""

    def __init__(self, task: Task, *, weight: float = 1.0) -> None:
        self.target = SimpleNamespace(kind=task.card.kind, outputs=task.outputs)
        self.weight = weight
        self.shown: list[Scan] = []

    def score_scan(self, scan: Scan) -> np.ndarray:
        self.shown.append(scan)
        inside = max(float(part.mean()) for part in _corners(scan.voxels))
        return np.array([1 / (1 + np.exp(-self.weight * (inside - 125) / 20))])

    def classes_of(self, scan: Scan) -> np.ndarray:
        self.shown.append(scan)
        return (scan.voxels > 140).astype(np.int64)


def _corners(voxels: np.ndarray) -> list[np.ndarray]:
    """All eight, as the axes of a file may be turned either way."""
    ends = [(slice(0, 3), slice(-3, None)), (slice(0, 4), slice(-4, None))]
    return [voxels[d, h, w] for d in ends[0] for h in ends[1] for w in ends[1]]


def write_part(
    folder: Path,
    task: Task,
    *,
    fraction: float = 1.0,
    begun: str = "scratch",
    trained: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    weights: str = "weights",
    **changes: Any,
) -> Path:
    """A finished part; its network is a name in a list of sums.

    Args:
        folder: Of the fine-tuning.
        task: What it was trained for.
        fraction: Of the training subjects, the first of them.
        begun: ``scratch`` or the name of a backbone.
        trained: Pseudonyms, instead of those.
        provenance: Of the network.
        weights: Another text is another network.
        changes: Of ``part.json``; None takes a key out.
    """
    share = "" if fraction == 1 else f"_{round(100 * fraction)}"
    part = folder / f"{task.card.name}{share}"
    rows = task.rows("train", "cv")
    rows = rows[: max(1, round(fraction * len(rows)))]
    told = {
        "task": task.card.name,
        "task_digest": task.digest,
        "fraction": fraction,
        "num_train": len(rows),
        "num_val": len(task.rows("val")),
        "kind": task.card.kind,
        "begun": begun,
        "begun_digest": None if begun == "scratch" else "ab" * 32,
        "subjects_trained": [task.subjects[row] for row in rows] if trained is None else trained,
        "metric": task.card.metric,
        "best_step": 40,
        "validation": {},
        "tune": "full",
        **changes,
    }
    (part / "model").mkdir(parents=True, exist_ok=True)
    sums = f"{hashlib.sha256(weights.encode()).hexdigest()}  model.safetensors\n"
    (part / "model" / "SHA256SUMS").write_text(sums)
    (part / "model" / "provenance.json").write_text(json.dumps(provenance or {}))
    told = {name: value for name, value in told.items() if value is not None}
    (part / "part.json").write_text(json.dumps(told))
    return part


def write_out_of_fold(part: Path, task: Task, scores: np.ndarray, fold: np.ndarray) -> None:
    """``predictions.csv``, subjects in the reverse order of the task; an empty cell for NaN."""
    columns = [f"score_{number}" for number in range(scores.shape[1])]
    lines = [",".join(["subject", "split", "fold", *columns])]
    for subject, own, number in reversed(list(zip(task.subjects, scores, fold, strict=True))):
        cells = ["" if np.isnan(value) else repr(float(value)) for value in own]
        lines.append(",".join([subject, "cv", str(number), *cells]))
    (part / "predictions.csv").write_text("\n".join(lines) + "\n")
