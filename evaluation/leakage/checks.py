"""A question about leakage and its answer, and the names of all the questions."""

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["passed", "failed", "unknown", "overridden"]
Question = Literal[
    "subject in two splits",
    "duplicate scan",
    "near-duplicate scan",
    "scored subject in pretraining",
    "scored scan in pretraining",
    "near-duplicate scan in pretraining",
    "training subject in pretraining",
    "scored subject in fine-tuning",
    "features fitted outside training",
    "held-out features reach the fit",
    "held-out labels reach the fit",
]
QUESTIONS: tuple[Question, ...] = get_args(Question)


@dataclass(frozen=True)
class Check:
    """One question that was asked, and its answer.

    Attributes:
        task: Its name.
        check: Which question.
        model: The model it is about, or None.
        status: ``failed`` stops the run. ``unknown`` is no proof of anything: the reason says what
            was not to be had. ``overridden`` failed and goes on, marked, for the reason given.
        count: Subjects, scans, features or protocols that were found.
        detail: In words.
        reason: Of ``unknown`` and ``overridden``, else empty.
    """

    task: str
    check: Question
    model: str | None
    status: Status
    count: int
    detail: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the question was answered, and the answer is no."""
        return self.status == "passed"


def hits(
    task: str, check: Question, model: str | None, *, count: int, detail: str, excuse: str = ""
) -> Check:
    """A check that fails when anything was found, or is overridden by an excuse."""
    if not count:
        return Check(task, check, model, "passed", 0, detail)
    return Check(task, check, model, "overridden" if excuse else "failed", count, detail, excuse)
