"""A run's folder: is it new, half done or finished, and does it belong to this recipe?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from foundation.checkpoint import newest_checkpoint, read_state
from foundation.running.files import numbered
from recipes.load import Section
from shards.files import write_text
from shards.sealed import read_sealed, write_sealed

RECIPE, RUN, LOG, INCIDENTS = "recipe.yaml", "run.json", "log.jsonl", "incidents.json"
CHECKPOINTS, BACKBONE, PICTURES = "checkpoints", "backbone", "pictures"

# What may differ when a run goes on: where it says and keeps things, not what it computes.
_FREE = (
    "resume.",
    "log.",
    "health.",
    "checkpoint.",
    "out",
    "train.workers",
    "train.timeout_s",
    "reading.timeout_s",
    "reading.max_damaged",
    "reading.cache",
    "init.min_coverage",
    "safety.",
)
_MICRO_BATCH = "train.micro_batch"
_BY_DIGEST = ("shards", "init.weights")


class ResumeConfig(Section):
    """What to do with a run of this name that another recipe, or other shards, began."""

    if_changed: Literal["refuse", "restart"] = "refuse"
    allow_changes: tuple[str, ...] = Field(
        default=(),
        description="fields or sections that may differ when the run goes on, and shards",
    )


class RunError(ValueError):
    """A run's folder that this recipe must not write into."""


class RunState(NamedTuple):
    """Where a run stands."""

    finished: bool
    step: int
    """updates done"""
    checkpoint: Path | None
    """to go on from; None begins at the beginning"""
    group: int | None = None
    """scans that are compared with each other; None where the recipe decides anew"""


class Change(NamedTuple):
    """Of a run that another launch began."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        digest = "digest " if self.name in _BY_DIGEST else ""
        return f"{self.name} ({digest}{self.was} -> {self.now})"


def open_run(
    folder: Path,
    *,
    recipe: Section,
    shards_digest: str,
    begun: Mapping[str, Any] | None = None,
    resume: ResumeConfig,
    say: Callable[[str], None],
    result: str = BACKBONE,
    free: Sequence[str] = (),
) -> RunState:
    """Find out where the run stands, and begin it if it is new.

    Args:
        folder: ``runs/NAME``.
        recipe: Resolved.
        shards_digest: Of all the shards.
        begun: What the first weights are, with its ``digest``; None where they are drawn.
        resume: Whether a run of another recipe goes on, is moved aside to ``NAME.1`` and so on, or
            is refused.
        say: Told what is skipped, moved or changed.
        result: File or folder that is there once the run is finished.
        free: Further fields that may differ when the run goes on.

    Raises:
        RunError: The folder holds a run of another recipe, other shards or other first weights,
            and ``resume`` does not allow for it.
    """
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "shards_digest": shards_digest,
        **({"initialised_from": begun} if begun else {}),
    }
    if (folder / RUN).is_file():
        finished = (folder / result).exists()
        changes = list(_changes(read_run(folder), now=facts, free=(*_FREE, *free)))
        matter = [each for each in changes if not _is_allowed(each.name, resume.allow_changes)]
        if not matter:
            state = _standing(folder, finished=finished and not changes, say=say)
            if changes:
                _take_over(folder, changes, facts=facts, step=state.step, say=say, result=result)
                if any(each.name == _MICRO_BATCH for each in changes):
                    state = state._replace(group=None)
            return state
        told = "; ".join(str(each) for each in matter)
        if resume.if_changed == "refuse":
            names = ",".join(each.name for each in matter)
            raise RunError(
                f"{folder}: the run there differs in {told}; choose another name, go on all the "
                f"same with resume.allow_changes=[{names}], or set resume.if_changed=restart to "
                f"move it aside and begin anew"
            )
        aside = numbered(folder)
        folder.rename(aside)
        say(f"moved the run of another recipe to {aside} ({told})")
    elif (folder / result).exists() or (folder / CHECKPOINTS).exists():
        raise RunError(f"{folder}: has no {RUN}, so its run is unknown; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    _write_run(folder, facts)
    return RunState(finished=False, step=0, checkpoint=None)


def kept_group(folder: Path) -> int | None:
    """Scans that the run in this folder compares with each other, if there is one."""
    if not (folder / RUN).is_file():
        return None
    found: int | None = read_run(folder).get("comparison_group")
    return found


def keep_group(folder: Path, group: int) -> None:
    """Have it stay the same when the run goes on with another number of ranks."""
    _write_run(folder, {**read_run(folder), "comparison_group": group})


def read_run(folder: Path) -> dict[str, Any]:
    """What began the run: ``recipe``, ``shards_digest``, and what came to it since.

    Raises:
        RunError: ``run.json`` is not what was written.
    """
    facts = read_sealed(folder / RUN)
    if facts is None:
        raise RunError(
            f"{folder / RUN}: not what was written, so the run there is unknown; bring it back "
            f"from a backup, or choose another name"
        )
    return facts


def _standing(folder: Path, *, finished: bool, say: Callable[[str], None]) -> RunState:
    if finished:
        return RunState(finished=True, step=0, checkpoint=None)
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, say=say)
    step = read_state(checkpoint)["step"] if checkpoint else 0
    return RunState(finished=False, step=step, checkpoint=checkpoint, group=kept_group(folder))


def _take_over(
    folder: Path,
    changes: Sequence[Change],
    *,
    facts: Mapping[str, Any],
    step: int,
    say: Callable[[str], None],
    result: str,
) -> None:
    """Make the changed recipe the run's own, and write down since when.

    The result of a run that was finished moves aside: where there is one, a run is finished.
    """
    before = read_run(folder)
    if (folder / result).exists():
        aside = numbered(folder / result)
        (folder / result).rename(aside)
        say(f"moved the {result} of before to {aside}")
    entry = {"step": step, "fields": {each.name: [each.was, each.now] for each in changes}}
    entries = [*before.get("changes", []), entry]
    _write_run(folder, {**before, **facts, "changes": entries})
    say(f"goes on with changes from step {step}: {'; '.join(str(each) for each in changes)}")


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def _write_run(folder: Path, facts: dict[str, Any]) -> None:
    """``run.json``, with its own digest, and the recipe in it as ``recipe.yaml`` for people."""
    write_sealed(folder / RUN, facts)
    write_text(folder / RECIPE, yaml.safe_dump(facts["recipe"], sort_keys=False))


def _changes(
    before: Mapping[str, Any], *, now: Mapping[str, Any], free: tuple[str, ...]
) -> Iterator[Change]:
    """Whatever makes it another run."""
    if before["shards_digest"] != now["shards_digest"]:
        yield Change("shards", *(each["shards_digest"][:8] for each in (before, now)))
    was, now_is = (_digest_of_beginning(each) for each in (before, now))
    if was != now_is:
        yield Change("init.weights", was[:8], now_is[:8])
    old, new = (dict(_flat(each["recipe"])) for each in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(free):
            yield Change(name, old.get(name), new.get(name))


def _digest_of_beginning(facts: Mapping[str, Any]) -> str:
    found: str = facts.get("initialised_from", {}).get("digest", "none")
    return found


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
