"""What ``foundation.finetune`` does between its runs: locks, stops, errors that are told once."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from foundation import finetune
from foundation.finetuning.recipe import FinetuneConfig
from recipes.command import STOPPED
from tests.foundation.test_finetune_parts import config, task_of

Value = TypeVar("Value")


def run_here(decide: Callable[[], Value]) -> Value:
    return decide()


def test_a_command_keeps_others_off_its_own_folders_alone(tmp_path: Path) -> None:
    """Commands of one name but other tasks or fractions run side by side."""
    task = task_of(tmp_path)

    def of(*fractions: float) -> FinetuneConfig:
        return config(out=str(tmp_path / "runs"), fractions=fractions)

    with ExitStack() as first:
        finetune.lock(of(1.0, 0.2), [task], locks=first)
        with ExitStack() as second:
            finetune.lock(of(0.5), [task], locks=second)
            with pytest.raises(ValueError, match=r"tuned/bright_20: another process is at it"):
                finetune.lock(of(0.2), [task], locks=second)
    with ExitStack() as later:
        finetune.lock(of(0.2), [task], locks=later)
    assert list((tmp_path / "runs" / "tuned").iterdir()) == []


@pytest.mark.parametrize("asked", [[None, None], [None, "SIGTERM"]])
def test_a_stop_between_runs_ends_every_rank(
    asked: list[str | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal has reached the second of two ranks."""
    monkeypatch.setattr(
        finetune, "gather_from_ranks", lambda _: [each is not None for each in asked]
    )
    monkeypatch.setattr(finetune, "from_rank_zero", run_here)
    request: Any = SimpleNamespace(asked=asked[0])
    if asked == [None, None]:
        finetune.leave_if_asked(request)
        return
    with pytest.raises(SystemExit) as end:
        finetune.leave_if_asked(request)
    assert end.value.code == STOPPED
    assert "the same command goes on from there" in capsys.readouterr().out


def test_what_is_wrong_with_shards_is_told_by_rank_zero_and_opened_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Path] = []

    def open_scans(folder: Path, _: Any, *, keys: Any) -> Any:
        opened.append(folder)
        return keys

    monkeypatch.setattr(finetune, "open_scans", open_scans)
    folders, tasks, keys = [Path("a"), Path("b")], [None, None], [{"x"}, {"y"}]
    for here, run in ((True, run_here), (False, lambda _: None)):
        monkeypatch.setattr(finetune, "from_rank_zero", run)
        opened.clear()
        found = finetune.open_all(folders, tasks, keys)  # type: ignore[arg-type]
        assert found == keys, here
        assert opened == folders
