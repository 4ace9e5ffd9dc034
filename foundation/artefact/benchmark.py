"""What evaluation has found of a backbone or a fine-tuned model, from its ``statistics/``."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_BACKBONE, _TRAINED, _FLOOR = "backbone", "trained", "floor"
_STATISTICS, _RUN = "statistics", "run.json"
_KEYS = {"task", "metric", "split", "models"}


class BenchmarkError(ValueError):
    """Statistics that cannot be told on a card."""


class Scored(NamedTuple):
    """One task by one protocol."""

    task: str
    protocol: str
    metric: str
    split: str
    n: int
    score: str
    """with its 95% interval, or why there is none"""
    floor: str
    """the best of those that need no pretraining"""


def read_statistics(where: Path) -> list[dict[str, Any]]:
    """Of every task of an evaluation's store, or one file of ``STORE/statistics``.

    Raises:
        BenchmarkError: There are none, or a file holds something else.
    """
    paths = [where] if where.is_file() else sorted((where / _STATISTICS).glob("*.json"))
    if not paths:
        raise BenchmarkError(f"{where}: no {_STATISTICS} here; give the folder stores/NAME")
    return [_read(path, keys=_KEYS) for path in paths]


def model_with(digest: str, where: Path) -> str:
    """The name that an evaluation has given to the backbone of this digest.

    Args:
        digest: Of the artefact.
        where: As for :func:`read_statistics`.

    Raises:
        BenchmarkError: It has not scored this one.
    """
    store = where.parent.parent if where.is_file() else where
    models = _read(store / _RUN, keys={"models"})["models"]
    found = [name for name, about in models.items() if about.get("digest") == digest]
    if not found:
        known = ", ".join(
            f"{name} ({about['digest'][:8]})"
            for name, about in models.items()
            if about["kind"] == _BACKBONE
        )
        raise BenchmarkError(
            f"{store}: has not scored the backbone of digest {digest[:8]}, only {known or 'none'}; "
            f"where only its card has changed since, say which one it is with --model"
        )
    return found[0]


def scored(
    statistics: Iterable[Mapping[str, Any]], *, model: str | None, tuned_for: str | None = None
) -> list[Scored]:
    """One row for each task and protocol of a backbone, or for the task of a fine-tuned model.

    Args:
        statistics: Of one task each.
        model: Its name in them; None where they know only one.
        tuned_for: The task of a fine-tuned model; None for a backbone.

    Raises:
        BenchmarkError: They know several and none was named, or not the one that was.
    """
    kind = _BACKBONE if tuned_for is None else _TRAINED
    word = "backbone" if tuned_for is None else "model trained for this task"
    rows, names = [], set()
    for each in statistics:
        if tuned_for not in (None, each["task"]):
            continue
        backbones = [one for one in each["models"] if one["kind"] == kind]
        names |= {one["model"] for one in backbones}
        floor = _best_floor(each)
        mine = [one for one in backbones if model in (None, one["model"])]
        rows += [_row(one, of=each, floor=floor) for one in mine]
    known = ", ".join(sorted(names)) or "none"
    if model is None and len(names) > 1:
        raise BenchmarkError(f"the statistics know several: {word} {known}; name one")
    if model is not None and model not in names:
        raise BenchmarkError(f"the statistics know no {word} {model!r}, only {known}")
    return rows


def _row(one: Mapping[str, Any], *, of: Mapping[str, Any], floor: str) -> Scored:
    found = one["scores"][of["metric"]]
    return Scored(
        task=of["task"],
        protocol=one["protocol"],
        metric=of["metric"],
        split=of["split"],
        n=one["n"],
        score=_in_words(found),
        floor=floor,
    )


def _best_floor(of: Mapping[str, Any]) -> str:
    """Higher is better for every primary metric."""
    floors = [
        (found["value"], one["model"], found)
        for one in of["models"]
        if one["kind"] == _FLOOR and (found := one["scores"][of["metric"]])["value"] is not None
    ]
    if not floors:
        return "none"
    _, name, found = max(floors, key=lambda floor: floor[:2])
    return f"{_in_words(found)} {name}"


def _in_words(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return f"none ({found['reason']})"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _read(path: Path, *, keys: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not keys <= set(content):
        raise BenchmarkError(
            f"{path}: is not what evaluation.run writes ({', '.join(sorted(keys))})"
        )
    return content
