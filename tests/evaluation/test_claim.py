"""Planted differences come out, with intervals that cover what they should."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from sklearn.metrics import roc_auc_score

from evaluation import claim
from evaluation.claim import ClaimError, compare, read_scored
from evaluation.statistics.metrics import auroc, r2
from evaluation.storing import store

TASKS = ("a", "b", "c")


def planted(
    folder: Path,
    *,
    seed: int,
    gain: float,
    runs: tuple[str, ...] = ("mae",),
    num_subjects: int = 80,
    spread: float = 0.0,
) -> Path:
    """A store whose pretrained backbones see ``gain`` more of the label than the untrained ones."""
    rng = np.random.default_rng(seed)
    subjects = np.array([f"{seed}-{number:03d}" for number in range(num_subjects)])
    models = {name: model("backbone", "mae") for name in runs}
    models |= {f"random_{number}": model("floor", None) for number in (0, 1)}
    models["majority"] = {**model("floor", None), "architecture": None}
    run_gain = {name: gain + spread * rng.normal() for name in runs}
    for task in TASKS:
        label = (rng.random(num_subjects) < 0.4).astype(float)
        common = rng.normal(size=num_subjects) + 0.5 * label
        rows = []
        for name in models:
            more = run_gain.get(name, 0.0) * label
            score = common + more + 0.5 * rng.normal(size=num_subjects)
            score = np.zeros(num_subjects) if name == "majority" else score
            for protocol in ("linear", "knn"):
                part = pandas.DataFrame({"subject": subjects, "label": label, "score": score})
                rows.append(part.assign(model=name, protocol=protocol, split="val").sample(frac=1))
        store.write_predictions(folder, task, pandas.concat(rows))
    tasks = {task: {"metric": "auroc"} for task in TASKS}
    store.write_run(
        folder, {"split": "val", "tasks": tasks, "models": models, "date": "2026-01-02"}
    )
    return folder


def model(kind: str, method: str | None) -> dict:
    provenance = {"method": method} if method else {}
    return {"kind": kind, "provenance": provenance, "architecture": "same"}


def stores(folder: Path, *, gain: float, **about) -> list[claim.Scored]:
    where = [planted(folder / str(seed), seed=seed, gain=gain, **about) for seed in (2, 3, 4)]
    return [read_scored(each) for each in where]


def test_the_difference_is_the_mean_of_differences_in_auroc(tmp_path: Path) -> None:
    where = planted(tmp_path / "one", seed=2, gain=0.8)
    found = compare([read_scored(where)], num_bootstraps=50)["mae"]
    differences = []
    for task in TASKS:
        table = store.read_predictions(where, task)
        table = table[table.protocol == "linear"]
        score = {
            name: roc_auc_score(part.label, part.score) for name, part in table.groupby("model")
        }
        twins = (score["random_0"] + score["random_1"]) / 2
        differences.append(score["mae"] - twins)
    assert found.difference == pytest.approx(np.mean(differences))
    assert list(found.by_task.values()) == pytest.approx(differences)
    assert found.pretrained - found.random == pytest.approx(found.difference)
    assert found.num_runs == 1
    assert found.num_subjects == 80


def test_a_gain_is_found_and_no_gain_is_not(tmp_path: Path) -> None:
    helps = compare(stores(tmp_path / "helps", gain=1.0))["mae"]
    nothing = compare(stores(tmp_path / "nothing", gain=0.0))["mae"]
    assert helps.interval[0] > 0
    assert nothing.interval[0] < 0 < nothing.interval[1]
    assert helps.interval[0] < helps.difference < helps.interval[1]
    assert (helps.num_runs, helps.num_subjects) == (3, 240)


def test_seeds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    """One seed in three that helps a lot is no claim, however many subjects there are."""
    alike = stores(tmp_path / "alike", gain=0.3, num_subjects=400)
    differ = [
        read_scored(planted(tmp_path / f"d{seed}", seed=seed, gain=gain, num_subjects=400))
        for seed, gain in ((2, 0.0), (3, 0.0), (4, 0.9))
    ]
    widths = []
    for each in (alike, differ):
        low, high = compare(each, num_bootstraps=500)["mae"].interval
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_several_backbones_of_a_cohort_are_drawn_too(tmp_path: Path) -> None:
    several = stores(tmp_path, gain=0.5, runs=("one", "two", "three"), spread=0.3)
    found = compare(several, num_bootstraps=500)["mae"]
    assert found.num_runs == 9
    assert found.interval[0] < found.difference < found.interval[1]
    again = compare(several, num_bootstraps=500)["mae"]
    assert again == found


def test_the_interval_is_that_of_a_loop_over_draws(tmp_path: Path) -> None:
    """Subjects drawn one by one, stores too; agrees within the bootstrap's own noise."""
    scored = stores(tmp_path, gain=0.6, num_subjects=60)
    found = compare(scored, num_bootstraps=1500)["mae"]
    rng = np.random.default_rng(9)
    draws = []
    for _ in range(300):
        total = 0.0
        for number in rng.integers(0, 3, 3):
            each = scored[number]
            drawn = rng.integers(0, 60, 60)
            for task in each.tasks.values():
                label = task.label[drawn]
                score = {n: auroc(label, s[drawn]) for n, s in task.score.items()}
                twins = (score["random_0"] + score["random_1"]) / 2
                total += (score["mae"] - twins) / 9
        draws.append(total)
    np.testing.assert_allclose(np.percentile(draws, [2.5, 97.5]), found.interval, atol=0.02)
    assert np.mean(draws) == pytest.approx(found.difference, abs=0.01)


