"""What a run says: ``log.jsonl`` is the truth, the console and wandb are views of it.

One line per logged step, numbered by the updates done; a resumed run first cuts the lines past the
step it resumes from, so each step stands there once.
"""

import importlib.util
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from tqdm import tqdm

from recipes.load import Section

_CONSOLE_EVERY_S = 10.0


class LogConfig(Section):
    """How often and where to."""

    every_steps: int = Field(default=1, ge=1)
    wandb: bool = Field(
        default=False, description="also to wandb; offline unless WANDB_API_KEY is set"
    )


class LogError(ValueError):
    """A log that cannot be kept as the recipe asks."""


def check_log(config: LogConfig) -> None:
    """Raises LogError where wandb is asked for and not installed."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise LogError(
            "log.wandb is true and wandb is not installed; pip install 'scanfm[train]', or set "
            "log.wandb=false"
        )


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut short is left out."""
    lines = []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


class RunLog:
    """Appends to ``log.jsonl`` and passes each line on to wandb.

    Attributes:
        wall_s: Seconds of work up to the last kept line, over all sittings of the run.
    """

    def __init__(
        self, path: Path, *, start: int, wandb: bool, name: str, recipe: Mapping[str, Any]
    ) -> None:
        """Open a log to go on after ``start`` updates; later lines are cut away.

        Args:
            path: ``log.jsonl``.
            start: Updates that the run resumes from.
            wandb: Send lines there too.
            name: Of the run.
            recipe: Shown in wandb beside the curves.
        """
        kept = [line for line in read_log(path) if line["step"] <= start] if path.exists() else []
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text("".join(_as_line(line) for line in kept), encoding="utf-8")
        beside.replace(path)
        self.wall_s: float = kept[-1].get("wall_s", 0.0) if kept else 0.0
        self._started = time.perf_counter() - self.wall_s
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(path.parent, name=name, recipe=recipe) if wandb else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line; ``step`` is the number of updates done."""
        self.wall_s = time.perf_counter() - self._started
        self._file.write(_as_line({**line, "wall_s": round(self.wall_s, 3)}))
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(line), step=line["step"])

    def sync(self) -> None:
        """Bring every line to the disk: a checkpoint must not be newer than its log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing can be added after this."""
        self.sync()
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


class Stopwatch:
    """Where the time of a step goes: each lap adds to one name what passed since the last."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last lap as ``name``."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def add(self, name: str, seconds: float) -> None:
        """Count time that passed elsewhere, such as in a loader's worker."""
        self._seconds[name] += seconds

    def take(self) -> dict[str, float]:
        """Seconds per name since the last taking."""
        taken = {name: round(seconds, 6) for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return taken


class Progress:
    """A bar with the time left on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, *, start: int, total: int) -> None:
        self._start, self._total = start, total
        self._began = self._spoke = time.monotonic()
        self._bar = (
            tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Tell that ``step`` updates are done."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._spoke >= _CONSOLE_EVERY_S or step == self._total:
            self._spoke = time.monotonic()
            left_s = (self._spoke - self._began) / (step - self._start) * (self._total - step)
            clock = f"{int(left_s) // 60}:{int(left_s) % 60:02d}"
            print(f"step {step}/{self._total}  {text}  left {clock}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(", ", ": ")) + "\n"


def _start_wandb(folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Any:
    """A wandb run that a resumed run goes on with, or None, said aloud, where it cannot start."""
    import wandb

    os.environ.setdefault("WANDB_MODE", "online" if os.environ.get("WANDB_API_KEY") else "offline")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    try:
        return wandb.init(
            project="scanfm",
            name=name,
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
            settings=settings,
        )
    except (wandb.Error, OSError) as error:
        print(f"wandb is off for this run ({error}); log.jsonl has everything", file=sys.stderr)
        return None


def _wandb_id(folder: Path) -> str:
    """The identity of this run folder's curves, kept beside them."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(os.urandom(8).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
