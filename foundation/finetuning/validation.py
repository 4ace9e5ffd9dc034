"""Looks at the validation subjects while a network is tuned, keeps the best weights, and ends it.

The best weights lie in ``best/step-000120.safetensors`` before a checkpoint tells of them, and stay
until no checkpoint does: a run that goes on from any of them finds what was best by then.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foundation.checkpoint import CheckpointError, read_state, step_name
from foundation.finetuning.data import LabelledScans
from foundation.finetuning.method import Finetune
from foundation.finetuning.parts import Part
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.scoring import Scored, score_rows
from foundation.metrics.by_name import METRICS
from foundation.metrics.quality import measures
from foundation.running.ranks import Ranks, from_rank_zero
from foundation.running.runs import CHECKPOINTS

BEST, KEPT = "best", "validation"


@dataclass(frozen=True)
class Standing:
    """What validation has come to.

    Attributes:
        best: Of the monitor, larger is better; None before any look found one.
        best_step: Updates done when it was found.
        since: Looks since then.
    """

    best: float | None = None
    best_step: int = 0
    since: int = 0


class Validation:
    """One run's looks.

    Attributes:
        standing: So far.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        part: Part,
        method: Finetune,
        scans: LabelledScans,
        ranks: Ranks,
        checkpoint: Path | None,
        alive: Callable[[int], None],
    ) -> None:
        """Go on from what a checkpoint holds; None begins.

        Weights that went into the model of a finished run are not to be had again: one that goes
        on all the same looks for its best anew. ``alive`` is told the updates done after each scan.
        """
        self._config = config
        self._part = part
        self._method = method
        self._scans = scans
        self._ranks = ranks
        self._alive = alive
        self.standing = from_rank_zero(lambda: _standing_with_weights(checkpoint, run=part.folder))
        self._told = self.standing  # by the checkpoint that may still be on its way to the disk

    @property
    def is_over(self) -> bool:
        """So many looks have found nothing better as the recipe has patience for."""
        patience = self._config.validation.patience
        return patience is not None and self.standing.since >= patience

    def kept(self) -> Mapping[str, Any]:
        """For the checkpoint of now."""
        self._told = self.standing
        return {KEPT: asdict(self.standing)}

    def after(self, done: int) -> dict[str, float]:
        """The loss and the primary metric, where a checkpoint is due; a collective call."""
        last = done == self._config.train.steps
        if done % self._config.checkpoint.every_steps and not last:
            return {}
        scored = self.look(done)
        metric = self._part.task.card.metric
        label = self._part.task.label[self._part.val]
        value = float(measures(label, scored.scores[None], metric)[0])
        self._weigh(done, scored.loss, value)
        found = {"val_loss": scored.loss}
        return found | ({f"val_{metric}": value} if np.isfinite(value) else {})

    def look(self, done: int) -> Scored:
        """The validation subjects by the weights of now; a collective call."""
        return score_rows(
            self._method,
            self._part.task,
            self._part.val,
            scans=self._scans,
            ranks=self._ranks,
            precision=self._config.deepspeed.precision,
            overlapping=self._config.decoder.overlap,
            alive=lambda: self._alive(done),
        )

    def _weigh(self, done: int, loss: float, value: float) -> None:
        found = quality(loss, value, self._config, metric=self._part.task.card.metric)
        is_better = np.isfinite(found) and (
            self.standing.best is None or found > self.standing.best
        )
        if is_better:
            self.standing = Standing(found, done, 0)
        else:
            self.standing = replace(self.standing, since=self.standing.since + 1)
        from_rank_zero(lambda: self._keep(done, is_better=bool(is_better)))

    def _keep(self, done: int, *, is_better: bool) -> None:
        folder = self._part.folder / BEST
        if is_better:
            write_weights(self._method, best_path(self._part.folder, done))
        told = {self.standing.best_step, self._told.best_step}
        told.update(_best_of(self._part.folder / CHECKPOINTS))
        for path in folder.glob("step-*.safetensors"):
            if int(path.stem.removeprefix("step-")) not in told:
                path.unlink()


def quality(loss: float, value: float, config: FinetuneConfig, *, metric: str) -> float:
    """What is monitored, larger is better; rounded, so that a tie is one on any machine."""
    if config.validation.monitor == "loss":
        return round(-loss, 9)
    return round(-value if METRICS[metric].lower_is_better else value, 9)


def standing_of(checkpoint: Path | None) -> Standing:
    """What a checkpoint tells of validation."""
    if checkpoint is None:
        return Standing()
    kept = read_state(checkpoint).get(KEPT)
    return Standing(**kept) if kept else Standing()


def _standing_with_weights(checkpoint: Path | None, *, run: Path) -> Standing:
    found = standing_of(checkpoint)
    return found if best_path(run, found.best_step).is_file() else Standing()


def best_path(run: Path, step: int) -> Path:
    """The weights that were best after so many updates."""
    return run / BEST / f"{step_name(step)}.safetensors"


def write_weights(method: Finetune, path: Path) -> None:
    """The method's weights, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    weights = {name: each.detach().cpu().contiguous() for name, each in method.state_dict().items()}
    save_file(weights, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def restore_best(method: Finetune, path: Path) -> None:
    """Give a method the best weights.

    Raises:
        CheckpointError: They are not there, or of another network.
    """
    try:
        method.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the best weights cannot be read ({str(error).splitlines()[0]}); delete the "
            "run's folder to train again"
        ) from None


def _best_of(checkpoints: Path) -> list[int]:
    """The best steps that checkpoints tell of; one that is just being removed tells of none."""
    found = []
    for path in checkpoints.glob("step-*"):
        with suppress(OSError, ValueError):
            found.append(standing_of(path).best_step)
    return found
