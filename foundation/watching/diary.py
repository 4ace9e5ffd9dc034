"""What one update leaves behind: a line of the log, a step of the progress bar."""

import contextlib
import resource
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from foundation.log import Progress, RunLog
from foundation.objective.collectives import num_ranks
from foundation.watching.alarms import Alarm, Alarms
from foundation.watching.communication import timing_collectives
from foundation.watching.finite import MicroBatch
from foundation.watching.heartbeat import Heartbeat
from foundation.watching.stopwatch import Stopwatch
from foundation.watching.stragglers import (
    BESIDE,
    STRETCHES,
    Straggler,
    compact,
    find_straggler,
    gather_times,
    with_communication,
)

_SAID_SHARE = 0.25


class Diary:
    """Times every rank's steps; rank 0, which has the log, also writes them down.

    Within its ``with`` it also times the collective calls, and the method's preparation of a batch
    apart from the rest of the forward pass. The loop says by :meth:`begin` what it goes on with.

    Attributes:
        watch: Told by the loop what each stretch of time was for.
    """

    def __init__(
        self,
        log: RunLog | None,
        *,
        alarms: Alarms,
        device: torch.device,
        start: int,
        total: int,
        every_steps: int,
        global_batch: int,
        tokens_per_scan: int,
        heartbeat: Heartbeat | None = None,
        prepare: nn.Module | None = None,
    ) -> None:
        """Begin after ``start`` of ``total`` updates; a line every ``every_steps``.

        ``alarms`` has seen the lines that are there. ``heartbeat`` is told what the loop does.
        ``prepare`` is the part of the method that makes its views of a batch.
        """
        self.watch = Stopwatch(device)
        self._log = log
        self._alarms = alarms
        self._device = device
        self._total = total
        self._every_steps = every_steps
        self._global_batch = global_batch
        self._tokens_per_scan = tokens_per_scan
        self._heartbeat = heartbeat
        self._prepare = prepare
        self._step, self._doing = start, "wait"
        self._updates = 0
        self._note = ""
        self._open = contextlib.ExitStack()
        self._progress = (
            Progress(start=start, total=total, scans_per_step=global_batch) if log else None
        )

    def __enter__(self) -> "Diary":
        self._open.enter_context(timing_collectives(self.watch, heartbeat=self._heartbeat))
        if self._prepare is not None:
            before = self._prepare.register_forward_pre_hook(lambda *_: self._go_on("augment"))
            after = self._prepare.register_forward_hook(lambda *_: self._go_on("forward"))
            for hook in (before, after):
                self._open.callback(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        self.close()

    def begin(self, doing: str, *, step: int) -> None:
        """Count the time up to now as what was done before; it goes on with ``doing``.

        Every rank calls this as often, with a name of ``stragglers.STRETCHES``; the first stretch
        of all is ``wait``.
        """
        assert doing in STRETCHES, doing
        self._step = step
        self._go_on(doing)

    def enter(
        self,
        done: int,
        *,
        means: Mapping[str, float],
        norm: float,
        group: Mapping[str, float],
        seen: Sequence[MicroBatch],
        epochs: Mapping[str, float],
    ) -> list[Alarm]:
        """Note an update; every rank calls it, and where a line is due they tell their seconds.

        Args:
            done: Updates done, this one included.
            means: Of the metrics, over all ranks, and of the pinned scans where those were looked
                at.
            norm: Of the gradient, before clipping.
            group: The optimiser's first parameter group.
            seen: The update's micro batches on this rank.
            epochs: Passes over each source of the shards so far.

        Returns:
            What the line gives alarm for, said and written down; on rank 0.
        """
        self.watch.add("read", sum(micro.read_s for micro in seen))
        self._updates += 1
        due = self.is_due(done)
        timing = self._timing() if due else {}
        if self._log is None or self._progress is None:
            return []
        values = {"loss": means["loss"], "lr": group["lr"]}
        self._progress.show(done, values, note=self._note)
        if not due:
            return []
        line = {
            "step": done,
            **means,
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "grad_norm": norm,
            "scans": done * self._global_batch,
            "epochs": {name: round(passes, 4) for name, passes in epochs.items()},
            **timing,
            "memory_bytes": peak_memory_bytes(self._device),
        }
        self._log.write(line)
        alarms = self._alarms.see(line)
        for alarm in alarms:
            self._log.write(alarm.line)
            tqdm.write(f"alarm: {alarm}", file=sys.stderr)
        return alarms

    def is_due(self, done: int) -> bool:
        """Whether a line is written after ``done`` updates; the same on every rank."""
        return done % self._every_steps == 0 or done == self._total

    def close(self) -> None:
        """End the progress bar."""
        if self._progress is not None:
            self._progress.close()

    def _go_on(self, doing: str) -> None:
        self.watch.lap(self._doing)
        self._doing = doing
        if self._heartbeat is not None:
            self._heartbeat.beat(self._step, doing)

    def _timing(self) -> dict[str, Any]:
        """Of the updates since the last line; a collective call."""
        times = self.watch.take()
        ranks = gather_times(times)
        seconds = with_communication(times)
        elapsed = sum(seconds[name] for name in seconds if name not in BESIDE)
        scans_per_s = self._updates * self._global_batch / elapsed
        self._updates = 0
        timing = {
            "scans_per_s": round(scans_per_s, 3),
            "tokens_per_s": round(scans_per_s * self._tokens_per_scan, 1),
            "seconds": seconds,
        }
        if num_ranks() == 1:
            return timing
        straggler = find_straggler(ranks)
        self._note = _told(straggler)
        found = None if straggler is None else straggler._asdict()
        return {**timing, "ranks": compact(ranks), "straggler": found}


def peak_memory_bytes(device: torch.device) -> int:
    """The most this process has held: of the GPU's memory, or of the machine's without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _told(straggler: Straggler | None) -> str:
    """For the console, where it is worth a word there."""
    if straggler is None or straggler.share <= _SAID_SHARE:
        return ""
    return f"rank {straggler.rank} is {straggler.share:.0%} behind in {straggler.stretch}"
