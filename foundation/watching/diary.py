"""What one update leaves behind: a line of the log, a step of the progress bar."""

import resource
import sys
from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm

from foundation.log import Progress, RunLog, Stopwatch
from foundation.watching.alarms import Alarm, Alarms
from foundation.watching.finite import MicroBatch

BESIDE = ("read", "decode")
"""Stretches that pass while a worker reads, beside those of the loop, or within its wait."""


class Diary:
    """Times every rank's steps; rank 0, which has the log, also writes them down.

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
    ) -> None:
        """Begin after ``start`` of ``total`` updates; a line every ``every_steps``.

        ``alarms`` has seen the lines that are there.
        """
        self.watch = Stopwatch(device)
        self._log = log
        self._alarms = alarms
        self._device = device
        self._total = total
        self._every_steps = every_steps
        self._global_batch = global_batch
        self._tokens_per_scan = tokens_per_scan
        self._written = start
        self._progress = Progress(start=start, total=total) if log else None

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
        """Note an update.

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
        if self._log is None or self._progress is None:
            return []
        self._progress.show(done, {"loss": means["loss"], "lr": group["lr"]})
        if done % self._every_steps and done != self._total:
            return []
        seconds = self.watch.take()
        elapsed = sum(seconds[name] for name in seconds if name not in BESIDE)
        scans_per_s = (done - self._written) * self._global_batch / elapsed
        self._written = done
        line = {
            "step": done,
            **means,
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "grad_norm": norm,
            "scans": done * self._global_batch,
            "epochs": {name: round(passes, 4) for name, passes in epochs.items()},
            "scans_per_s": round(scans_per_s, 3),
            "tokens_per_s": round(scans_per_s * self._tokens_per_scan, 1),
            "seconds": seconds,
            "memory_bytes": peak_memory_bytes(self._device),
        }
        self._log.write(line)
        alarms = self._alarms.see(line)
        for alarm in alarms:
            self._log.write(alarm.line)
            tqdm.write(f"alarm: {alarm}", file=sys.stderr)
        return alarms

    def close(self) -> None:
        """End the progress bar."""
        if self._progress is not None:
            self._progress.close()


def peak_memory_bytes(device: torch.device) -> int:
    """The most this process has held: of the GPU's memory, or of the machine's without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
