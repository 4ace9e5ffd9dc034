"""Values that change over a run, as pure functions of the step."""

import math


def cosine(step: int, *, total: int, start: float, end: float, warmup: int = 0) -> float:
    """A linear warm-up from 0 to ``start``, then half a cosine to ``end``.

    Used for the learning rate (with warm-up), for weight decay and the teacher's momentum.

    Args:
        step: Updates done so far, from 0.
        total: Updates of the run; ``end`` is reached at the last one, ``total - 1``, and kept.
        start: Value after the warm-up.
        end: Last value.
        warmup: Updates of the warm-up; the first already has ``start / warmup``, as a step with
            value 0 would be lost.
    """
    if step < warmup:
        return start * (step + 1) / warmup
    last = total - 1 - warmup
    if step - warmup >= last:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * (step - warmup) / last)) / 2


def linear(step: int, *, total: int, start: float, end: float) -> float:
    """A straight line from ``start`` at step 0 to ``end`` at step ``total - 1``, kept after it."""
    if step >= total - 1:
        return end
    return start + (end - start) * step / (total - 1)
