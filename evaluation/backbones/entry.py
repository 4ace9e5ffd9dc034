"""A row of the table: what it is, what it has seen, and how it embeds where it has a network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from evaluation.backbones.embedder import Embedder

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
"""What a recipe may call a row."""
SEEN = ("subjects", "source_digests", "perceptual_hashes")
"""What a backbone tells of its pretraining, for the leakage gate."""
UNTRAINED: dict[str, list[str]] = {key: [] for key in SEEN}
"""Of a network that has seen nothing."""

Twin = Callable[[int], Embedder]
"""An untrained network of the same architecture, from a seed."""


@dataclass(frozen=True)
class Entry:
    """A backbone, an untrained one, which is a floor, or a fine-tuning; whatever the task.

    Attributes:
        kind: ``backbone``, ``trained`` or ``floor``.
        title: For people.
        description: In one sentence.
        digest: Of what makes its features.
        provenance: How it came to be, without what it has seen.
        seen: Lists by the names of ``SEEN``, those that are known; None where nothing is, as for a
            foreign backbone whose pretraining data is undisclosed.
        architecture: Digest of the network's shape and preprocessing, the same for its untrained
            twins; None where it cannot be told.
        embedder: What turns a scan into features; None for floors without a network, and for what
            was trained on labels, which gives scores at once.
    """

    kind: str
    title: str
    description: str
    digest: str
    provenance: dict[str, Any]
    seen: dict[str, list[str]] | None
    architecture: str | None
    embedder: Embedder | None


class Loaded(NamedTuple):
    """A line of a recipe, loaded."""

    entry: Entry
    twin: Twin | None
    """None where nobody knows how to make an untrained one"""