def one_cohort(folder: Path, *, gains: tuple[float, ...], num_subjects: int = 80) -> list[Path]:
    """A store for each pretraining seed, all of the same subjects and untrained twins.

    Task ``a`` is binary on the first half of them, ``r`` a regression on the same half, and ``c``
    is binary and cross-validated on the others.
    """
    rng = np.random.default_rng(5)
    number = np.arange(num_subjects)
    half = num_subjects // 2
    parts = {"a": (number[:half], "val"), "r": (number[:half], "val"), "c": (number[half:], "cv")}
    label = {task: rng.normal(size=half) for task in parts}
    label |= {task: (label[task] > 0.3).astype(float) for task in "ac"}
    noise = {(task, name): rng.normal(size=half) for task in parts for name in ("random", "mae")}
    for seed, gain in enumerate(gains):
        for task, (who, split) in parts.items():
            scores = {"random_0": 0.5 * label[task] + 0.7 * noise[task, "random"]}
            scores["mae"] = scores["random_0"] + gain * (label[task] + noise[task, "mae"])
            rows = [
                pandas.DataFrame({"subject": [f"s{n:04d}" for n in who], "label": label[task]})
                .assign(score=score, model=name, protocol="linear", split=split)
                for name, score in scores.items()
            ]  # fmt: skip
            store.write_predictions(folder / str(seed), task, pandas.concat(rows))
        metric = {"a": "auroc", "r": "r2", "c": "auroc"}
        run = {"split": "val", "tasks": {task: {"metric": metric[task]} for task in parts}}
        models = {"random_0": model("floor", None), "mae": model("backbone", "mae")}
        store.write_run(folder / str(seed), {**run, "models": models, "date": "2026-01-02"})
    return [folder / str(seed) for seed in range(len(gains))]


