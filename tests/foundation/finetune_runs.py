"""Fine-tunings of the tiny cohort, started as commands."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from foundation.log import read_log
from tests.tiny_cohort import Place

STEPS = 6
KINDS: dict[str, dict[str, Any]] = {
    "binary": {"kind": "binary", "label": {"column": "bright"}},
    "sizes": {"kind": "regression", "label": {"column": "size"}},
    "both": {"kind": "multilabel", "label": {"columns": ["bright", "female"]}},
    "sexes": {"kind": "multiclass", "label": {"column": "sex"}},
    "levels": {"kind": "ordinal", "label": {"column": "level", "levels": [0, 1, 2]}},
    "times": {"kind": "survival", "label": {"time_days": "size", "event": "bright"}},
    "masks": {"kind": "segmentation", "label": {"classes": {"spot": 1}}},
}
"""A card of each kind of label that something is trained for, by its name."""


def with_columns(place: Place) -> None:
    """Columns for every card of ``KINDS``."""

    def change(row: dict[str, str]) -> dict[str, str]:
        number = int(row["subject"].removeprefix("patient"))
        female = "" if number % 11 == 0 else str(int(row["sex"] == "F"))
        return {**row, "female": female, "level": str(int(row["bright"]) + number % 2)}

    place.rewrite(change)


def card(place: Place, name: str, **changes: Any) -> Path:
    """A card of ``KINDS`` over the tiny cohort."""
    floors = {"volume": None, "radiomics": None, "voxels": None}
    return place.card(name=name, floors=floors, groups=[], **{**KINDS[name], **changes})


def recipe(place: Place, *cards: Path, **changes: Any) -> Path:
    """A recipe of few steps, from an untrained toy backbone that is published beside it."""
    tree: dict[str, Any] = {
        "name": "tuned",
        "tasks": [str(each) for each in cards],
        "data_root": str(place.data),
        "pseudonym_key": str(place.key_path),
        "shards": str(place.root / "shards"),
        "out": str(place.root / "runs"),
        "backbone": str(place.backbone("mae")),
        "decoder": {"features": 2, "overlap": 0.0},
        "train": {"steps": STEPS, "global_batch": 8},
        "optimiser": {"lr": 3.0e-3, "clip": 1.0},
        "checkpoint": {"every_steps": 2},
        "build_workers": 0,
    }
    return place.write("recipe", {**tree, **changes})


def command(path: Path, *words: str, ranks: int = 1) -> list[str]:
    """What starts it."""
    launched = ["foundation.launch", str(ranks)] if ranks > 1 else []
    return [sys.executable, "-m", *launched, "foundation.finetune", str(path), *words]


def run(path: Path, project: Path, *words: str, ranks: int = 1, code: int = 0) -> str:
    """Run it to its end; what it said on stdout, or on stderr where it is to fail."""
    done = subprocess.run(
        command(path, *words, ranks=ranks),
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr if code else done.stdout


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each line of a log."""
    return [(line["step"], line["loss"]) for line in read_log(folder / "log.jsonl")]
