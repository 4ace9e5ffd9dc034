"""The report command over a made-up store that has everything a real one can have."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation.report import main
from evaluation.storing import store

KINDS = ("html", "md", "csv", "json")
TASKS = {"stroke": "binary", "copd": "binary", "cancer": "binary", "sarcoma": "binary"}
TASKS |= {"volume": "regression"}
# Name -> (kind, title, how much of the label its score sees).
MODELS: dict[str, tuple[str, str, float]] = {
    "mae": ("backbone", "MAE, tiny", 1.3),
    "dino": ("backbone", "DINO, tiny", 1.1),
    "random": ("floor", "Random initialisation", 0.7),
    "pca": ("floor", "Raw voxels, PCA", 0.8),
    "histogram": ("floor", "Intensity histogram", 0.5),
    "one_feature": ("floor", "Volume", 0.4),
    "clinical": ("floor", "Clinical columns", 1.0),
    "constant": ("floor", "Constant", 0.0),
}
SPLIT_SIZES = {"train": 90, "val": 40, "test": 50}
SECRET = "5ec7e75ec7e7"  # every pseudonym begins so; none may reach a report


def make_store(
    folder: Path, *, seed: int = 0, split: str = "val", num_bootstraps: int = 50
) -> Path:
    """Write a store of five tasks and eight models to the contract of its module."""
    rng = np.random.default_rng(seed)
    cards = {}
    for task, kind in TASKS.items():
        rows = _predictions(rng, kind, "cv" if task == "sarcoma" else split)
        cards[task] = _card(task, kind)
        store.write_predictions(folder, task, rows)
        if kind == "binary":
            store.write_few_shot(
                folder,
                task,
                _few_shot(rng),
                {
                    "seed": seed,
                    "draws": [],
                    "missing": {"32": "the rarer class has 30 training subjects, fewer than 32"},
                },
            )
    steps = list(range(0, 600, 3))
    for number, (model, method) in enumerate([("mae", "mae"), ("dino", "dino")]):
        loss = np.exp(-np.arange(200) / 60) + 0.1 * rng.random(200) + 7 * number
        curve = {"steps": steps, "loss": loss.tolist(), "method": method, "wall_s": 81.4}
        store.write_curve(folder, model, curve)
    shapes = rng.random((3, 24, 40)).astype(np.float32)
    triptych = {"original": shapes, "masked": shapes * (shapes > 0.7), "reconstruction": shapes**2}
    store.write_pictures(folder, "mae_reconstructions", triptych)
    slices = {f"stroke__label {at % 2}__{at}": shapes[at % 3] for at in range(6)}
    slices |= {f"CT__all__{at}": shapes[at].T for at in range(3)}
    store.write_pictures(folder, "cohort", slices)
    store.write_leakage(folder, _leakage())
    store.write_run(folder, _run(folder.name, cards, split, seed, num_bootstraps))
    return folder


def _predictions(rng: np.random.Generator, kind: str, split: str) -> pd.DataFrame:
    n = 51 if split == "cv" else SPLIT_SIZES[split]
    subjects = [f"{SECRET}{at:04d}" for at in range(n)]
    label = (np.arange(n) % 3 == 0).astype(float) if kind == "binary" else rng.normal(3400, 400, n)
    parts = []
    for model, (_, _, signal) in MODELS.items():
        for protocol in ("linear", "knn") if model not in ("clinical", "constant") else ("linear",):
            if kind == "binary":
                score = 1 / (
                    1 + np.exp(1 - 2 * signal * label - rng.normal(0, 1.0, n) * (signal > 0))
                )
            else:
                score = 3400 + 0.5 * signal * (label - 3400) + rng.normal(0, 80, n)
            fixed = {"model": model, "protocol": protocol, "split": split}
            parts.append(
                pd.DataFrame({**fixed, "subject": subjects, "label": label, "score": score})
            )
    return pd.concat(parts, ignore_index=True)


def _few_shot(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for draw in range(20):
        luck = rng.normal(0, 0.05)
        for shots in (1, 2, 4, 8, 16):
            for model, (_, _, signal) in MODELS.items():
                score = min(
                    0.5 + 0.07 * signal * np.log2(1 + shots) + luck + rng.normal(0, 0.01), 1
                )
                rows.append({"model": model, "shots": shots, "draw": draw, "score": score})
    return pd.DataFrame(rows)


def _card(task: str, kind: str) -> dict[str, Any]:
    sizes: dict[str, int] = {"cv": 51} if task == "sarcoma" else SPLIT_SIZES
    return {
        "title": task.replace("_", " ").capitalize(),
        "disease": "a disease | with a pipe",
        "kind": kind,
        "metric": {"binary": "auroc", "regression": "r2"}[kind],
        "data": "sarcoma" if task == "sarcoma" else "phantom cohort, seed 1",
        "licence": "Apache-2.0",
        "source": "generated <here>",
        "protocol_note": "split of the cohort, by subject; settings chosen on validation",
        "n": sizes,
        "positives": {name: n // 3 for name, n in sizes.items()} if kind == "binary" else None,
        "label": f"column {task}",
        "known_floors": "volume alone .688",
        "known_leaks": "",
    }


def _leakage() -> dict[str, Any]:
    checks = [
        {"task": task, "check": "subjects in two splits", "passed": True, "count": 0, "detail": ""}
        for task in TASKS
    ]
    overlap = {
        "check": "subjects seen in pretraining",
        "passed": True,
        "count": 0,
        "detail": "none",
    }
    checks += [{"task": "stroke", "model": model, **overlap} for model in ("mae", "dino")]
    return {"checks": checks, "passed": True}


def _run(
    name: str, cards: dict[str, Any], split: str, seed: int, num_bootstraps: int
) -> dict[str, Any]:
    provenance = {
        "schema_version": 1,
        "method": "mae",
        "steps": 600,
        "scans_seen": 9600,
        "hours": 0.0226,
        "world_size": 2,
        "device": "cpu",
        "finished": "2026-01-31",
        "versions": {"scanfm": "0.1.0", "torch": "2.15.0"},
        "shards": {
            "name": "phantom",
            "digest": "ab" * 32,
            "num_samples": 180,
            "num_subjects": 90,
            "sources": [{"name": "phantom", "licence": "CC0-1.0", "num_samples": 180}],
            "modalities": {"CT": 90, "MR": 90},
        },
        "subjects": [f"{SECRET}{at:04d}" for at in range(90)],
    }
    grid = [{"C": 10.0**power, "score": 0.7 + 0.02 * power} for power in range(-4, 2)]
    return {
        "name": name,
        "title": "Phantom cohort" if name == "demo" else f"Store {name}",
        "date": "2026-01-31",
        "recipe_digest": "cd" * 32,
        "split": split,
        "seed": seed,
        "num_bootstraps": num_bootstraps,
        "tasks": cards,
        "models": {
            model: {
                "kind": kind,
                "title": title,
                "description": f"What {title} is, in one line.",
                "digest": "ef" * 32 if kind == "backbone" else None,
                "provenance": provenance if kind == "backbone" else None,
            }
            for model, (kind, title, _) in MODELS.items()
        },
        "selections": [
            {"task": task, "model": "mae", "protocol": "linear", "chosen": {"C": 1.0}, "grid": grid}
            for task in TASKS
        ],
        "skipped": [
            {
                "task": "cancer",
                "model": "one_feature",
                "protocol": "knn",
                "reason": "has one column",
            }
        ],
        "notes": ["Two backbones, pretrained for a few minutes."],
    }


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
def texts(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The four files of its report."""
    return _report([demo], tmp_path_factory.mktemp("reports") / "benchmark")


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


