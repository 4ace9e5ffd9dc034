"""All that the report says of one store, as data: no layout and no wording here."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.reporting.results import Results

CROSS_VALIDATION = "cv"
RECONSTRUCTION = ("original", "masked", "reconstruction")
STATUSES = ("failed", "overridden", "unknown", "passed")  # the gravest first
WARNED = ("failed", "overridden")


@dataclass(frozen=True)
class Model:
    """A backbone, a fine-tuning or a floor, in the words of the run.

    Attributes:
        seen: "known" or "unknown": whether its pretraining data can be compared with a task.
    """

    name: str
    kind: str
    title: str
    description: str
    digest: str | None
    seen: str | None
    provenance: dict[str, str | float]


@dataclass(frozen=True)
class Digests:
    """What the numbers of a task were made from, in hex digits.

    Attributes:
        data: Of the cohort.
        predictions: Of the tables of predictions, groups and few-shot scores.
        statistics: Of the statistics file, which names the predictions it was computed from.
    """

    data: str | None
    predictions: str
    statistics: str


@dataclass(frozen=True)
class Check:
    """One leakage check; ``model`` is None where it is of no backbone.

    Attributes:
        status: "passed", "failed", "unknown" or "overridden".
        reason: Why it was overridden, or why it could not be answered.
    """

    task: str | None
    check: str
    model: str | None
    status: str
    count: int | None
    detail: str
    reason: str

    def is_about(self, task: str, model: str | None) -> bool:
        """Whether the scores of ``model`` on ``task`` are within its question."""
        return self.task in (None, task) and self.model in (None, model)


@dataclass(frozen=True)
class Task:
    """One task: its card, its results, what was left out and what was chosen."""

    name: str
    card: dict[str, Any]
    results: Results
    digests: Digests
    skipped: tuple[dict[str, Any], ...]
    selections: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Content:
    """One store."""

    name: str
    title: str
    date: str | None
    split: str
    recipe_digest: str
    store_digest: str
    tier: str | None
    notes: tuple[str, ...]
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    checks: tuple[Check, ...]
    curves: dict[str, dict[str, Any]]
    cohort_pictures: dict[str, NDArray[np.float32]]
    reconstructions: dict[str, dict[str, NDArray[np.float32]]]

    @property
    def titles(self) -> dict[str, str]:
        """The title of each model."""
        return {model.name: model.title for model in self.models}

    @property
    def digests(self) -> dict[str, str | None]:
        """The digest of each model."""
        return {model.name: model.digest for model in self.models}

    @property
    def is_phantom(self) -> bool:
        """Whether any of its tasks is of a procedural cohort."""
        cards = [f"{task.card['data']} {task.card['source']}" for task in self.tasks]
        return any("phantom" in card.lower() for card in cards)

    @cached_property
    def _warned(self) -> list[Check]:
        """The few of hundreds of checks that warn; every number asks for them."""
        return [check for check in self.checks if check.status in WARNED]

    def warnings(self, task: str, *models: str | None) -> list[str]:
        """What a failed or overridden leakage check says of these models' scores on a task."""
        found = [
            f"leakage check {check.status}: {check.check}"
            + (f" ({check.count})" if check.count is not None else "")
            + (f"; {check.reason}" if check.reason else "")
            for check in self._warned
            if any(check.is_about(task, model) for model in models)
        ]
        return list(dict.fromkeys(found))

    def rank_warnings(self, tasks: Iterable[str], model: str) -> list[str]:
        """The same of a model's rank over several tasks."""
        found = [text for task in tasks for text in self.warnings(task, model)]
        return list(dict.fromkeys(found))
