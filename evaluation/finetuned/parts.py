"""What a fine-tuning has left in ``runs/NAME/PART/``: a network trained for one task, or its folds.

A part is of one task and one share of its training subjects. It is finished when its network is
published, which comes last; others are passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.backbones.entry import SEEN, UNTRAINED
from evaluation.statistics.kinds import SCRATCH
from evaluation.storing.store import sha256_of
from foundation.artefact.layout import PROVENANCE, SUMS
from recipes.load import digest

PART, PREDICTIONS, MODEL = "part.json", "predictions.csv", "model"
_MADE_OF = (PART, PREDICTIONS, f"{MODEL}/{SUMS}")


class FinetunedError(ValueError):
    """A fine-tuning that is missing, damaged, or of something else than it is scored on."""


@dataclass(frozen=True)
class Part:
    """One finished part.

    Attributes:
        folder: ``runs/NAME/PART``.
        task: Name of the card.
        task_digest: Of the card and its table, as they were.
        fraction: Share of the training subjects, above 0 and at most 1.
        num_train: How many those are.
        begun: ``scratch``, or the name of the backbone.
        begun_digest: Of that backbone.
        tune: Which weights were trained: full, last_blocks, lora or head.
        trained: Pseudonyms of everybody who was trained on.
        folds: Under cross-validation, of each fold those who had a part in it; empty where there
            were no folds, None where it is not told.
        seen: In pretraining, by the names of ``SEEN``; None where nothing is known.
        finished: The date, where it is told.
    """

    folder: Path
    task: str
    task_digest: str
    fraction: float
    num_train: int
    begun: str
    begun_digest: str | None
    tune: str
    trained: frozenset[str]
    folds: tuple[frozenset[str], ...] | None
    seen: dict[str, list[str]] | None
    finished: str | None

    @property
    def model(self) -> Path:
        """The published network."""
        return self.folder / MODEL

    @property
    def is_scratch(self) -> bool:
        """Whether its network was never pretrained."""
        return self.begun == SCRATCH

    @property
    def is_whole(self) -> bool:
        """Whether it was trained on all training subjects."""
        return self.fraction == 1.0

    @property
    def digest(self) -> str:
        """Of the network, of what was predicted out of fold, and of what is told of both."""
        files = [self.folder / name for name in _MADE_OF]
        return digest([sha256_of(file) if file.is_file() else "" for file in files])


def read_parts(folder: Path) -> list[Part]:
    """Every finished part of a fine-tuning, by task and from the largest share to the smallest.

    Raises:
        FinetunedError: There is none, one of them is damaged, two are of one task and share, or
            they did not all begin alike.
    """
    finished = [
        path.parent.parent
        for path in sorted(folder.glob(f"*/{MODEL}/{SUMS}"))
        if "." not in path.parent.parent.name  # moved aside by a fine-tuning that began anew
    ]
    parts = [_read(each / PART) for each in finished]
    if not parts:
        state = "no finished part here" if folder.is_dir() else "no such folder"
        raise FinetunedError(
            f"{folder}: {state}; make one with python -m foundation.finetune RECIPE"
        )
    found: dict[tuple[str, float], Part] = {}
    for part in parts:
        first = found.setdefault((part.task, part.fraction), part)
        if first is not part:
            raise FinetunedError(
                f"{folder}: {first.folder.name} and {part.folder.name} are both of task "
                f"{part.task} at {100 * part.fraction:g}%; take one of them away"
            )
        if (part.begun, part.begun_digest) != (parts[0].begun, parts[0].begun_digest):
            raise FinetunedError(
                f"{folder}: {parts[0].folder.name} began from {parts[0].begun} and "
                f"{part.folder.name} from {part.begun}; a line is of one beginning, give each its "
                "own folder"
            )
    return sorted(parts, key=lambda part: (part.task, -part.fraction))


def _read(path: Path) -> Part:
    tree = _json(path)
    try:
        return _part(path.parent, tree)
    except KeyError as error:
        raise FinetunedError(f"{path}: {error} is missing; fine-tune again") from None
    except (TypeError, ValueError) as error:
        raise FinetunedError(f"{path}: damaged ({error}); fine-tune again") from None


def _part(folder: Path, tree: Mapping[str, Any]) -> Part:
    provenance_path = folder / MODEL / PROVENANCE
    provenance = _json(provenance_path) if provenance_path.is_file() else {}
    fraction, folds = round(float(tree["fraction"]), 6), tree.get("folds")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction:g} is not above 0 and at most 1")
    finished = provenance.get("finished")
    return Part(
        folder=folder,
        task=str(tree["task"]),
        task_digest=str(tree["task_digest"]),
        fraction=fraction,
        num_train=int(tree["num_train"]),
        begun=str(tree["begun"]),
        begun_digest=tree.get("begun_digest"),
        tune=str(tree["tune"]),
        trained=frozenset(map(str, tree["subjects_trained"])),
        folds=None if folds is None else tuple(frozenset(map(str, each)) for each in folds),
        seen=_seen(tree, provenance),
        finished=str(finished)[:10] if finished else None,
    )


def _seen(tree: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """What pretraining has seen.

    A network's provenance lists those of the pretraining and of the training together. With a split
    that tells enough: whom it was trained on is never scored. Under cross-validation everybody is,
    so it tells nothing of the pretraining.
    """
    if tree["begun"] == SCRATCH:
        return dict(UNTRAINED)
    if tree.get("folds"):
        return None
    trained = set(map(str, tree["subjects_trained"]))
    known = {key: list(map(str, provenance[key])) for key in SEEN if key in provenance}
    if "subjects" in known:
        known["subjects"] = [each for each in known["subjects"] if each not in trained]
    return known or None


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetunedError(f"{path}: cannot be read ({error}); fine-tune again") from None
    if not isinstance(tree, dict):
        raise FinetunedError(f"{path}: holds a {type(tree).__name__}, expected a JSON object")
    return tree
