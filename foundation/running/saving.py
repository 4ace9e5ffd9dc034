"""From an engine to a checkpoint and back, whatever stage spreads it over how many ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from foundation.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    Snapshot,
    read_moments,
    read_state,
    read_weights,
)
from foundation.running.moments import (
    gather_moments,
    gather_weights,
    num_applied,
    spread_moments,
)
from foundation.running.ranks import from_rank_zero


def save_checkpoint(
    writer: CheckpointWriter | None,
    *,
    engine: Any,
    step: int,
    state: Mapping[str, Any],
    recipe: str,
    background: bool,
) -> None:
    """Save what the engine is after ``step`` updates; a collective call.

    Args:
        writer: On rank 0, None elsewhere.
        engine: DeepSpeed's; its module's ``state_dict`` holds all that a method needs to go on.
        step: Updates done.
        state: JSON-like counters.
        recipe: YAML.
        background: Write while training goes on.

    Raises:
        CheckpointError: On rank 0, where this or the last one could not be written.
    """
    is_leader = writer is not None
    weights = gather_weights(engine, keep=is_leader)
    moments = gather_moments(engine, keep=is_leader)

    counted = {**state, "num_applied": num_applied(engine)}

    def write() -> None:
        assert writer is not None, "rank 0 has the writer"
        writer.write(Snapshot(step, weights, moments, counted, recipe), background=background)

    from_rank_zero(write)


def restore_weights(method: nn.Module, checkpoint: Path) -> None:
    """Give a method a checkpoint's weights, before an engine spreads them.

    Raises:
        CheckpointError: They are of another network.
    """
    try:
        method.load_state_dict(read_weights(checkpoint))
    except RuntimeError as error:
        told = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"{checkpoint}: its weights do not fit this recipe ({told[0].strip()}); a run cannot "
            f"go on with another network, or another set of heads"
        ) from None


def restore_optimiser(engine: Any, checkpoint: Path) -> None:
    """Give a fresh engine a checkpoint's averages; every rank calls it."""
    num_updates = read_state(checkpoint)["num_applied"]
    spread_moments(engine, read_moments(checkpoint), num_updates=num_updates)
