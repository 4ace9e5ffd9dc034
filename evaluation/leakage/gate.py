"""The gate before any score: a hard hit stops the run, unless the recipe overrides it by name.

What is found is never hidden: an overridden check is stored with its reason, and the report prints
a warning beside every number it is about.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import Field

from evaluation.leakage.checks import Check, Question
from evaluation.leakage.duplicates import check_exact, check_near, check_subjects
from evaluation.leakage.marks import ScanMarks
from evaluation.leakage.pretraining import Pretrained, overlaps
from foundation.tasks.task import Task
from recipes.load import Section

FAILED = "leakage_failed.json"


class LeakageError(ValueError):
    """Something that is scored was seen before; no score is computed."""


class AllowedLeak(Section):
    """A failed check that a recipe lets pass; the report warns beside the numbers it is about."""

    check: Question
    task: str
    model: str | None = Field(default=None, description="null: whichever model, or none")
    reason: str = Field(min_length=10, description="why the score means something all the same")

    def excuses(self, check: Check) -> bool:
        """Whether it is about this check."""
        same = (self.check, self.task) == (check.check, check.task)
        return same and self.model in (None, check.model)


def check_task(task: Task, marks: ScanMarks, entries: Mapping[str, Pretrained]) -> list[Check]:
    """Ask every question that needs no features.

    Args:
        task: Its subjects and splits.
        marks: Of each subject's scans, in the task's order.
        entries: Of the table; what each has seen.
    """
    checks = [check_subjects(task), check_exact(task, marks), check_near(task, marks)]
    for overlap in overlaps(entries):
        checks += overlap.checks(task, marks)
    return checks


def excused(checks: Iterable[Check], overrides: Sequence[AllowedLeak]) -> list[Check]:
    """The checks, those failed ones overridden that an override is about."""
    return [_excused(check, overrides) for check in checks]


def require_clean(checks: Iterable[Check], overrides: Sequence[AllowedLeak] = ()) -> list[Check]:
    """Stop at a hard hit; otherwise return the checks as they are to be stored.

    Raises:
        LeakageError: A check failed and nothing overrides it; the message counts them all and
            tells one.
    """
    known = excused(checks, overrides)
    failed = [check for check in known if check.status == "failed"]
    if failed:
        first = failed[0]
        model = f", model {first.model}" if first.model else ""
        raise LeakageError(
            f"leakage: {len(failed)} of {len(known)} checks failed, so nothing is scored; task "
            f"{first.task}{model}, {first.check}: {first.count} {first.detail}; {_way_out(first)}; "
            f"{FAILED} lists all"
        )
    return known


def unused(checks: Iterable[Check], overrides: Sequence[AllowedLeak]) -> list[AllowedLeak]:
    """Overrides that excuse nothing: the leak is mended, or a name is misspelt."""
    asked = list(checks)
    failing = [check for check in asked if check.status in ("failed", "overridden")]
    return [each for each in overrides if not any(each.excuses(check) for check in failing)]


def as_stored(checks: Sequence[Check]) -> dict[str, Any]:
    """For ``leakage.json``; ``passed`` when none failed and none had to be overridden."""
    return {
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
        "passed": all(check.status in ("passed", "unknown") for check in checks),
    }


def _way_out(check: Check) -> str:
    override = "name the check under allow_leaks with a reason"
    if check.check.startswith("near-duplicate"):
        return (
            f"mend the data, say near_duplicates: allowed in a card of look-alikes, or {override}"
        )
    return f"mend the data, or {override}"


def _excused(check: Check, overrides: Sequence[AllowedLeak]) -> Check:
    if check.status != "failed":
        return check
    for override in overrides:
        if override.excuses(check):
            return replace(check, status="overridden", reason=override.reason)
    return check
