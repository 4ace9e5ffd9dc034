"""The label-fraction curve and the supervised ceiling, from predictions that are drawn here."""

from typing import Any

import numpy as np
import pandas
import pytest

from evaluation.statistics.fractions import ceilings
from evaluation.statistics.summary import Settings, summarise_task
from evaluation.storing.rows import to_rows
from evaluation.storing.store import FRACTION_COLUMNS, PREDICTION_COLUMNS
from foundation.metrics.by_name import PRIMARY, measure

N = 44
SHARES = {0.05: 3, 0.2: 12, 1.0: 60}
KINDS = {"mae": "backbone", "tuned": "trained", "scratch": "trained", "volume": "floor"}
FEW = Settings(num_bootstraps=60, seed=0, num_permutations=99)


def _subjects(split: str) -> list[str]:
    return [f"{split}-{number:03d}" for number in range(N)]


def _score(kind: str, noise: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if kind == "segmentation":
        score = np.clip(0.9 - noise * rng.random((N, 2)), 0, 1)
        score[0, 1] = np.nan
        return np.zeros(N), score
    label = (np.arange(N) % 3 == 0).astype(float)
    return label, 1 / (1 + np.exp(-2 * (label - 0.5) - noise * rng.normal(size=N)))[:, None]


def _summary(kind: str, *, split: str = "val", others: bool = False) -> dict[str, Any]:
    rows: list[Any] = []
    fractions: list[Any] = []
    for each in ("val",) if split == "val" else ("val", split):
        subjects = _subjects(each)
        for at, model in enumerate(KINDS):
            label, score = _score(kind, 0.6 + 0.2 * at, seed=at)
            protocol = "fine_tuned" if KINDS[model] == "trained" else "linear"
            rows += [(model, protocol, each, *row)
                     for row in to_rows(subjects, label, score, kind=kind)]  # fmt: skip
            for share in SHARES if KINDS[model] == "trained" else ():
                label, score = _score(kind, (0.6 + 0.2 * at) / share**0.2, seed=at)
                fractions += [(model, share, each, *row)
                              for row in to_rows(subjects, label, score, kind=kind)]  # fmt: skip
    trainings = [
        {
            "model": model,
            "fraction": share,
            "num_train": size,
            "begun": "scratch" if model == "scratch" else "mae",
            "trained_digest": f"{share}{model if others and share == 0.2 else ''}",
        }
        for model in ("tuned", "scratch")
        for share, size in sorted(SHARES.items(), reverse=True)
    ]
    outputs = ["a", "b"] if kind == "segmentation" else ["1"]
    return summarise_task(
        pandas.DataFrame(rows, columns=list(PREDICTION_COLUMNS)),
        task={"name": "t", "kind": kind, "metric": PRIMARY[kind], "outputs": outputs},
        kinds=KINDS,
        split=split,
        settings=FEW,
        fractions=pandas.DataFrame(fractions, columns=list(FRACTION_COLUMNS)),
        trainings=trainings,
    )


@pytest.fixture(scope="module")
def binary() -> dict[str, Any]:
    return _summary("binary")


def test_points_are_the_metric_of_each_network(binary: dict[str, Any]) -> None:
    lines = binary["fractions"]["lines"]
    assert [(line["model"], line["is_scratch"]) for line in lines] == [
        ("tuned", False), ("scratch", True)
    ]  # fmt: skip
    for at, line in zip((1, 2), lines, strict=True):
        assert [(one["fraction"], one["num_train"]) for one in line["points"]] == [*SHARES.items()]
        for point in line["points"]:
            label, score = _score("binary", (0.6 + 0.2 * at) / point["fraction"] ** 0.2, seed=at)
            assert point["value"] == pytest.approx(measure(label, score[:, 0], "auroc"))
            assert point["low"] < point["value"] < point["high"]
            assert (point["n"], point["positives"]) == (N, 15)


def test_the_whole_share_is_the_row_of_the_table(binary: dict[str, Any]) -> None:
    (row,) = [each for each in binary["models"] if each["model"] == "scratch"]
    last = binary["fractions"]["lines"][1]["points"][-1]
    assert row["kind"] == "trained"
    assert {name: last[name] for name in ("value", "low", "high")} == {
        name: row["scores"]["auroc"][name] for name in ("value", "low", "high")
    }
    assert [each["kind"] for each in binary["models"]] == [
        "backbone", "trained", "trained", "floor"
    ]  # fmt: skip


def test_fine_tuned_less_scratch_at_each_share(binary: dict[str, Any]) -> None:
    found = binary["fractions"]["comparisons"]
    assert [(one["a"], one["b"], one["fraction"]) for one in found] == [
        ("tuned", "scratch", share) for share in SHARES
    ]
    for one in found:
        scores = []
        for at in (1, 2):
            label, score = _score("binary", (0.6 + 0.2 * at) / one["fraction"] ** 0.2, seed=at)
            scores.append(measure(label, score[:, 0], "auroc"))
        assert one["difference"] == pytest.approx(scores[0] - scores[1])
        assert one["low"] < one["difference"] < one["high"]
        assert 0 < one["p"] <= 1
        assert one["reason"] is None


def test_backbones_are_compared_with_floor_and_ceiling_alone(binary: dict[str, Any]) -> None:
    pairs = [(one["a"], one["b"], one["b_protocol"]) for one in binary["comparisons"]]
    assert pairs == [("mae", "volume", "linear"), ("mae", "scratch", "fine_tuned")]


def test_other_training_subjects_are_said() -> None:
    found = _summary("binary", others=True)["fractions"]["comparisons"]
    reasons = {one["fraction"]: one["reason"] for one in found}
    assert reasons[0.2] == "the two were not trained on the same subjects"
    assert reasons[0.05] is None


def test_the_shown_split_is_the_one_of_the_table() -> None:
    found = _summary("binary", split="test")
    assert found["split"] == "test"
    assert found["fractions"]["lines"][0]["points"][0]["n"] == N


def test_dice_of_each_share() -> None:
    found = _summary("segmentation")
    _, score = _score("segmentation", 0.8 / 0.05**0.2, seed=1)
    point = found["fractions"]["lines"][0]["points"][0]
    assert point["value"] == pytest.approx(measure(np.zeros(N), score, "dice"))
    assert point["low"] < point["value"] < point["high"]


def test_only_all_labels_from_scratch_are_a_ceiling() -> None:
    whole = {"fraction": 1.0, "begun": "scratch"}
    trainings = [
        {"model": "a", **whole},
        {"model": "b", **whole, "fraction": 0.2},
        {"model": "c", **whole, "begun": "mae"},
    ]
    assert ceilings(trainings) == ["a"]


def test_nothing_trained_is_nothing_said() -> None:
    found = to_rows(_subjects("val"), *_score("binary", 1, seed=0), kind="binary")
    rows = [("mae", "linear", "val", *row) for row in found]
    summary = summarise_task(
        pandas.DataFrame(rows, columns=list(PREDICTION_COLUMNS)),
        task={"name": "t", "kind": "binary", "metric": "auroc", "outputs": ["1"]},
        kinds={"mae": "backbone"},
        split="val",
        settings=FEW,
    )
    assert summary["fractions"] is None
