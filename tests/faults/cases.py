"""Which fault meets which job, and what is known of a history before and after."""

from typing import Any, NamedTuple


class Case(NamedTuple):
    """What is done to what."""

    fault: str
    job: str


# Each history takes the next of these: the first six need one process and two references.
CASES = (
    Case("kill", "mae"),
    Case("corrupt", "build"),
    Case("fill", "mae"),
    Case("signal", "build"),
    Case("tear", "mae"),
    Case("vanish", "build"),
    Case("cut", "mae2"),
    Case("kill", "build"),
    Case("corrupt", "mae"),
    Case("fill", "build"),
    Case("signal", "mae2"),
    Case("published", "mae"),
    Case("kill", "dino2"),
    Case("tear", "build"),
    Case("corrupt", "dino"),
    Case("freeze", "mae2"),
    Case("signal", "mae"),
    Case("kill", "parts"),
    Case("fill", "dino"),
    Case("published", "build"),
    Case("tear", "dino"),
    Case("corrupt", "parts"),
    Case("vanish", "mae"),
    Case("cut", "dino2"),
    Case("kill", "mae2"),
    Case("kill", "pool"),
    Case("signal", "pool"),
)


class Reference(NamedTuple):
    """An undisturbed history."""

    result: dict[str, Any]
    stages: list[str]
    """of each change of files"""
    times_s: list[float]
    files: list[str]
    """that are there at the end"""


class Verdict(NamedTuple):
    """What came of a history."""

    number: int
    fault: str
    job: str
    stage: str
    """in which the fault came; empty where the job was done before"""
    attempts: int
    said: list[str]
    """what was done, in order"""
    failure: str
    """why the end is not the undisturbed one; empty where it is"""


class Failure(Exception):
    """A history that does not end as it must."""
