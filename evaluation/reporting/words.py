"""How the report writes a number, and the sentences that keep a reader from being misled by one."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.reporting.content import CROSS_VALIDATION, Content, Task
from evaluation.reporting.figures import running_median
from evaluation.reporting.tables import SHOWN_DIGITS, training_prevalence

METRIC_TITLES = {
    "auroc": "AUROC",
    "average_precision": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "r2": "R²",
    "mean_absolute_error": "Mean absolute error",
}
PROTOCOL_TITLES = {
    "linear": "linear probe",
    "knn": "k-NN",
    "svm": "RBF-SVM",
    "constant": "constant score",
    "few_shot": "few-shot",
}
SPLIT_TITLES = {
    "train": "training",
    "val": "validation",
    "test": "test",
    CROSS_VALIDATION: "cross-validation",
}
PROVENANCE_TITLES = {
    "method": "Method",
    "shards.name": "Shards",
    "shards.digest": "Digest of the shards",
    "shards.num_samples": "Scans",
    "shards.num_subjects": "Subjects",
    "shards.sources": "Cohorts",
    "shards.modalities": "Modalities",
    "steps": "Steps",
    "scans_seen": "Scans seen",
    "hours": "Wall time",
    "world_size": "Processes",
    "device": "Device",
    "finished": "Finished",
    "recipe_digest": "Digest of the recipe",
    "versions.scanfm": "scanfm",
    "versions.torch": "torch",
    "versions.deepspeed": "deepspeed",
}
PHANTOM_NOTE = (
    "Its scans are procedural: drawn by a program, with the lesions that the labels name. It "
    "proves the machinery, from DICOM files to this page, never the science: no score here says "
    "anything about patients."
)
MINUS, DASH = "\N{MINUS SIGN}", "\N{EM DASH}"


class Footnotes:
    """The reasons behind the dashes of one table, each lettered once in order of appearance."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        """The letter of this reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        at = self.reasons.index(reason)
        return chr(ord("a") + at) if at < 26 else str(at + 1)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(self.mark(reason), reason) for reason in self.reasons])


def number(value: float, *others: float | None) -> str:
    """``value`` with three decimals, fewer for large numbers; as many as the largest of ``others``
    is given, so that a value and its interval line up."""
    largest = max(abs(one) for one in (value, *others) if one is not None)
    before_point = max(0, math.floor(math.log10(largest))) if largest else 0
    text = f"{value:.{max(0, SHOWN_DIGITS - before_point)}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def signed(value: float, *others: float | None) -> str:
    """As :func:`number`, with a plus or minus sign."""
    text = number(value, *others)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(low: float, high: float, *others: float | None) -> str:
    """``[0.801, 0.934]``, with the digits of the value it belongs to."""
    return f"[{number(low, high, *others)}, {number(high, low, *others)}]"


def quantity(value: str | float) -> str:
    """A count, a time or a word of a provenance: thousands apart, no trailing digits."""
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def settings(chosen: Mapping[str, object]) -> str:
    """``C = 0.1, layers = 1``."""
    shown = {key: f"{one:.3g}" if isinstance(one, float) else one for key, one in chosen.items()}
    return ", ".join(f"{key} = {one}" for key, one in shown.items())


def table_cell(text: object) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def split_note(content: Content) -> str:
    """Which split the scores of a store are of, and how far to trust that."""
    notes = []
    splits = {task.split for task in content.tasks}
    if "val" in splits:
        notes.append("Validation scores: the split on which C was chosen, so slightly optimistic.")
    if "test" in splits:
        notes.append("Test scores: every choice was made on validation.")
    if CROSS_VALIDATION in splits:
        notes.append(
            "Where a cohort has no split: cross-validation by subject; a subject's score is the "
            "mean of its out-of-fold predictions."
        )
    return " ".join(notes)


def overview_notes(content: Content) -> list[str]:
    """What stands under the overview."""
    return [
        f"Linear probe, with the 95% bootstrap interval over subjects ({content.num_bootstraps:,} "
        f"draws, seed {content.seed}).",
        "Bold: the best point estimate of a task. Overlapping intervals are no proof that one "
        "model is better than another.",
    ]


def task_notes(task: Task) -> list[str]:
    """What stands under the table of a task."""
    notes = [f"n is the number of subjects scored ({SPLIT_TITLES[task.split]})."]
    if task.card["kind"] == "binary":
        whose = "all" if task.split == CROSS_VALIDATION else "training"
        notes.append(
            "Balanced accuracy cuts at the share of positives among "
            f"{whose} subjects, {number(training_prevalence(task.card))}."
        )
    return notes


def few_shot_note(task: Task, titles: Mapping[str, str]) -> str:
    """What the few-shot curve and its table show."""
    subjects = max((row.scores[0].n for row in task.table), default=0)
    text = (
        "Mean over draws with the 5th to 95th percentile as band; every model is trained on the "
        f"same draws and scored on the same n = {subjects} subjects ({SPLIT_TITLES[task.split]})."
    )
    reference = next((curve.model for curve in task.few_shot if curve.is_reference), None)
    if reference is None:
        return text
    return (
        f"{text} The signed number is the paired difference to the strongest floor "
        f"({titles[reference]}), with its 5th to 95th percentile over draws."
    )


def facts(task: Task) -> list[tuple[str, str]]:
    """The task card in a few lines; what the card leaves empty is left out."""
    card = task.card
    lines = [
        ("Disease", card.get("disease")),
        ("Label", card.get("label")),
        ("Subjects", _counts(card)),
        ("Protocol", card.get("protocol_note")),
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
        of_them = f" ({positives:,} positive)" if positives is not None else ""
        parts.append(f"{n:,} {SPLIT_TITLES.get(split, split)}{of_them}")
    return ", ".join(parts)


def provenance_value(field: str, value: str | float) -> str:
    """A field of a provenance with its unit; a run shorter than an hour in minutes."""
    if field == "hours":
        hours = float(value)
        return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    return str(value).upper() if field == "method" else quantity(value)


def score_of_choice(selection: Mapping[str, Any]) -> str:
    """The score by which a setting was chosen: of its entry in the grid."""
    chosen = selection["chosen"]
    scores = [
        entry["score"]
        for entry in selection["grid"]
        if all(entry.get(name, value) == value for name, value in chosen.items())
    ]
    return number(scores[0]) if scores and scores[0] is not None else DASH


def leakage_verdict(content: Content) -> str:
    """One sentence over all checks."""
    total = len(content.checks)
    failed = sum(not check["passed"] for check in content.checks)
    if failed or not content.checks_passed:
        return f"{failed} of {total} leakage checks failed: do not trust the scores they belong to."
    return f"All {total} leakage checks passed."


def loss_note(curve: Mapping[str, Any]) -> str:
    """What a loss curve shows, and where it begins and ends (median over 5% of the steps)."""
    smooth = running_median(curve["loss"])
    wall = f", {quantity(round(curve['wall_s']))} s" if curve.get("wall_s") else ""
    method = f" ({curve['method'].upper()})" if curve.get("method") else ""
    return (
        f"Training loss{method}, {len(smooth):,} logged steps up to step "
        f"{curve['steps'][-1]:,}{wall}; from {number(float(smooth[0]))} to "
        f"{number(float(smooth[-1]))} (running median). A loss is not a score."
    )


def task_title(content: Content, name: str | None) -> str:
    """The title of a task, "all" where a check is of none in particular."""
    titles = {task.name: task.card["title"] for task in content.tasks}
    return str(titles.get(name or "", name or "all"))
