"""The networks of a recipe, loaded: its lines, and untrained twins of each architecture."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from evaluation.backbones.embedder import EmbedderError
from evaluation.backbones.entry import NAME, UNTRAINED, Entry, Loaded, Twin
from evaluation.backbones.lines import (
    ArtefactLine,
    FeaturesLine,
    FunctionLine,
    Line,
    MonaiLine,
    RandomLine,
    RunLine,
    TimmLine,
)
from evaluation.backbones.own import load_artefact, load_twin


def load_embedders(
    lines: Mapping[str, Line], *, random_seeds: Sequence[int], device: str
) -> dict[str, Entry]:
    """The recipe's backbones in its order, then untrained networks of each distinct architecture.

    Args:
        lines: By name, as ``evaluation.backbones.lines.BackboneLine`` parses them.
        random_seeds: One untrained network of each architecture for each of them.
        device: Where networks live, ``cpu`` or ``cuda:0``.

    Raises:
        EmbedderError: A backbone cannot be loaded; the message begins with its place in the recipe.
    """
    for name in lines:
        if not NAME.fullmatch(name):
            raise EmbedderError(
                f"backbones.{name}: a name is of lower-case letters, digits and _; files are named "
                "by it"
            )
    where = torch.device(device)
    found: dict[str, Loaded] = {}
    for name, line in lines.items():
        if not isinstance(line, RandomLine):
            with _place_in_recipe(name):
                found[name] = _load(name, line, where)
    entries: dict[str, Entry] = {}
    for name, line in lines.items():
        if isinstance(line, RandomLine):
            with _place_in_recipe(name):
                entries[name] = _like(line, found, where)
        else:
            entries[name] = found[name].entry
    for name, entry in _twins(found, random_seeds):
        if name in entries:
            raise EmbedderError(
                f"backbones.{name}: this name is that of an untrained network (random_init); "
                "choose another"
            )
        entries[name] = entry
    return entries


def _load(name: str, line: Line, device: torch.device) -> Loaded:
    """By the sort of line; the libraries each needs are imported with it."""
    if isinstance(line, ArtefactLine):
        return load_artefact(name, line, device=device)
    if isinstance(line, RunLine):
        from evaluation.backbones.checkpoints import load_run

        return load_run(name, line, device=device)
    if isinstance(line, TimmLine):
        from evaluation.backbones.slices import load_timm

        return load_timm(name, line, device=device)
    if isinstance(line, MonaiLine):
        from evaluation.backbones.monai3d import load_monai

        return load_monai(name, line, device=device)
    if isinstance(line, FunctionLine):
        from evaluation.backbones.functions import load_function

        return load_function(name, line, device=device)
    from evaluation.backbones.tables import load_table

    assert isinstance(line, FeaturesLine)
    return load_table(name, line)


def _like(line: RandomLine, found: Mapping[str, Loaded], device: torch.device) -> Entry:
    like, seed = line.random.like, line.random.seed
    if like not in found:
        if not Path(like).is_dir():
            names = ", ".join(found) or "none"
            raise EmbedderError(
                f"random.like: {like!r} is neither another line ({names}) nor a folder backbone/"
            )
        return _untrained([like], *load_twin(Path(like), device=device), seed=seed)
    loaded = found[like]
    if loaded.twin is None:
        raise EmbedderError(
            f"random.like: nobody knows how to make an untrained {like!r}; take a backbone of our "
            "own, of timm or of MONAI that has weights"
        )
    return _untrained([like], loaded.entry.architecture, loaded.twin, seed=seed)


def _twins(found: Mapping[str, Loaded], seeds: Sequence[int]) -> Iterator[tuple[str, Entry]]:
    alike: dict[str | None, list[str]] = {}
    for name, loaded in found.items():
        if loaded.twin is not None:
            alike.setdefault(loaded.entry.architecture, []).append(name)
    for architecture, names in alike.items():
        twin = found[names[0]].twin
        assert twin is not None
        for seed in seeds:
            entry = _untrained(names, architecture, twin, seed=seed)
            yield f"random_{names[0]}_{seed}", entry


def _untrained(names: Sequence[str], architecture: str | None, twin: Twin, *, seed: int) -> Entry:
    embedder = twin(seed)
    alike = " and ".join(names)
    return Entry(
        kind="floor",
        title=f"random initialisation of {alike}, seed {seed}",
        description=f"the architecture of {alike}, never trained",
        digest=embedder.digest,
        provenance={},
        seen=UNTRAINED,
        architecture=architecture,
        embedder=embedder,
    )


@contextmanager
def _place_in_recipe(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise EmbedderError(f"backbones.{name}: {error}") from error
