"""The sentences that keep a reader from being misled by a number, and the facts of a task card."""

from collections.abc import Mapping
from typing import Any

from evaluation.reporting.content import CROSS_VALIDATION, STATUSES, Content, Task
from evaluation.reporting.figures.curves import running_median
from evaluation.reporting.numbers import number, plural, quantity
from evaluation.reporting.titles import KIND_TITLES, split_title
from evaluation.statistics.kinds import BACKBONE, FLOOR, TRAINED

PHANTOM_NOTE = (
    "Its scans are procedural: drawn by a program, with the lesions that the labels name. It "
    "proves the machinery, from DICOM files to this page, never the science: no score here says "
    "anything about patients."
)
_STOPPED = (
    " A network that was trained on the labels was stopped at the step that was best on these "
    "subjects, which is such a choice too."
)
UNKNOWN_OVERLAP = (
    "its pretraining data is not disclosed or not listed: whether it has seen these subjects is "
    "unknown"
)


def split_note(content: Content) -> str:
    """Which split the scores of a store are of, and how far to trust that."""
    notes = []
    splits = {task.results.split for task in content.tasks}
    if "val" in splits:
        notes.append(_of_validation(content))
    if "test" in splits:
        notes.append("Test scores: every choice was made on validation.")
    if CROSS_VALIDATION in splits:
        notes.append(
            "Where a cohort has no split: repeated nested cross-validation by subject; a subject's "
            "score is its prediction in one whole repeat, that whose score is nearest to the mean "
            "over all folds (of a segmentation or retrieval, the mean over repeats)."
        )
    return " ".join(notes)


def _of_validation(content: Content) -> str:
    """How much was chosen on the subjects that are scored."""
    kinds = {model.name: model.kind for model in content.models}
    most = dict.fromkeys((BACKBONE, FLOOR), 0)
    for task in content.tasks:
        for one in task.selections:
            kind = kinds[one["model"]]
            most[kind] = max(most[kind], len(one["grid"]))
    grids = " and ".join(
        f"{plural(count, 'setting')} of a {kind}" for kind, count in most.items() if count
    )
    return (
        "Validation scores: each is the best of "
        + (f"up to {grids}" if grids else "several settings")
        + " on the very subjects that are scored, so optimistic, the more so the larger the grid "
        "and the fewer the subjects. Intervals, p values and coverage know nothing of that choice; "
        "only a test split does." + (_STOPPED if TRAINED in kinds.values() else "")
    )


def leakage_verdict(content: Content) -> str:
    """One sentence over all checks, what is bad before what is good."""
    total = len(content.checks)
    counts = {
        status: sum(check.status == status for check in content.checks)
        for status in ("failed", "overridden", "unknown")
    }
    if not any(counts.values()):
        return f"All {total:,} leakage checks passed."
    parts = []
    if counts["failed"]:
        parts.append(
            f"{counts['failed']} of {total:,} leakage checks failed: do not trust the scores they "
            "belong to."
        )
    if counts["overridden"]:
        parts.append(
            f"{counts['overridden']} of {total:,} failed and were overridden: their numbers carry "
            "a warning mark."
        )
    if counts["unknown"]:
        parts.append(f"{counts['unknown']} of {total:,} could not be answered.")
    return " ".join(parts)


def leakage_status(content: Content) -> str:
    """The gravest status among all checks."""
    found = {check.status for check in content.checks}
    return next((status for status in STATUSES if status in found), "passed")


def facts(task: Task) -> list[tuple[str, str]]:
    """The task card in a few lines; what the card leaves empty is left out."""
    card = task.card
    lines = [
        ("Disease", card.get("disease")),
        ("Kind", KIND_TITLES.get(card["kind"], card["kind"])),
        ("Label", card.get("label")),
        ("Unit of independence", card.get("unit")),
        ("Subjects", _counts(card)),
        ("Groups", _groups(card.get("groups"))),
        ("Protocol", card.get("protocol_note")),
        ("Where the split is from", card.get("split_provenance")),
        ("Data", card.get("data")),
        ("Source", card.get("source")),
        ("Licence", card.get("licence")),
        ("Known floors", card.get("known_floors")),
        ("Known leaks", card.get("known_leaks")),
    ]
    return [(name, str(value)) for name, value in lines if value]


def _counts(card: Mapping[str, Any]) -> str:
    parts = []
    for split, n in card["n"].items():
        positives = (card.get("positives") or {}).get(split)
        of_them = f" ({counted(positives, card['kind'])})" if positives is not None else ""
        parts.append(f"{n:,} {split_title(split)}{of_them}")
    return ", ".join(parts)


def counted(positives: int, kind: str) -> str:
    """``12 positive``, or ``12 events`` of survival."""
    return plural(positives, "event") if kind == "survival" else f"{positives:,} positive"


def _groups(groups: Mapping[str, Mapping[str, int] | None] | None) -> str:
    """``sex: 20 F, 31 M; site: many values``."""
    return "; ".join(
        f"{column}: "
        + (", ".join(f"{n:,} {value}" for value, n in values.items()) if values else "many values")
        for column, values in (groups or {}).items()
    )


def provenance_value(field: str, value: str | float) -> str:
    """A field of a provenance with its unit; a run shorter than an hour in minutes."""
    if field == "hours":
        hours = float(value)
        return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    return str(value).upper() if field == "method" else quantity(value)


def loss_note(curve: Mapping[str, Any]) -> str:
    """What a loss curve shows, and where it begins and ends (median over 5% of the steps)."""
    smooth = running_median(curve["loss"])
    wall = f", {quantity(round(curve['wall_s']))} s" if curve.get("wall_s") else ""
    method = f" ({curve['method'].upper()})" if curve.get("method") else ""
    return (
        f"Training loss{method}, {plural(len(smooth), 'logged step')} up to step "
        f"{curve['steps'][-1]:,}{wall}; from {number(float(smooth[0]))} to "
        f"{number(float(smooth[-1]))} (running median). A loss is not a score."
    )


def task_title(content: Content, name: str | None) -> str:
    """The title of a task, "all" where a check is of none in particular."""
    titles = {task.name: task.card["title"] for task in content.tasks}
    return str(titles.get(name or "", name or "all"))
