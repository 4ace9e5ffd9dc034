"""The lines of a recipe's ``finetuned:``, each a fine-tuning whose parts are rows of their tasks.

finetuned:
  mae_tuned: runs/finetune_mae
  scratch: runs/finetune_scratch
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.backbones.entry import NAME, SEEN, Entry
from evaluation.finetuned.parts import FinetunedError, Part, read_parts
from evaluation.statistics.kinds import FINE_TUNED, TRAINED
from foundation.tasks.task import Task
from recipes.load import digest

TaskParts = dict[str, list[Part]]
"""Parts of one task by line, the largest share first."""


@dataclass(frozen=True)
class Line:
    """One fine-tuning.

    Attributes:
        parts: Of the evaluation's tasks.
        source: The backbone of the evaluation that it began from, if it is one.
        entry: Its row in the tables.
    """

    parts: tuple[Part, ...]
    source: Entry | None
    entry: Entry

    def of(self, task: Task) -> list[Part]:
        """Those that have scores of subjects of the task."""
        own = [part for part in self.parts if part.task == task.card.name]
        return [part for part in own if not _lacks_scores(part, task)]

    def entry_of(self, task: Task) -> Entry:
        """Its row, with what its networks of this task have seen in pretraining."""
        seen = self.source.seen if self.source else _all_seen(self.of(task))
        return replace(self.entry, seen=seen)

    def why_left_out(self, task: Task) -> str:
        """Why it has no row in the table of a task; empty where it has one."""
        own = [part for part in self.parts if part.task == task.card.name]
        if any(part.is_whole for part in self.of(task)):
            return ""
        if any(part.is_whole for part in own):
            return "trained without folds, so that nobody was held out"
        if own:
            shares = ", ".join(f"{100 * part.fraction:g}%" for part in own)
            return f"trained on {shares} of the training subjects only, not on all of them"
        if task.card.kind == "retrieval":
            return "nothing is trained for a retrieval"
        return "this fine-tuning has no finished part for this task"


@dataclass(frozen=True)
class Lines:
    """All fine-tunings of a recipe, by name."""

    by_name: dict[str, Line]

    @property
    def entries(self) -> dict[str, Entry]:
        """Of each its row in the tables."""
        return {name: line.entry for name, line in self.by_name.items()}

    def of(self, task: Task) -> TaskParts:
        """The parts of a task, of the lines that have any."""
        return {name: own for name, line in self.by_name.items() if (own := line.of(task))}

    def entries_of(self, task: Task) -> dict[str, Entry]:
        """The rows of the lines that have parts of a task."""
        return {name: self.by_name[name].entry_of(task) for name in self.of(task)}

    def skipped(self, task: Task) -> list[dict[str, Any]]:
        """Lines without a row in the table of a task, with the reason."""
        return [
            {"task": task.card.name, "model": name, "protocol": FINE_TUNED, "reason": reason}
            for name, line in self.by_name.items()
            if (reason := line.why_left_out(task))
        ]


def load_lines(
    folders: Mapping[str, Path], tasks: Sequence[Task], *, backbones: Mapping[str, Entry]
) -> Lines:
    """Read every line, and keep its parts of these tasks.

    Args:
        folders: By name of the line.
        tasks: Of the evaluation.
        backbones: Of the evaluation: a line that began from one of them is called after it, and has
            seen what it has.

    Raises:
        FinetunedError: A folder holds no part, or one that was trained for another version of a
            task; the message begins with its place in the recipe.
    """
    lines: dict[str, Line] = {}
    for name, folder in folders.items():
        with _place_in_recipe(name):
            if not NAME.fullmatch(name):
                raise FinetunedError(
                    "a name is of lower-case letters, digits and _; files are named by it"
                )
            line = _line(folder, tasks, backbones)
        if line.entry.title in [other.entry.title for other in lines.values()]:
            title = f"{line.entry.title} ({name})"
            line = replace(line, entry=replace(line.entry, title=title))
        lines[name] = line
    return Lines(lines)


def _line(folder: Path, tasks: Sequence[Task], backbones: Mapping[str, Entry]) -> Line:
    found = read_parts(folder)
    versions = {task.card.name: task.digest for task in tasks}
    used = tuple(part for part in found if part.task in versions)
    for part in used:
        if part.task_digest != versions[part.task]:
            raise FinetunedError(
                f"{part.folder}: was trained for another version of task {part.task} "
                f"({part.task_digest[:12]}, now {versions[part.task][:12]}): its card or its "
                "cohort's table has changed; fine-tune again, or take the line out"
            )
    alike = [entry for entry in backbones.values() if entry.digest == found[0].begun_digest]
    source = alike[0] if alike else None
    return Line(used, source, _entry(found[0], used, source=source))


def _lacks_scores(part: Part, task: Task) -> bool:
    """Whether it was trained on everybody and has held nobody out."""
    return task.card.protocol.repeated_cv is not None and part.folds == ()


def _entry(first: Part, parts: Sequence[Part], *, source: Entry | None) -> Entry:
    begun = source.title if source else _short(first.begun)
    title, description = f"fine-tuned {begun}", f"begun from {begun}, trained on the task's labels"
    if first.is_scratch:
        title = "supervised from scratch"
        description = "a network that was never pretrained, trained on the task's labels"
    tuned = list(dict.fromkeys(part.tune for part in parts or [first]))
    finished = max((part.finished for part in parts if part.finished), default=None)
    provenance = {"initialised_from": {"name": begun}, "tune": ", ".join(tuned)}
    return Entry(
        kind=TRAINED,
        title=title,
        description=description,
        digest=digest([part.digest for part in parts]),
        provenance=provenance | ({"finished": finished} if finished else {}),
        seen=source.seen if source else _all_seen(parts),
        architecture=None,
        embedder=None,
    )


def _short(begun: str) -> str:
    """``demo_mae`` of ``runs/demo_mae/backbone``: a path would be of a machine."""
    path = Path(begun)
    return path.parent.name if path.name == "backbone" and path.parent.name else path.name


def _all_seen(parts: Sequence[Part]) -> dict[str, list[str]] | None:
    """What pretraining has seen, by all that parts tell; what one of them leaves open is open."""
    told = [part.seen for part in parts if part.seen is not None]
    if len(told) < len(parts):
        return None
    return {
        key: sorted(set().union(*(each[key] for each in told)))
        for key in SEEN
        if all(key in each for each in told)
    }


@contextmanager
def _place_in_recipe(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise FinetunedError(f"finetuned.{name}: {error}") from error
