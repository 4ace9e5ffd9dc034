"""Looks at validation subjects: what is best, what of it stays on the disk, and when it is over."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from foundation.checkpoint import STATE, CheckpointError
from foundation.finetuning import validation
from foundation.finetuning.parts import Part, parts_of
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.scoring import Scored
from foundation.finetuning.validation import (
    BEST,
    Standing,
    Validation,
    best_path,
    quality,
    restore_best,
    write_weights,
)
from tests.foundation.test_finetune_parts import config, task_of

Value = TypeVar("Value")


class Looking:
    """A run whose looks find what a test says; its method is one number, the updates done."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        every = {"checkpoint": {"every_steps": 2}, "log": {"every_steps": 1}}
        self.config: FinetuneConfig = config(
            **{"out": str(tmp_path / "runs"), "train": {"steps": 9, "global_batch": 8}, **every,
               **changes}
        )  # fmt: skip
        self.part: Part = parts_of(self.config, task_of(tmp_path), fraction=1.0)[0]
        self.method = nn.Linear(1, 1, bias=False)
        self.beats: list[int] = []
        self.found = (0.0, 0.0)
        monkeypatch.setattr(validation, "score_rows", self.score)
        monkeypatch.setattr(validation, "from_rank_zero", run_here)
        self.looks = self.begin(None)

    def begin(self, checkpoint: Path | None) -> Validation:
        return Validation(
            self.config, part=self.part, method=self.method, scans=None,  # type: ignore[arg-type]
            ranks=None, checkpoint=checkpoint, alive=self.beats.append,  # type: ignore[arg-type]
        )  # fmt: skip

    def score(self, *_: Any, alive: Callable[[], None], **__: Any) -> Scored:
        """Scores of a loss, and of an area of 1 where the quality is 1, of a half where it is 0."""
        loss, value = self.found
        alive()
        label = self.part.task.label[self.part.val]
        return Scored((label * value)[:, None], loss, None)

    def look(self, done: int, *, loss: float = 1.0, value: float = 0.0) -> dict[str, float]:
        self.found = (loss, value)
        with torch.no_grad():
            self.method.weight.fill_(done)
        return self.looks.after(done)

    def checkpoint(self, done: int) -> Path:
        """As the loop writes it, with what the looks tell of."""
        folder = self.part.folder / "checkpoints" / f"step-{done:06d}"
        folder.mkdir(parents=True)
        (folder / STATE).write_text(json.dumps({"step": done, **self.looks.kept()}))
        return folder

    @property
    def kept(self) -> list[int]:
        return sorted(int(path.stem[5:]) for path in (self.part.folder / BEST).glob("*"))


def run_here(decide: Callable[[], Value]) -> Value:
    return decide()


def test_a_look_is_due_with_every_checkpoint_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Looking(tmp_path, monkeypatch)
    found = {done: run.look(done, loss=0.25 * done, value=1.0) for done in range(1, 10)}
    assert [done for done, told in found.items() if told] == [2, 4, 6, 8, 9] == run.beats
    assert found[4] == {"val_loss": 1.0, "val_auroc": 1.0}


def test_the_best_weights_stay_while_any_checkpoint_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Looking(tmp_path, monkeypatch, validation={"monitor": "loss"})
    run.look(2, loss=0.5)
    first = run.checkpoint(2)
    run.look(4, loss=0.7)
    assert run.looks.standing == Standing(-0.5, 2, 1)
    run.checkpoint(4)
    run.look(6, loss=0.4)
    assert run.kept == [2, 6]  # those of before, in case the run dies before it tells of these
    gone_back = run.begin(first)
    assert gone_back.standing == Standing(-0.5, 2, 0)
    run.checkpoint(6)
    for old in (2, 4):
        (run.part.folder / "checkpoints" / f"step-{old:06d}" / STATE).unlink()
    run.look(8, loss=0.6)
    assert run.kept == [6]
    restored = nn.Linear(1, 1, bias=False)
    restore_best(restored, best_path(run.part.folder, 6))  # type: ignore[arg-type]
    assert float(restored.weight.detach()) == 6


def test_a_tie_is_not_better_and_patience_counts_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Looking(tmp_path, monkeypatch, validation={"patience": 2})
    run.look(2, value=1.0)
    assert run.looks.standing == Standing(1.0, 2, 0)
    run.look(4, value=1.0)
    assert not run.looks.is_over
    run.look(5, value=1.0)  # not due
    assert not run.looks.is_over
    run.look(6, value=0.0)
    assert run.looks.is_over
    resumed = run.begin(run.checkpoint(6))
    assert resumed.is_over
    assert resumed.standing == Standing(1.0, 2, 2)


def test_a_loss_that_is_none_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Looking(tmp_path, monkeypatch, validation={"monitor": "loss"})
    run.look(2, loss=math.nan)
    assert run.looks.standing == Standing(None, 0, 1)
    assert run.kept == []
    run.look(4, loss=3.0)
    assert run.looks.standing == Standing(-3.0, 4, 0)


def test_a_run_whose_best_weights_are_gone_looks_for_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was finished, and goes on with more steps."""
    run = Looking(tmp_path, monkeypatch, validation={"patience": 1})
    run.look(2, value=1.0)
    checkpoint = run.checkpoint(2)
    best_path(run.part.folder, 2).unlink()
    assert run.begin(checkpoint).standing == Standing()


def test_an_error_is_better_where_it_is_smaller() -> None:
    assert quality(0.3, 5.0, config(), metric="mean_absolute_error") == -5.0
    assert quality(0.3, 5.0, config(), metric="r2") == 5.0
    by_loss = config(validation={"monitor": "loss"})
    assert quality(0.3, 5.0, by_loss, metric="r2") == -0.3
    assert quality(0.3 + 1e-12, 5.0, by_loss, metric="r2") == -0.3  # a tie on any machine


@pytest.mark.parametrize("damage", ["absent", "cut", "another"])
def test_best_weights_that_cannot_be_read_are_one_line(tmp_path: Path, damage: str) -> None:
    path = best_path(tmp_path, 4)
    write_weights(nn.Linear(1, 2), path)  # type: ignore[arg-type]
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    other = nn.Linear(1, 3 if damage == "another" else 2)
    with pytest.raises(CheckpointError, match="best weights cannot be read"):
        restore_best(other, path)  # type: ignore[arg-type]
