"""A run's folder: is it new, half done or finished, and does it belong to this recipe?"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from foundation.checkpoint import newest_checkpoint, read_state
from foundation.running.files import numbered
from recipes.load import Section, to_yaml
from shards.files import write_json, write_text

RECIPE, RUN, LOG = "recipe.yaml", "run.json", "log.jsonl"
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
)


class ResumeConfig(Section):
    """What to do with a run of this name that another recipe, or other shards, began."""

    if_changed: Literal["refuse", "restart"] = "refuse"


class RunError(ValueError):
    """A run's folder that this recipe must not write into."""


class RunState(NamedTuple):
    """Where a run stands."""

    finished: bool
    step: int
    """updates done"""
    checkpoint: Path | None
    """to go on from; None begins at the beginning"""


def open_run(
    folder: Path,
    *,
    recipe: Section,
    shards_digest: str,
    world_size: int,
    begun: Mapping[str, Any] | None = None,
    if_changed: Literal["refuse", "restart"],
    say: Callable[[str], None],
) -> RunState:
    """Find out where the run stands, and begin it if it is new.

    Args:
        folder: ``runs/NAME``.
        recipe: Resolved.
        shards_digest: Of all the shards.
        world_size: Ranks of this launch.
        begun: What the first weights are, with its ``digest``; None where they are drawn.
        if_changed: ``restart`` moves a run of another recipe aside, to ``NAME.1`` and so on.
        say: Told what is skipped or moved.

    Raises:
        RunError: The folder holds a run of another recipe, other shards, other first weights or
            another number of ranks, and ``if_changed`` is ``refuse``.
    """
    facts = {
        "shards_digest": shards_digest,
        "world_size": world_size,
        **({"initialised_from": begun} if begun else {}),
    }
    if (folder / RUN).is_file():
        finished = (folder / BACKBONE).is_dir()
        changes = list(_changes(folder, recipe=recipe, facts=facts, finished=finished))
        if not changes:
            return _standing(folder, finished=finished, say=say)
        if if_changed == "refuse":
            raise RunError(
                f"{folder}: the run there differs in {'; '.join(changes)}; choose another name, or "
                f"set resume.if_changed=restart to move it aside and begin anew"
            )
        aside = numbered(folder)
        folder.rename(aside)
        say(f"moved the run of another recipe to {aside} ({'; '.join(changes)})")
    elif (folder / BACKBONE).exists() or (folder / CHECKPOINTS).exists():
        raise RunError(f"{folder}: has no {RUN}, so its run is unknown; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECIPE, to_yaml(recipe))
    write_json(folder / RUN, facts)
    return RunState(finished=False, step=0, checkpoint=None)


def _standing(folder: Path, *, finished: bool, say: Callable[[str], None]) -> RunState:
    if finished:
        return RunState(finished=True, step=0, checkpoint=None)
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, say=say)
    step = read_state(checkpoint)["step"] if checkpoint else 0
    return RunState(finished=False, step=step, checkpoint=checkpoint)


def _changes(
    folder: Path, *, recipe: Section, facts: Mapping[str, Any], finished: bool
) -> Iterator[str]:
    """``field (was -> is)`` for whatever makes it another run."""
    before, now = json.loads((folder / RUN).read_text()), dict(facts)
    if before["shards_digest"] != now["shards_digest"]:
        yield f"shards (digest {before['shards_digest'][:8]} -> {now['shards_digest'][:8]})"
    was, now_is = (_digest_of_beginning(each) for each in (before, now))
    if was != now_is:
        yield f"content of init.weights (digest {was[:8]} -> {now_is[:8]})"
    if before["world_size"] != now["world_size"] and not finished:
        yield f"number of ranks ({before['world_size']} -> {now['world_size']})"
    old = dict(_flat(yaml.safe_load((folder / RECIPE).read_text())))
    new = dict(_flat(recipe.model_dump(mode="json")))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(_FREE):
            yield f"{name} ({old.get(name)} -> {new.get(name)})"


def _digest_of_beginning(facts: Mapping[str, Any]) -> str:
    found: str = facts.get("initialised_from", {}).get("digest", "none")
    return found


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