def test_metrics_are_told_apart_and_cross_validated_tasks_count(tmp_path: Path) -> None:
    scored = [read_scored(where) for where in one_cohort(tmp_path, gains=(0.2, 0.3))]
    parts = claim.by_metric(scored)
    assert {metric: list(part[0].tasks) for metric, part in parts.items()} == {
        "auroc": ["a", "c"],
        "r2": ["r"],
    }
    found = {metric: compare(part, num_bootstraps=50)["mae"] for metric, part in parts.items()}
    assert (found["auroc"].num_subjects, found["r2"].num_subjects) == (80, 40)
    tables = [store.read_predictions(tmp_path / seed, "r") for seed in ("0", "1")]
    expected = []
    for table in tables:
        score = {name: r2(part.label, part.score) for name, part in table.groupby("model")}
        expected.append(score["mae"] - score["random_0"])
    assert found["r2"].difference == pytest.approx(np.mean(expected))


def test_stores_of_the_same_subjects_are_no_more_subjects(tmp_path: Path) -> None:
    """The same backbone three times over says no more than once: the interval stays as wide."""
    once = one_cohort(tmp_path / "once", gains=(0.3,))
    thrice = one_cohort(tmp_path / "thrice", gains=(0.3, 0.3, 0.3))
    widths = []
    for folders in (once, thrice):
        part = claim.by_metric([read_scored(where) for where in folders])["auroc"]
        low, high = compare(part, num_bootstraps=1500)["mae"].interval
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_the_report_says_that_the_cohort_is_one(tmp_path: Path) -> None:
    part = claim.by_metric([read_scored(w) for w in one_cohort(tmp_path, gains=(0.2, 0.3))])
    text = {m: claim.markdown(compare(p, num_bootstraps=20), p) for m, p in part.items()}
    assert text["auroc"].startswith("Mean AUROC of 2 tasks on validation, 2 stores of one cohort")
    assert text["r2"].startswith("R2 of 1 task on validation, 2 stores of one cohort")
    assert "over pretraining seeds and subjects" in text["r2"]


def test_stores_that_share_some_subjects_are_refused(tmp_path: Path) -> None:
    one, two, _ = stores(tmp_path, gain=0.1)
    mixed = two._replace(subjects=(one.subjects[0], *two.subjects[1:]))
    with pytest.raises(ClaimError, match="some of the other stores' subjects"):
        compare([one, mixed], num_bootstraps=10)


@pytest.mark.parametrize("lacking", ["backbone", "twin", "architecture"])
def test_a_store_that_cannot_tell_is_refused(tmp_path: Path, lacking: str) -> None:
    where = planted(tmp_path / "one", seed=2, gain=0.1)
    run = store.read_run(where)
    for each in run["models"].values():
        if lacking == "twin" and each["kind"] == "floor":
            each["architecture"] = "another"
        elif lacking == "backbone":
            each["kind"] = "floor"
        elif lacking == "architecture":
            del each["architecture"]
    store.write_run(where, {k: v for k, v in run.items() if k not in ("digest", "schema_version")})
    told = {
        "backbone": "holds no pretrained backbone",
        "twin": "no random initialisation of mae",
        "architecture": "written by an earlier version",
    }
    with pytest.raises(ClaimError, match=told[lacking]):
        read_scored(where)


def test_stores_of_other_tasks_are_refused(tmp_path: Path) -> None:
    one, two, _ = stores(tmp_path, gain=0.1)
    fewer = two._replace(tasks={"a": two.tasks["a"]})
    with pytest.raises(ClaimError, match="other tasks or another split"):
        compare([one, fewer])


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [str(planted(tmp_path / str(s), seed=s, gain=0.5)) for s in (2, 3)]
    out = tmp_path / "reports" / "learn"
    words = ["claim", *where, "--out", str(out), "--bootstraps", "100"]
    monkeypatch.setattr(sys, "argv", words)
    claim.main()
    printed = capsys.readouterr().out
    text = out.with_suffix(".md").read_text()
    assert text.strip() in printed
    assert "Mean AUROC of 3 tasks on validation, 2 cohorts" in text
    assert "| mae | " in text
    assert "2 runs, 160 subjects" in text
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["auroc"]["date"] == "2026-01-02"
    assert content["auroc"]["methods"]["mae"]["num_runs"] == 2
