"""The report command over a made-up store that has everything a real one can have."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.report import main
from evaluation.storing import store
from tests.evaluation.report_store import SECRET, make_store, predictions

KINDS = ("html", "md", "csv", "json")


def _report(stores: Sequence[Path], out: Path) -> dict[str, str]:
    main([*map(str, stores), "--out", str(out)])
    return {kind: out.with_name(f"{out.name}.{kind}").read_text(encoding="utf-8") for kind in KINDS}


def _rows(text: str, **wanted: str) -> list[dict[str, str]]:
    table = csv.DictReader(text.splitlines())
    return [row for row in table if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that no test changes."""
    return make_store(tmp_path_factory.mktemp("stores") / "demo")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two tasks that no test changes."""
    return make_store(tmp_path_factory.mktemp("small") / "demo", tasks=("copd", "volume"))


@pytest.fixture(scope="module")
def texts(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The four files of its report, made in less than the ten seconds that a report may take."""
    start = time.process_time()
    made = _report([demo], tmp_path_factory.mktemp("reports") / "benchmark")
    assert time.process_time() - start < 10
    return made


def test_same_store_same_bytes_in_another_process(
    demo: Path, texts: dict[str, str], tmp_path: Path, project: Path
) -> None:
    moved = tmp_path / "elsewhere" / "demo"
    moved.parent.mkdir()
    moved.symlink_to(demo)
    words = [sys.executable, "-m", "evaluation.report", str(moved), "--out", str(tmp_path / "b")]
    settings = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run(words, cwd=project, env=settings, check=True, capture_output=True)
    for kind in KINDS:
        assert (tmp_path / f"b.{kind}").read_bytes() == texts[kind].encode(), kind


def test_report_needs_neither_backbone_nor_scan(small: Path, tmp_path: Path, project: Path) -> None:
    code = (
        "import sys\n"
        "names = ('torch', 'shards', 'timm', 'sklearn', 'pandas', 'matplotlib')\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top, *below = name.split('.')\n"
        "        if top in names: raise ImportError(name)\n"
        "        if top == 'foundation' and below[:1] not in ([], ['metrics']):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from evaluation.report import main\n"
        "main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", code, str(small), "--out", str(tmp_path / "benchmark")]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "benchmark.html") in done.stdout.splitlines()[-1]


def test_no_subject_and_no_folder_reaches_a_report(demo: Path, texts: dict[str, str]) -> None:
    assert SECRET in store.read_predictions(demo, "stroke")["subject"][0]
    assert SECRET in (demo / "run.json").read_text()
    assert (demo / "statistics/stroke.json").read_text().count(SECRET) > 50
    for kind, text in texts.items():
        assert SECRET not in text, kind
        assert str(demo.parent) not in text, kind
    assert "phantom (180 scans, CC0-1.0)" in texts["md"]
    assert "subject: many values" in texts["md"]


def test_header_says_what_the_scores_are(texts: dict[str, str], tmp_path: Path) -> None:
    for text in (texts["html"], texts["md"]):
        assert "2026-01-31" in text
        assert "so optimistic" in text
        assert "never the science" in text
        assert "cd" * 32 in text
        assert "quick" in text
    opened = _report([make_store(tmp_path / "opened", split="test")], tmp_path / "b")
    assert "so optimistic" not in opened["html"]
    scored = _rows(opened["csv"], task="stroke", metric="auroc", section="scores")
    assert {(row["n"], row["split"]) for row in scored} == {("50", "test")}


def test_real_cohort_is_not_called_a_phantom(small: Path, tmp_path: Path) -> None:
    folder = _changed_run(small, tmp_path / "demo", _without_phantom)
    assert "never the science" not in _report([folder], tmp_path / "b")["md"]


def test_all_finished_stores_in_name_order(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("real", "demo"):
        _changed_run(small, tmp_path / "stores" / name, lambda run, name=name: run | {"name": name})
    (tmp_path / "stores" / "unfinished").mkdir()
    monkeypatch.chdir(tmp_path)
    main([])
    stores = json.loads((tmp_path / "reports" / "benchmark.json").read_text())["stores"]
    assert [one["name"] for one in stores] == ["demo", "real"]


def test_a_second_store_of_one_name_is_refused(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = _copy(small, tmp_path / "twin")
    with pytest.raises(SystemExit, match="2"):
        main([str(small), str(twin), "--out", str(tmp_path / "b")])
    assert "a second store called 'demo'" in capsys.readouterr().err


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _of_other_predictions(path: Path) -> None:
    store.write_predictions(path.parent.parent, path.stem, predictions("val", score=0.25))


def _rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = store.read_statistics(path.parent.parent, path.stem)
    change(content)
    store.write_json(path, store.sealed(content))


def _without_models(path: Path) -> None:
    _rewritten(path, lambda content: content.pop("models"))


def _with_a_word(path: Path) -> None:
    _rewritten(path, lambda content: content["models"][0]["scores"].update(auroc="good"))


def _with_a_stranger(path: Path) -> None:
    _rewritten(path, lambda content: content["models"][0].update(model="stranger"))


def _with_a_status(path: Path) -> None:
    content = json.loads(path.read_text())
    content["checks"][0]["status"] = "fine"
    path.write_text(json.dumps(content))


def _without_masked(path: Path) -> None:
    arrays = {name: one for name, one in store.read_arrays(path).items() if name != "masked"}
    store.write_arrays(path, arrays)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no run": ("run.json", Path.unlink, "run.json is missing"),
    "cut run": ("run.json", _cut, "cannot be read"),
    "no statistics": ("statistics/copd.json", Path.unlink, "missing"),
    "cut statistics": ("statistics/copd.json", _cut, "cannot be read"),
    "other predictions": ("statistics/copd.json", _of_other_predictions, "other predictions"),
    "no models": ("statistics/copd.json", _without_models, "damaged ('models')"),
    "a word": ("statistics/copd.json", _with_a_word, "damaged"),
    "a stranger": ("statistics/copd.json", _with_a_stranger, "'stranger' is not a model"),
    "cut curve": ("curves/mae.json", _cut, "cannot be read"),
    "cut pictures": ("pictures/cohort.npz", _cut, ""),
    "no masked": ("pictures/mae_reconstructions.npz", _without_masked, "expected original, masked"),
    "no leakage": ("leakage.json", Path.unlink, "cannot be read"),
    "a status": ("leakage.json", _with_a_status, "no status 'fine'"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_one_line_and_leaves_the_old_report(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, damage, message = DAMAGE[name]
    folder = _copy(small, tmp_path / "demo")
    damage(folder / file)
    (tmp_path / "b.html").write_text("the old report")
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), "--out", str(tmp_path / "b")])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert len(error.splitlines()) == 1
    assert message in error
    assert file in error or "run.json" in error
    assert (tmp_path / "b.html").read_text() == "the old report"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.html", "demo"]


def test_no_store_at_all_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "python -m evaluation.run" in capsys.readouterr().err


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _changed_run(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    _copy(source, target)
    run = json.loads((target / "run.json").read_text())
    store.write_run(target, change(run))
    return target


def _without_phantom(run: dict[str, Any]) -> dict[str, Any]:
    for card in run["tasks"].values():
        card["data"] = "hippocampus"
    return run
