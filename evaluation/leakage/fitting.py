"""Whether anything was fitted outside the training part: canaries on features and estimators.

Code cannot be asked what it looked at, so it is run with something changed that it must not see,
or not changed that it must. What no canary sees: features that were chosen, or fitted by a method
that leaves no trace, with the labels of all subjects before they came here. A few fits a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.leakage.checks import Check, Question, hits
from evaluation.leakage.held_out import sees_held_out
from evaluation.leakage.traces import depends_on_company, fitted_elsewhere, fitted_on_everybody
from evaluation.probing.estimator import Candidate, Fitted, Rows
from foundation.tasks.task import Task

_FOLDS = 5


def check_fitting(task: Task, candidates: Mapping[str, Candidate]) -> list[Check]:
    """Run every canary on every model of a task.

    Args:
        task: Its subjects, labels and splits. No label of a test subject is looked at.
        candidates: By model.
    """
    train, held_out = _parts(task)
    checks = []
    for model, candidate in candidates.items():
        checks.append(_check_features(task, model, candidate, train))
        checks += _check_estimators(task, model, candidate, train, held_out)
    return checks


def _check_features(task: Task, model: str, candidate: Candidate, train: Rows) -> Check:
    tables = _tables(candidate)
    found = [
        f"{name}: {words}"
        for name, features in tables
        for words in _traces(features, train, has_folds=task.card.protocol.repeated_cv is not None)
    ]
    return hits(
        task.card.name,
        "features fitted outside training",
        model,
        count=len(found),
        detail=f"traces in {len(tables)} feature tables" + (f"; {found[0]}" if found else ""),
    )


def _traces(features: Any, train: Rows, *, has_folds: bool) -> Iterator[str]:
    rows = None if has_folds else train
    if isinstance(features, Fitted):
        if fitted_elsewhere(features, train):
            yield "the same whichever training rows it is fitted on"
        if depends_on_company(features, train):
            yield "depends on the subjects it is computed beside"
        everybody = [features.features(train)]
        if features.values.dtype.kind == "f":
            everybody.append(features.values)
    else:
        everybody = [features] if isinstance(features, np.ndarray) else []
    for values in everybody:
        if words := fitted_on_everybody(values, rows):
            yield words


def _check_estimators(
    task: Task, model: str, candidate: Candidate, train: Rows, held_out: Rows
) -> list[Check]:
    questions: tuple[Question, ...] = (
        "held-out features reach the fit", "held-out labels reach the fit"
    )  # fmt: skip
    seen: tuple[list[str], list[str]] = ([], [])
    opaque = []
    for scorer in candidate.scorers:
        answer = sees_held_out(scorer, task.label, train, held_out)
        if answer is None:
            opaque.append(scorer.estimator.name)
            continue
        for names, hit in zip(seen, answer, strict=True):
            names += [scorer.estimator.name] * hit
    checks = []
    for question, names in zip(questions, seen, strict=True):
        detail = f"of {len(candidate.scorers)} protocols score a subject by others held out"
        check = hits(task.card.name, question, model, count=len(names), detail=detail)
        if opaque and not names:
            reason = f"the features of {', '.join(opaque)} can neither be altered nor cut"
            check = replace(check, status="unknown", reason=reason)
        checks.append(check)
    return checks


def _tables(candidate: Candidate) -> list[tuple[str, Any]]:
    """Each table of features once, with its name."""
    found: dict[int, tuple[str, Any]] = {}
    for scorer in candidate.scorers:
        for name, features in scorer.features.items():
            found.setdefault(id(features), (name, features))
    if candidate.few_shot is not None:
        found.setdefault(id(candidate.few_shot), ("few-shot", candidate.few_shot))
    return list(found.values())


def _parts(task: Task) -> tuple[Rows, Rows]:
    """A training part and a held-out one: of the split, or of one fold."""
    if task.card.protocol.repeated_cv is None:
        return task.rows("train"), task.rows("val")
    key = task.label if task.label.ndim == 1 else np.nan_to_num(task.label).sum(axis=1)
    order = np.argsort(key, kind="stable")  # so that a fold holds every class
    held_out = np.sort(order[::_FOLDS])
    return np.setdiff1d(order, held_out), held_out
