"""What a run says: ``log.jsonl`` is the truth, the console and wandb are views of it.

One line per logged step, numbered by the updates done; a resumed run first cuts the lines past the
step it resumes from, so each step stands there once. Incidents stay, wherever the run goes on from.
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from tqdm import tqdm

from recipes.load import Section
from shards.files import write_text

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
    """The lines of a log that can be read; a last one that a kill cut short cannot."""
    return [line for line in _parsed_lines(Path(path)) if line is not None]


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
        self._path = path
        kept = _cut(path, step=start)
        self.wall_s: float = max((line.get("wall_s", 0.0) for line in kept), default=0.0)
        self._started = time.perf_counter() - self.wall_s
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(path.parent, name=name, recipe=recipe) if wandb else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line; ``step`` is the number of updates done."""
        self.wall_s = time.perf_counter() - self._started
        with _naming(self._path):
            self._file.write(_as_line({**line, "wall_s": round(self.wall_s, 3)}))
            self._file.flush()
        if self._wandb is not None:
            # No step= of wandb's own: it drops what a resumed run does again.
            self._wandb.log(dict(line))

    def rewind(self, step: int) -> None:
        """Cut the lines past ``step`` updates away, from which the run goes on another way."""
        self._file.close()
        _cut(self._path, step=step)
        self._file = self._path.open("a", encoding="utf-8")

    def sync(self) -> None:
        """Bring every line to the disk: a checkpoint must not be newer than its log."""
        with _naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing can be added after this."""
        self.sync()
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


class Progress:
    """A bar with the time left on a terminal; else a line at first, at last and every 10 s."""

    def __init__(self, *, start: int, total: int, scans_per_step: int) -> None:
        self._step, self._total, self._scans_per_step = start, total, scans_per_step
        self._began = self._spoke = time.monotonic()
        self._shown = self._shown_before = 0
        self._scans_per_s = 0.0
        self._bar = (
            tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def show(self, step: int, values: Mapping[str, float], *, note: str = "") -> None:
        """Tell that ``step`` updates are done; after a return to a checkpoint it may be fewer."""
        self._step = step
        self._shown += 1
        now = time.monotonic()
        due = now - self._spoke >= _CONSOLE_EVERY_S or self._shown == 1 or step == self._total
        if due:
            steps = self._shown - self._shown_before
            self._scans_per_s = steps * self._scans_per_step / max(now - self._spoke, 1e-9)
            self._spoke, self._shown_before = now, self._shown
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        text = "  ".join([*parts, f"{self._scans_per_s:.3g} scans/s", *([note] if note else [])])
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif due:
            left_s = (now - self._began) / self._shown * (self._total - step)
            print(
                f"step {step}/{self._total}  {text}  left {clock(left_s)}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """``m:ss``, ``h:mm:ss`` or ``d days h:mm:ss``, as short as it can be said."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    told = f"{hour}:{minute:02d}:{second:02d}"
    return told if not days else f"{days} day{'s' if days > 1 else ''} {told}"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error that an open file gives does not say of which file it is."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _cut(path: Path, *, step: int) -> list[dict[str, Any]]:
    """Cut the lines past ``step`` updates away, incidents excepted; those that stay."""
    lines = _parsed_lines(path) if path.exists() else []
    if damaged := lines[:-1].count(None):  # the last one may be cut short, or empty
        print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr)
    kept = [line for line in lines if line and (line["step"] <= step or "incident" in line)]
    write_text(path, "".join(_as_line(line) for line in kept))
    return kept


def _parsed_lines(path: Path) -> list[dict[str, Any] | None]:
    """Every line, None for one that cannot be read, and what follows the last line's end."""
    return [_parsed(text) for text in path.read_bytes().split(b"\n")]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # of JSON or of UTF-8
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(", ", ": ")) + "\n"


def _start_wandb(folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Any:
    """A wandb run that a resumed run goes on with, or None, said aloud, where it cannot start."""
    import wandb

    os.environ.setdefault("WANDB_MODE", "online" if os.environ.get("WANDB_API_KEY") else "offline")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    try:
        run = wandb.init(
            project="scanfm",
            name=name,
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
            settings=settings,
        )
        run.define_metric("*", step_metric="step")
        return run
    except (wandb.Error, OSError) as error:
        print(f"wandb is off for this run ({error}); log.jsonl has everything", file=sys.stderr)
        return None


def _wandb_id(folder: Path) -> str:
    """The identity of this run folder's curves, kept beside them."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(os.urandom(8).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