def test_report_needs_neither_backbone_nor_scan(demo: Path, tmp_path: Path, project: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'foundation', 'shards', 'timm'): sys.modules[name] = None\n"
        "from evaluation.report import main\n"
        "main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", code, str(demo), "--out", str(tmp_path / "benchmark")]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "benchmark.html") in done.stdout.splitlines()[-1]


def test_no_subject_reaches_a_report(demo: Path, texts: dict[str, str]) -> None:
    assert SECRET in store.read_predictions(demo, "stroke")["subject"][0]
    assert SECRET in (demo / "run.json").read_text()
    for kind, text in texts.items():
        assert SECRET not in text, kind
        assert str(demo.parent) not in text, kind
    assert "phantom (180 scans, CC0-1.0)" in texts["md"]


class _Page(HTMLParser):
    """Open tags, ids and addresses of a page."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        named = ("src", "href", "xlink:href", "action", "data")
        self.addresses += [value or "" for name, value in attrs if name in named]
        if tag == "img" and not given.get("alt"):
            self.unlabelled.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_page_is_well_formed_and_asks_for_nothing(texts: dict[str, str]) -> None:
    page = _Page()
    page.feed(texts["html"])
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "iframe"}
    assert page.unlabelled == []
    outside = [one for one in page.addresses if not one.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    inside = {one[1:] for one in page.addresses if one.startswith("#")}
    assert inside <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)", texts["html"])
    assert "generated &lt;here&gt;" in texts["html"]


def test_every_score_has_n_and_interval_and_stands_in_all_four(
    demo: Path, texts: dict[str, str]
) -> None:
    from evaluation.statistics.metrics import auroc, bootstrap_interval

    rows = store.read_predictions(demo, "stroke").query("model == 'mae' and protocol == 'linear'")
    label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
    low, high = bootstrap_interval(label, score, "auroc", num_bootstraps=50, seed=0)
    wanted = {"task": "stroke", "model": "mae", "protocol": "linear", "metric": "auroc"}
    (row,) = _rows(texts["csv"], **wanted)
    assert row["n"] == "40"
    assert row["split"] == "val"
    assert float(row["value"]) == pytest.approx(auroc(label, score), abs=1e-6)
    assert float(row["low"]) == pytest.approx(low, abs=1e-6)
    assert float(row["high"]) == pytest.approx(high, abs=1e-6)
    shown = f"{auroc(label, score):.3f}"
    tree = json.loads(texts["json"])["stores"][0]["tasks"][0]
    assert tree["overview"]["mae"]["scores"][0]["value"] == float(row["value"])
    assert re.search(
        rf"\| MAE, tiny \| linear probe \| 40 \| \**{shown}\** \[{low:.3f}", texts["md"]
    )
    assert shown in texts["html"]

    scores = [row for row in _rows(texts["csv"]) if row["metric"] in ("auroc", "r2")]
    assert len(scores) > 200
    for row in scores:
        assert row["n"], row
        assert (row["low"] and row["high"]) or row["reason"], row


def test_few_shot_shows_shots_that_a_class_cannot_fill(texts: dict[str, str]) -> None:
    points = _rows(texts["csv"], task="stroke", protocol="few_shot", metric="auroc")
    assert {row["setting"] for row in points if not row["value"]} == {"shots = 32, draws = 0"}
    assert "the rarer class has 30 training subjects, fewer than 32" in texts["md"]
    assert "the rarer class has 30 training subjects, fewer than 32" in texts["html"]


def test_header_says_what_the_scores_are(texts: dict[str, str], tmp_path: Path) -> None:
    for text in (texts["html"], texts["md"]):
        assert "2026-01-31" in text
        assert "slightly optimistic" in text
        assert "never the science" in text
        assert "cd" * 32 in text
    opened = _report(
        [make_store(tmp_path / "opened", split="test", num_bootstraps=20)], tmp_path / "b"
    )
    assert "slightly optimistic" not in opened["html"]
    assert "n = 50" in opened["html"]
    assert {row["n"] for row in _rows(opened["csv"], task="stroke", metric="auroc")} == {"50"}


def test_real_cohort_is_not_called_a_phantom(demo: Path, tmp_path: Path) -> None:
    folder = _changed_run(demo, tmp_path / "demo", _without_phantom)
    assert "never the science" not in _report([folder], tmp_path / "b")["md"]


def test_one_class_is_null_with_the_reason(demo: Path, tmp_path: Path) -> None:
    folder = _copy(demo, tmp_path / "demo")
    rows = store.read_predictions(folder, "copd").assign(label=0.0)
    store.write_predictions(folder, "copd", rows)
    texts = _report([folder], tmp_path / "b")
    (row,) = _rows(texts["csv"], task="copd", model="mae", protocol="knn", metric="auroc")
    assert row["value"] == row["low"] == ""
    assert "both classes" in row["reason"]
    assert "both classes" in texts["html"]
    assert re.search(r"\| MAE, tiny \| k-NN \| 40 \| — \(a\) \|", texts["md"])


def test_failed_leakage_check_is_loud(demo: Path, tmp_path: Path) -> None:
    folder = _copy(demo, tmp_path / "demo")
    leakage = store.read_leakage(folder)
    leakage["checks"][2] |= {"passed": False, "count": 3}
    store.write_leakage(folder, leakage | {"passed": False})
    text = _report([folder], tmp_path / "b")["md"]
    assert "1 of 7 leakage checks failed" in text
    assert text.index("**failed**") < text.index("| passed |")


def test_all_finished_stores_in_name_order(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("real", "demo"):
        _changed_run(demo, tmp_path / "stores" / name, lambda run, name=name: run | {"name": name})
    (tmp_path / "stores" / "unfinished").mkdir()
    monkeypatch.chdir(tmp_path)
    main([])
    stores = json.loads((tmp_path / "reports" / "benchmark.json").read_text())["stores"]
    assert [one["name"] for one in stores] == ["demo", "real"]


def test_reading_is_fast(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "demo", num_bootstraps=2000)
    start = time.monotonic()
    _report([folder], tmp_path / "b")
    assert time.monotonic() - start < 10


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _without_column(path: Path) -> None:
    pd.read_parquet(path).drop(columns="score").to_parquet(path)


def _twice(path: Path) -> None:
    rows = pd.read_parquet(path)
    pd.concat([rows, rows]).to_parquet(path)


def _without_masked(path: Path) -> None:
    arrays = {name: one for name, one in store.read_arrays(path).items() if name != "masked"}
    store.write_arrays(path, arrays)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no run": ("run.json", Path.unlink, "run.json is missing"),
    "cut run": ("run.json", _cut, "cannot be read"),
    "no predictions": ("predictions/copd.parquet", Path.unlink, "missing"),
    "cut predictions": ("predictions/copd.parquet", _cut, "damaged"),
    "no column": ("predictions/copd.parquet", _without_column, "no column score"),
    "rows twice": ("predictions/copd.parquet", _twice, "two rows for the same"),
    "cut few-shot": ("few_shot/copd.parquet", _cut, "damaged"),
    "cut curve": ("curves/mae.json", _cut, "cannot be read"),
    "cut pictures": ("pictures/cohort.npz", _cut, ""),
    "no masked": ("pictures/mae_reconstructions.npz", _without_masked, "expected original, masked"),
    "no leakage": ("leakage.json", Path.unlink, "cannot be read"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_one_line_and_leaves_the_old_report(
    name: str, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, damage, message = DAMAGE[name]
    folder = _copy(demo, tmp_path / "demo")
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
