"""The kinds of rows in a table, in its order, and the protocol of a network trained on labels."""

BACKBONE, TRAINED, FLOOR = "backbone", "trained", "floor"
"""Frozen; trained on the task's own labels; what a backbone must beat."""
KINDS = (BACKBONE, TRAINED, FLOOR)

FINE_TUNED = "fine_tuned"
"""The protocol of a trained row: the network is applied as it is, nothing is learnt on top."""
SCRATCH = "scratch"
"""What a training has begun from when it was no backbone: its row is the supervised ceiling."""


def place_of(kind: str) -> int:
    """Where rows of a kind stand in a table, from 0."""
    return KINDS.index(kind)
