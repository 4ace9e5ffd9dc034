"""Looks at every update for trouble, writes it down, and says whether the run must go back."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from foundation.checkpoint import CheckpointWriter, forget_after, newest_checkpoint, read_state
from foundation.log import RunLog
from foundation.running.ranks import from_rank_zero, stop_all
from foundation.running.runs import CHECKPOINTS, INCIDENTS
from foundation.safety import (
    Incident,
    Kind,
    Ladder,
    SafetyConfig,
    Spikes,
    not_finite,
    read_incidents,
    write_incidents,
)
from foundation.watching.alarms import NO_COLLAPSE, Alarm, Unhealthy
from foundation.watching.finite import MicroBatch, samples_of_ranks


class NotFinite(ValueError):
    """A run that meets too many numbers that are none; its last checkpoint is kept."""


class Update(NamedTuple):
    """What one update has shown, the same on every rank but for ``seen``."""

    done: int
    """updates done, this one included"""
    loss: float
    norm: float
    """of the gradient; not finite where no weight was changed"""
    alarms: Sequence[Alarm]
    seen: Sequence[MicroBatch]
    """on this rank"""

    @property
    def applied(self) -> bool:
        """Whether the weights have moved."""
        return not_finite(self.loss, self.norm) is None


class Guard:
    """Keeps a run's incidents; every rank has one, and all decide alike.

    Attributes:
        ladder: What the incidents ask for.
        spikes: Of the loss.
    """

    def __init__(
        self,
        config: SafetyConfig,
        *,
        folder: Path,
        step: int,
        recent_losses: Sequence[float],
        rolls_back_on_collapse: bool,
        writer: CheckpointWriter | None,
        log: RunLog | None,
    ) -> None:
        """Go on after ``step`` updates.

        Args:
            config: Limits.
            folder: Of the run.
            step: Updates done.
            recent_losses: That a checkpoint kept.
            rolls_back_on_collapse: Whether alarms count.
            writer: Of checkpoints, on rank 0.
            log: On rank 0.
        """
        self._config = config
        self._folder = folder
        self._rolls_back_on_collapse = rolls_back_on_collapse
        self._writer = writer
        self._log = log
        self.ladder = Ladder(config, read_incidents(folder / INCIDENTS, up_to=step))
        self.spikes = Spikes(config.spike_deviations, recent_losses)

    def after(self, update: Update) -> int | None:
        """Judge an update; a collective call where there is trouble.

        Returns:
            The updates of the checkpoint to go back to; None goes on.

        Raises:
            NotFinite, Unhealthy: On rank 0, where the recipe's limits are used up.
        """
        kind, since = self._trouble(update)
        if kind is None:
            return None
        too_many = self.ladder.note(Incident(update.done, kind))
        told = self._write_down(update, kind)
        if kind != "collapse" and not too_many:
            return None
        return self._way_back(update, kind, since=since, told=told)

    def _trouble(self, update: Update) -> tuple[Kind | None, int]:
        """What is wrong, and since how many updates."""
        wrong = not_finite(update.loss, update.norm)
        if wrong is not None:
            return wrong, update.done
        if self.spikes.see(update.loss):
            return "spike", update.done
        lost = [each for each in update.alarms if each.name not in NO_COLLAPSE]
        if lost and self._rolls_back_on_collapse:
            return "collapse", update.done - max(each.for_steps for each in lost)
        return None, update.done

    def _write_down(self, update: Update, kind: Kind) -> str:
        """Into ``incidents.json``, the log and onto the console; the sentence, for an error."""
        samples = samples_of_ranks(update.seen, only_bad=kind == "loss")
        told = _sentence(update, kind, samples)
        if self._log is not None:
            write_incidents(self._folder / INCIDENTS, self.ladder.incidents)
            self._log.write(
                {
                    "step": update.done,
                    "incident": kind,
                    "loss": repr(update.loss),
                    "grad_norm": repr(update.norm),
                    "applied": update.applied,
                    "lr_scale": self.ladder.lr_scale(update.done),
                    "samples": samples,
                }
            )
            tqdm.write(f"incident: {told}", file=sys.stderr)
        return told

    def _way_back(self, update: Update, kind: Kind, *, since: int, told: str) -> int | None:
        step = from_rank_zero(lambda: self._find_way_back(before=since))
        if step is None and kind == "collapse" and self.ladder.may_roll_back():
            return None  # as told by the alarm: there is nothing better to go on from
        if step is None or not self.ladder.may_roll_back():
            stop_all(self._end(kind, told=told, has_way_back=step is not None))
        self.ladder.roll_back(at=update.done, to=step)
        from_rank_zero(lambda: self._note_return(update.done, to=step))
        return step

    def _find_way_back(self, *, before: int) -> int | None:
        assert self._writer is not None, "rank 0 has the writer"
        self._writer.wait()
        path = newest_checkpoint(
            self._folder / CHECKPOINTS,
            say=lambda text: tqdm.write(text, file=sys.stderr),
            healthy_before=self.ladder.before(before),
        )
        return None if path is None else int(read_state(path)["step"])

    def _note_return(self, done: int, *, to: int) -> None:
        assert self._log is not None, "rank 0 keeps the log"
        write_incidents(self._folder / INCIDENTS, self.ladder.incidents)
        forget_after(self._folder / CHECKPOINTS, to)
        self._log.rewind(to)
        line = {"step": to, "incident": "rollback", "from": done, "passed": self.ladder.passed}
        self._log.write({**line, "lr_scale": self.ladder.lr_scale(to)})
        tqdm.write(
            f"incident: back from step {done} to {to}; the scans seen since are passed over, and "
            f"the learning rate is {self.ladder.lr_scale(to):g} of the recipe's for a while",
            file=sys.stderr,
        )

    def _end(self, kind: Kind, *, told: str, has_way_back: bool) -> ValueError:
        limit = self._config.max_rollbacks
        why = (
            f"it has been rolled back {self.ladder.num_rollbacks} times, and safety.max_rollbacks "
            f"is {limit}"
            if has_way_back or self.ladder.num_rollbacks >= limit
            else "there is no healthy checkpoint to go back to"
        )
        error = Unhealthy if kind == "collapse" else NotFinite
        return error(
            f"{told}; {why}; the last checkpoint is kept: lower the learning rate, clip, or leave "
            f"these scans out"
        )


def _sentence(update: Update, kind: Kind, samples: Sequence[Mapping[str, object]]) -> str:
    where = f"after {update.done} steps"
    if kind == "loss":
        each = "; ".join(
            f"on rank {one['rank']} {one['loss']} for {', '.join(map(str, _scans(one)))}"
            for one in samples
        )
        return f"{where} the loss is not finite ({each}); no weight was changed"
    if kind == "gradient":
        return f"{where} the gradient is not finite though the loss is; no weight was changed"
    if kind == "spike":
        return f"{where} the loss has jumped to {update.loss:.4g}"
    return f"{where} the features collapse ({', '.join(each.name for each in update.alarms)})"


def _scans(sample: Mapping[str, object]) -> list[str]:
    scans = sample["scans"]
    assert isinstance(scans, list)
    return scans
