"""Planted differences come out, with intervals that cover what they should."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import pytest
from sklearn.metrics import roc_auc_score

from evaluation import claim
from evaluation.claiming.methods import Duel, Estimate, compare_methods, estimate, judge
from evaluation.claiming.pretraining import compare
from evaluation.claiming.scored import ClaimError, Scored, by_metric, read_scored
from evaluation.claiming.words import as_json, markdown
from evaluation.storing import store
from evaluation.storing.rows import to_rows
from foundation.metrics.by_name import auroc, measure, r2

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
    models = {name: model("backbone", "mae", digest=f"{name} of {seed}") for name in runs}
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
                part = predictions(subjects, label, score)
                rows.append(part.assign(model=name, protocol=protocol, split="val").sample(frac=1))
        store.write_predictions(folder, task, pandas.concat(rows))
    tasks = {task: {"metric": "auroc", "kind": "binary"} for task in TASKS}
    store.write_run(
        folder, {"split": "val", "tasks": tasks, "models": models, "date": "2026-01-02"}
    )
    return folder


def predictions(
    subjects: Sequence[str], label: np.ndarray, score: np.ndarray, kind: str = "binary"
) -> pandas.DataFrame:
    columns = ["subject", "output", "label", "event", "score"]
    rows = to_rows(subjects, label, score.reshape(len(subjects), -1), kind=kind)
    return pandas.DataFrame(rows, columns=columns)


def model(kind: str, method: str | None, *, digest: str = "none") -> dict:
    provenance = {"method": method} if method else {}
    return {"kind": kind, "provenance": provenance, "architecture": "same", "digest": digest}


def stores(folder: Path, *, gain: float, **about) -> list[Scored]:
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
    helps = compare(stores(tmp_path / "helps", gain=1.0), num_bootstraps=500)["mae"]
    nothing = compare(stores(tmp_path / "nothing", gain=0.0), num_bootstraps=500)["mae"]
    assert helps.interval[0] > 0
    assert nothing.interval[0] < 0 < nothing.interval[1]
    assert helps.interval[0] < helps.difference < helps.interval[1]
    assert (helps.num_runs, helps.num_subjects) == (3, 240)


def test_few_seeds_are_called_so(tmp_path: Path) -> None:
    one = [read_scored(planted(tmp_path / "one", seed=2, gain=1.0))]
    three = stores(tmp_path / "three", gain=1.0)
    said = [markdown(compare(each, num_bootstraps=20), each) for each in (one, three)]
    assert ["fewer than three pretraining seeds" in text for text in said] == [True, False]


def test_seeds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    """One seed in three that helps a lot is no claim, however many subjects there are."""
    alike = stores(tmp_path / "alike", gain=0.3, num_subjects=400)
    differ = [
        read_scored(planted(tmp_path / f"d{seed}", seed=seed, gain=gain, num_subjects=400))
        for seed, gain in ((2, 0.0), (3, 0.0), (4, 0.9))
    ]
    widths = []
    for each in (alike, differ):
        low, high = compare(each, num_bootstraps=200)["mae"].interval
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_three_cohorts_that_differ_prove_nothing_though_none_of_them_is_negative(
    tmp_path: Path,
) -> None:
    """Percentiles of three values never leave their range; a spread told by three is uncertain."""
    differ = [
        read_scored(planted(tmp_path / f"d{seed}", seed=seed, gain=gain, num_subjects=400))
        for seed, gain in ((2, 0.2), (3, 0.3), (4, 2.0))
    ]
    found = compare(differ, num_bootstraps=200)["mae"]
    assert min(found.by_store.values()) > 0
    assert found.interval[0] < 0 < found.difference


def test_untrained_seeds_are_drawn_as_the_trained_ones_are(tmp_path: Path) -> None:
    """An untrained network that happens to be good makes the comparison with any less certain."""
    widths = []
    for name, luck in (("alike", 0.0), ("apart", 1.5)):
        where = planted(tmp_path / name, seed=2, gain=0.5, num_subjects=300)
        for task in TASKS:
            table = store.read_predictions(where, task)
            table.loc[table.model == "random_1", "score"] += luck * table.label
            store.write_predictions(where, task, table)
        low, high = compare([read_scored(where)], num_bootstraps=300)["mae"].interval
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_several_backbones_of_a_cohort_are_drawn_too(tmp_path: Path) -> None:
    several = stores(tmp_path, gain=0.5, runs=("one", "two", "three"), spread=0.3)
    found = compare(several, num_bootstraps=500)["mae"]
    assert found.num_runs == 9
    assert found.interval[0] < found.difference < found.interval[1]
    again = compare(several, num_bootstraps=500)["mae"]
    assert again == found


def test_the_interval_is_wider_than_that_of_a_loop_over_draws(tmp_path: Path) -> None:
    """Subjects drawn one by one, stores too."""
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
                score = {n: auroc(label, s[drawn, 0]) for n, s in task.score.items()}
                twins = (score["random_0"] + score["random_1"]) / 2
                total += (score["mae"] - twins) / 9
        draws.append(total)
    # Student's for three cohorts, whose spread a plain bootstrap holds for a third too small.
    plain = np.percentile(draws, [2.5, 97.5])
    assert found.interval[0] < plain[0] < plain[1] < found.interval[1]
    assert found.interval[1] - found.interval[0] < 4 * (plain[1] - plain[0])
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
            subjects = [f"s{n:04d}" for n in who]
            rows = [
                predictions(subjects, label[task], score).assign(
                    model=name, protocol="linear", split=split
                )
                for name, score in scores.items()
            ]
            store.write_predictions(folder / str(seed), task, pandas.concat(rows))
        binary, regression = (
            {"kind": "binary", "metric": "auroc"},
            {"kind": "regression", "metric": "r2"},
        )
        run = {"split": "val", "tasks": {"a": binary, "r": regression, "c": binary}}
        models = {"random_0": model("floor", None), "mae": model("backbone", "mae", digest="one")}
        store.write_run(folder / str(seed), {**run, "models": models, "date": "2026-01-02"})
    return [folder / str(seed) for seed in range(len(gains))]


def test_metrics_are_told_apart_and_cross_validated_tasks_count(tmp_path: Path) -> None:
    scored = [read_scored(where) for where in one_cohort(tmp_path, gains=(0.2, 0.3))]
    parts = by_metric(scored)
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
        part = by_metric([read_scored(where) for where in folders])["auroc"]
        low, high = compare(part, num_bootstraps=1500)["mae"].interval
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_the_report_says_that_the_cohort_is_one(tmp_path: Path) -> None:
    part = by_metric([read_scored(w) for w in one_cohort(tmp_path, gains=(0.2, 0.3))])
    text = {m: markdown(compare(p, num_bootstraps=20), p) for m, p in part.items()}
    assert text["auroc"].startswith("Mean AUROC of 2 tasks on validation, 2 stores of one cohort")
    assert text["r2"].startswith("R² of 1 task on validation, 2 stores of one cohort")
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


def two_methods(
    folder: Path,
    *,
    gains: dict[str, tuple[float, ...]],
    num_subjects: int = 150,
    digests: dict[str, tuple[str, ...]] | None = None,
) -> list[Scored]:
    """One cohort; a store for each pretraining seed with a backbone of each method.

    Args:
        gains: By method, how much of the label the backbone of each seed sees.
        digests: By method; distinct where they are not given.
    """
    rng = np.random.default_rng(7)
    subjects = [f"s{number:04d}" for number in range(num_subjects)]
    label = (rng.random(num_subjects) < 0.4).astype(float)
    common = rng.normal(size=num_subjects)
    num_seeds = len(next(iter(gains.values())))
    for seed in range(num_seeds):
        scores = {method: common + gain[seed] * label for method, gain in gains.items()}
        scores["random_0"] = common
        rows = [
            predictions(subjects, label, score + 0.3 * rng.normal(size=num_subjects)).assign(
                model=name, protocol="linear", split="val"
            )
            for name, score in scores.items()
        ]
        store.write_predictions(folder / str(seed), "a", pandas.concat(rows))
        models = {"random_0": model("floor", None)}
        for method in gains:
            own = digests[method][seed] if digests else f"{method} {seed}"
            models[method] = model("backbone", method, digest=own)
        about = {"kind": "binary", "metric": "auroc"}
        run = {"split": "val", "tasks": {"a": about}, "models": models, "date": "2026-01-02"}
        store.write_run(folder / str(seed), run)
    return [read_scored(folder / str(seed)) for seed in range(num_seeds)]


def test_a_method_beats_another_over_three_seeds(tmp_path: Path) -> None:
    scored = two_methods(tmp_path, gains={"mae": (0.5, 0.55, 0.6), "dino": (1.6, 1.7, 1.6)})
    (duel,) = compare_methods(scored, num_bootstraps=400)
    areas = {
        method: [
            measure(each.tasks["a"].label, each.tasks["a"].score[method], "auroc")
            for each in scored
        ]
        for method in ("mae", "dino")
    }
    expected = np.mean(areas["mae"]) - np.mean(areas["dino"])
    assert duel.estimate.difference == pytest.approx(expected)
    assert list(duel.by_store.values()) == pytest.approx(np.subtract(areas["mae"], areas["dino"]))
    assert duel.by_task["a"] == pytest.approx(expected)
    assert duel.num_seeds == (3, 3)
    (verdict,) = judge({"auroc": [duel]})["auroc"]
    assert verdict.claim == "dino beats mae"
    assert verdict.reason is None
    assert duel.estimate.interval[1] < 0
    text = markdown(compare(scored, num_bootstraps=20), scored, [duel], [verdict])
    assert "| mae - dino |" in text
    assert "| 3 and 3 |" in text
    assert "dino beats mae" in text


def test_fewer_than_three_seeds_are_no_claim_whatever_the_difference(tmp_path: Path) -> None:
    scored = two_methods(tmp_path, gains={"mae": (0.1, 0.1), "dino": (3.0, 3.0)})
    duels = compare_methods(scored, num_bootstraps=100)
    (verdict,) = judge({"auroc": duels})["auroc"]
    assert verdict == (None, None, "2 pretraining seeds, three are needed")
    findings = compare(scored, num_bootstraps=20)
    content = as_json(findings, scored, duels, [verdict])["pairs"][0]
    assert content["claim"] is None
    assert content["reason"] == "2 pretraining seeds, three are needed"
    assert content["difference"] < -0.2
    text = markdown(findings, scored, duels, [verdict])
    assert "no claim: 2 pretraining seeds, three are needed" in text


def test_one_backbone_in_three_stores_is_one_seed(tmp_path: Path) -> None:
    digests = {"mae": ("x", "x", "x"), "dino": ("0", "1", "2")}
    gains = {"mae": (0.1, 0.1, 0.1), "dino": (3.0, 3.0, 3.0)}
    (duel,) = compare_methods(two_methods(tmp_path, gains=gains, digests=digests))
    assert duel.num_seeds == (1, 3)
    (verdict,) = judge({"auroc": [duel]})["auroc"]
    assert verdict.reason == "1 pretraining seed, three are needed"


def test_a_seed_that_turns_the_difference_around_is_no_claim(tmp_path: Path) -> None:
    """Two seeds of three far ahead: percentiles of a bootstrap would nearly call it."""
    scored = two_methods(tmp_path, gains={"mae": (0.2, 0.2, 0.2), "dino": (1.5, 1.5, 0.0)})
    duels = compare_methods(scored, num_bootstraps=300)
    (verdict,) = judge({"auroc": duels})["auroc"]
    assert verdict.claim is None
    assert verdict.reason is not None
    assert verdict.reason.startswith("the difference is within chance (Holm p = ")


def test_duels_are_corrected_together_and_errors_count_downwards() -> None:
    def duel(a: str, metric: str, p: float, seeds: int = 3) -> Duel:
        found = Estimate(0.1, (0.0, 0.2), p, 4.0)
        return Duel(a, "other", metric, found, (seeds, 3), {}, {}, (0.6, 0.5))

    duels = {
        "auroc": [duel("p", "auroc", 0.02), duel("q", "auroc", 0.04), duel("r", "auroc", 1e-9, 2)],
        "brier": [duel("s", "brier", 0.001)],
    }
    verdicts = judge(duels)
    assert [each.p_holm for each in verdicts["auroc"]] == [0.04, 0.04, None]
    assert verdicts["auroc"][0].claim == "p beats other"
    assert verdicts["brier"][0].p_holm == pytest.approx(0.003)
    assert verdicts["brier"][0].claim == "other beats s"
    duels["auroc"][1] = duel("q", "auroc", 0.06)
    assert [each.claim for each in judge(duels)["auroc"]] == ["p beats other", None, None]


def test_seeds_of_different_cohorts_are_drawn_with_their_cohort(tmp_path: Path) -> None:
    folders = []
    for seed in (2, 3, 4):
        where = planted(tmp_path / str(seed), seed=seed, gain=0.4)
        run = store.read_run(where)
        run["models"]["dino"] = model("backbone", "dino", digest=f"dino {seed}")
        for task in TASKS:
            table = store.read_predictions(where, task)
            more = table[table.model == "mae"].assign(model="dino")
            more["score"] += 1.2 * more.label
            store.write_predictions(where, task, pandas.concat([table, more]))
        store.write_run(where, {k: run[k] for k in ("split", "tasks", "models", "date")})
        folders.append(read_scored(where))
    (duel,) = compare_methods(folders, num_bootstraps=300)
    assert duel.num_seeds == (3, 3)
    assert duel.estimate.difference == pytest.approx(np.mean(list(duel.by_store.values())))
    assert duel.estimate.freedom < 30
    assert duel.estimate.interval[1] < 0


def covered(num_seeds: int, *, seeds_sd: float, pooled: bool, repeats: int) -> tuple[float, float]:
    """How often the interval and a plain percentile interval hold a true difference of 0."""
    rng = np.random.default_rng(3)
    n, hits = 40, np.zeros(2)
    for _ in range(repeats):
        weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.ones(n) / n, 200)]) / n
        shape = (num_seeds, n)
        if pooled:  # all seeds on the same subjects, who like one of the methods more
            common = rng.normal(size=n)
            seeds = [rng.normal(0, seeds_sd, (num_seeds, 1)) for _ in range(2)]
            values = [seeds[0] + common + 0.5 * rng.normal(size=shape), seeds[1] + np.zeros(n)]
        else:
            values = [rng.normal(0, seeds_sd, (num_seeds, 1)) + rng.normal(size=shape)]
        sides = [(sign, each @ weights.T) for sign, each in zip((1.0, -1.0), values, strict=False)]
        low, high = estimate(sides, rng=rng).interval
        drawn = np.zeros(200)
        for sign, each in sides:
            picked = rng.integers(0, num_seeds, (num_seeds, 200))
            drawn += sign * np.take_along_axis(each[:, 1:], picked, axis=0).mean(axis=0)
        plain = np.percentile(drawn, [2.5, 97.5])
        hits += low < 0 < high, plain[0] < 0 < plain[1]
    return float(hits[0] / repeats), float(hits[1] / repeats)


@pytest.mark.parametrize("pooled", [True, False])
def test_intervals_over_three_seeds_cover_where_percentiles_do_not(pooled: bool) -> None:
    ours, plain = covered(3, seeds_sd=1.0, pooled=pooled, repeats=250)
    assert ours > 0.91
    assert plain < 0.86


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("seeds_sd", [0.0, 0.1, 0.3, 1.0])
def test_intervals_over_seeds_cover(num_seeds: int, seeds_sd: float, pooled: bool) -> None:
    ours, _ = covered(num_seeds, seeds_sd=seeds_sd, pooled=pooled, repeats=3000)
    assert ours > 0.935


@pytest.mark.parametrize(
    ("kind", "metric", "protocol"),
    [
        ("multiclass", "macro_auroc", "linear"),
        ("survival", "concordance", "linear"),
        ("segmentation", "dice", "linear"),
        ("retrieval", "mean_average_precision", "retrieval"),
    ],
)
def test_every_kind_of_task_is_read(tmp_path: Path, kind: str, metric: str, protocol: str) -> None:
    rng = np.random.default_rng(0)
    n, subjects = 60, [f"s{number:02d}" for number in range(60)]
    label = rng.integers(0, 3, n).astype(float)
    if kind == "survival":
        label = np.stack([rng.exponential(100, n) + 1, rng.random(n) < 0.6], axis=1).astype(float)
    outputs = {"multiclass": 3, "survival": 1, "segmentation": 2, "retrieval": 3}[kind]
    scores = {name: rng.random((n, outputs)) for name in ("random_0", "mae", "dino")}
    if kind == "segmentation":
        for score in scores.values():
            score[rng.random(n) < 0.3, 1] = np.nan
    rows = [
        predictions(subjects, label, score, kind).assign(
            model=name, protocol=each, split="test"
        )
        for name, score in scores.items()
        for each in ("linear", "retrieval")
    ]  # fmt: skip
    store.write_predictions(tmp_path, "t", pandas.concat(rows))
    models = {"random_0": model("floor", None)}
    models |= {name: model("backbone", name, digest=name) for name in ("mae", "dino")}
    run = {"split": "test", "tasks": {"t": {"kind": kind, "metric": metric}}, "models": models}
    store.write_run(tmp_path, {**run, "date": None})
    scored = [read_scored(tmp_path)]
    assert scored[0].tasks["t"].protocol == protocol
    found = compare(scored, num_bootstraps=50)["mae"]
    expected = {name: measure(label, score, metric) for name, score in scores.items()}
    assert found.difference == pytest.approx(expected["mae"] - expected["random_0"])
    (duel,) = compare_methods(scored, num_bootstraps=50)
    assert duel.estimate.difference == pytest.approx(expected["mae"] - expected["dino"])
    assert duel.estimate.freedom == np.inf


def test_a_backbone_of_another_origin_has_no_method(tmp_path: Path) -> None:
    where = planted(tmp_path / "one", seed=2, gain=0.1)
    run = store.read_run(where)
    run["models"]["foreign"] = {**model("backbone", None), "architecture": None}
    store.write_run(where, {k: run[k] for k in ("split", "tasks", "models", "date")})
    assert read_scored(where).runs == {"mae": ["mae"]}
