"""What every foreign backbone is to the table: its row, and what it may have seen."""

from typing import Any

from evaluation.backbones.embedder import Embedder
from evaluation.backbones.entry import UNTRAINED, Entry, Loaded, Twin
from evaluation.backbones.lines import ForeignLine
from recipes.load import digest


def foreign(
    name: str,
    line: ForeignLine,
    embedder: Embedder,
    *,
    what: str,
    is_trained: bool,
    provenance: dict[str, Any],
    twin: Twin | None = None,
) -> Loaded:
    """A foreign backbone, or a network of a foreign architecture that was never trained.

    Args:
        name: Of its line.
        line: Says what it has seen, if anybody knows.
        embedder: Loaded.
        what: The network in words.
        is_trained: False makes it a floor.
        provenance: What is known of it.
        twin: Makes untrained ones.
    """
    entry = Entry(
        kind="backbone" if is_trained else "floor",
        title=name,
        description=f"{what}, {'frozen' if is_trained else 'never trained'}",
        digest=embedder.digest,
        provenance={**provenance, "licence": line.licence},
        seen=_seen(line) if is_trained else UNTRAINED,
        architecture=digest({**line.model_dump(mode="json"), **_NOT_ITS_SHAPE}),
        embedder=embedder,
    )
    return Loaded(entry, twin if is_trained else None)


_NOT_ITS_SHAPE: dict[str, None] = {"licence": None, "sees": None, "seed": None, "weights": None}


def _seen(line: ForeignLine) -> dict[str, list[str]] | None:
    if line.sees is None:
        return None
    # Reading shards needs libraries that evaluation does without.
    from foundation.running.provenance import seen_in
    from shards.streaming.reader import ShardReader

    return seen_in([ShardReader(folder) for folder in line.sees])
