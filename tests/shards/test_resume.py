"""A build that was killed, cut into parts or sent to a cluster gives the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.load import to_yaml
from shards.build import BuildConfig, BuildError, main
from shards.building.journal import JOURNAL, Journal
from shards.building.spool import SpoolError
from shards.verify import verify

Archive = Callable[[Path], Path]
Recipe = Callable[..., BuildConfig]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".inputs"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, archive: Archive, toy_recipe: Recipe) -> Path:
    """An archive with an undisturbed build in ``shards``."""
    root = archive(tmp_path_factory.mktemp("archive"))
    main(toy_recipe(root))
    assert list(verify(root / "shards")) == []
    return root


def _start(config: BuildConfig, folder: Path, project: Path) -> "subprocess.Popen[bytes]":
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    return subprocess.Popen(
        [sys.executable, "-m", "shards.build", str(recipe)],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_kills_change_no_byte(
    root: Path, tmp_path: Path, toy_recipe: Recipe, project: Path
) -> None:
    """A real process is killed after one more shard each time, then left to finish."""
    config = toy_recipe(root, out=str(tmp_path / "killed"))
    journal = tmp_path / ".killed.building" / JOURNAL
    finished = [1, 2]
    for wanted in finished:
        process = _start(config, tmp_path, project)
        while process.poll() is None:
            if journal.is_file() and len(journal.read_bytes().splitlines()) > wanted:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        assert process.returncode in (-signal.SIGKILL, 0)
    assert _start(config, tmp_path, project).wait() == 0
    assert content(tmp_path / "killed") == content(root / "shards")


@pytest.mark.parametrize("moment", range(5))
def test_a_kill_at_each_shard(
    root: Path,
    tmp_path: Path,
    toy_recipe: Recipe,
    moment: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the line of a shard is written, half way through it, and behind it."""
    config = toy_recipe(root, out=str(tmp_path / "killed"))
    whole, count = Journal.note, iter(range(100))

    def note(self: Journal, **words: Any) -> None:
        if next(count) != moment // 2:
            whole(self, **words)
            return
        if moment % 2:
            whole(self, **words)
            with self._path.open("a") as file:
                file.write('{"inputs": 7, "scans"')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note", note)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    assert not (tmp_path / "killed").exists()
    capsys.readouterr()
    main(config)
    assert "going on" in capsys.readouterr().out
    assert content(tmp_path / "killed") == content(root / "shards")
    assert not list(tmp_path.glob(".killed*"))


def test_a_draft_of_other_inputs_counts_for_nothing(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = archive(tmp_path / "a")
    whole, count = Journal.note, iter(range(100))

    def note(self: Journal, **words: Any) -> None:
        whole(self, **words)
        if next(count) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note", note)
        with pytest.raises(KeyboardInterrupt):
            main(toy_recipe(root))
    (root / "mr/case_0.nii.gz").unlink()
    main(toy_recipe(root, max_rejected_fraction=1))
    main(toy_recipe(root, max_rejected_fraction=1, out=str(root / "again")))
    assert content(root / "shards") == content(root / "again")


def test_parts_and_a_merge(
    root: Path, tmp_path: Path, toy_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(word: str) -> None:
        main(toy_recipe(root, out=str(tmp_path / "merged"), part=word))

    with pytest.raises(SpoolError, match="no parts of this build"):
        part("merge")
    part("2/3")
    with pytest.raises(SpoolError, match=r"6 of 9 inputs are not converted; run part=0/3 and 1"):
        part("merge")
    with pytest.raises(SpoolError, match="another number of parts"):
        part("0/4")
    with pytest.raises(BuildError, match="numbered from 0 to 2"):
        part("3/3")
    part("0/3")
    part("1/3")
    stored = tmp_path / ".merged.parts"
    for path in stored.glob("*-*"):
        assert path.stat().st_size > 500
    before = {path.name: path.stat().st_mtime_ns for path in stored.iterdir()}
    part("1/3")  # what is converted stays
    assert before == {path.name: path.stat().st_mtime_ns for path in stored.iterdir()}
    part("merge")
    assert content(tmp_path / "merged") == content(root / "shards")
    assert not stored.exists()
    capsys.readouterr()
    part("merge")
    assert "up to date" in capsys.readouterr().out


def test_a_dask_cluster(root: Path, tmp_path: Path, toy_recipe: Recipe) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        main(toy_recipe(root, out=str(tmp_path / "dask"), dask=cluster.scheduler_address))
    assert content(tmp_path / "dask") == content(root / "shards")


def test_one_build_at_a_time(root: Path, tmp_path: Path, toy_recipe: Recipe) -> None:
    from shards.files import only_one

    config = toy_recipe(root, out=str(tmp_path / "busy"))
    with (
        only_one(tmp_path / ".busy.building.lock", doing="x"),
        pytest.raises(ValueError, match="another process is at it"),
    ):
        main(config)


def test_the_key_stays_outside(root: Path, tmp_path: Path, toy_recipe: Recipe) -> None:
    out = tmp_path / "shards"
    with pytest.raises(BuildError, match="lies in the folder of shards"):
        main(toy_recipe(root, out=str(out), pseudonym_key=str(out / "key")))
    shutil.copy(root / "key", tmp_path / "open")
    (tmp_path / "open").chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        main(toy_recipe(root, out=str(out), pseudonym_key=str(tmp_path / "open")))
