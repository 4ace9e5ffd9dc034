"""The whole command with fine-tunings beside a backbone, on a tiny cohort."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.backbones.embedder import EmbedderError
from evaluation.finetuned.outputs import load_network
from evaluation.leakage.gate import LeakageError
from evaluation.report import main as report
from evaluation.run import main
from evaluation.scoring.config import EvaluationConfig
from evaluation.scoring.inputs import load_inputs
from evaluation.storing import store
from foundation.finetuning.heads import HeadConfig
from foundation.finetuning.target import target_of
from foundation.metrics.by_name import measure
from foundation.model import HeadSettings, save_model
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from recipes.load import parse
from shards.scan import read_scan
from tests.evaluation.finetuned_parts import Corner, write_out_of_fold, write_part

FOLDS = {"name": "folds", "protocol": {"repeated_cv": {"folds": 3, "repeats": 1}}}
NO_FLOORS = {"floors": {"volume": None, "radiomics": None, "voxels": None}}


@pytest.fixture
def config(place: Any) -> Callable[..., EvaluationConfig]:
    def build(**changes: Any) -> EvaluationConfig:
        runs = place.root / "runs"
        tree = {
            "name": "tiny",
            "title": "Tiny",
            "data_root": str(place.data),
            "out": str(place.root / "stores"),
            "pseudonym_key": str(place.key_path),
            "backbones": {"mae": str(runs / "mae" / "backbone")},
            "finetuned": {"tuned": str(runs / "tuned"), "scratch": str(runs / "scratch")},
            "random_init": {"seeds": []},
            "tasks": [str(place.card(**NO_FLOORS))],
            "few_shot": None,
            "num_bootstraps": 40,
            "num_permutations": 40,
            "spread": 0,
            "protocols": ["linear"],
            "ledger": str(place.root / "openings.jsonl"),
            "device": "cpu",
            **changes,
        }
        return parse(tree, EvaluationConfig, where="test")

    return build


@pytest.fixture
def networks(place: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two fine-tunings of two shares each, and one of them cross-validated; loads are listed."""
    place.backbone("mae")
    task, folds = place.task(**NO_FLOORS), place.task(**FOLDS, **NO_FLOORS)
    for name, begun in (("tuned", "mae"), ("scratch", "scratch")):
        folder = place.root / "runs" / name
        seen = {"subjects": [], "source_digests": [], "finished": "2026-03-04T05:06:07"}
        for share in (0.2, 1.0):
            write_part(folder, task, begun=begun, fraction=share, provenance=seen,
                       weights=f"{name}{share}")  # fmt: skip
        if name == "scratch":
            part = write_part(folder, folds, provenance=seen)
            score = np.where(folds.label > 0, 0.8, 0.3) + np.arange(72) / 300
            write_out_of_fold(part, folds, score[:, None], np.arange(72) % 3)
    loaded: list[Path] = []

    def load(folder: Path, *, device: str) -> Corner:
        assert device == "cpu"
        loaded.append(folder)
        return Corner(task, weight=0.2 if folder.parent.name.endswith("_20") else 1.0)

    monkeypatch.setattr("evaluation.finetuned.outputs.load_network", load)
    return loaded


def test_from_parts_to_a_report(place: Any, config: Any, networks: list[Path]) -> None:
    main(config())
    where = place.root / "stores" / "tiny"
    assert sorted(path.parent.name for path in networks) == ["bright", "bright", "bright_20",
                                                            "bright_20"]  # fmt: skip
    run = store.read_run(where)
    kinds = {name: model["kind"] for name, model in run["models"].items()}
    assert list(kinds)[:3] == ["mae", "tuned", "scratch"]
    assert [kinds[name] for name in ("mae", "tuned", "scratch", "constant")] == [
        "backbone", "trained", "trained", "floor"
    ]  # fmt: skip
    assert run["models"]["tuned"]["title"] == "fine-tuned mae"
    assert run["date"] == "2026-03-04"
    rows = store.read_predictions(where, "bright")
    mine = rows[rows["model"] == "scratch"]
    assert (set(mine["protocol"]), set(mine["split"]), len(mine)) == ({"fine_tuned"}, {"val"}, 16)
    assert measure(mine["label"], mine["score"], "auroc") > 0.9
    shares = store.read_fractions(where, "bright")
    assert shares is not None
    assert shares.groupby(["model", "fraction"]).size().to_dict() == {
        (name, share): 16 for name in ("tuned", "scratch") for share in (0.2, 1.0)
    }
    bright = store.read_statistics(where, "bright")
    order = list(dict.fromkeys(each["kind"] for each in bright["models"]))
    assert order == ["backbone", "trained", "floor"]
    pairs = [(one["a"], one["b"]) for one in bright["comparisons"]]
    assert ("mae", "scratch") in pairs
    assert not any("tuned" in pair or pair[0] == "scratch" for pair in pairs)
    assert [one["fraction"] for one in bright["fractions"]["comparisons"]] == [0.2, 1.0]
    checks = {(one["task"], one["check"], one["model"]): one["status"]
              for one in store.read_leakage(where)["checks"]}  # fmt: skip
    assert checks["bright", "scored subject in fine-tuning", "tuned"] == "passed"
    assert checks["bright", "scored subject in pretraining", "tuned"] == "passed"
    report([str(where), "--out", str(place.root / "benchmark")])
    text = (place.root / "benchmark.md").read_text()
    assert "Best backbone less supervised ceiling" in text
    assert "by share of the training subjects" in text
    assert str(place.root) not in text


def test_what_is_known_is_not_made_again(
    place: Any, config: Any, networks: list[Path], capsys: Any
) -> None:
    few: dict[str, Any] = {"backbones": {}}
    main(config(**few))
    once = len(networks)
    main(config(**few))
    assert "up to date" in capsys.readouterr().out
    folder = place.root / "runs" / "scratch" / "bright"
    told = json.loads((folder / "part.json").read_text())
    (folder / "part.json").write_text(json.dumps({**told, "best_step": 41}))
    main(config(**few))
    assert len(networks) == once
    (folder / "model" / "SHA256SUMS").write_text("another network")
    main(config(**few))
    assert networks[once:] == [folder / "model"]


def test_predictions_out_of_fold_are_a_row(place: Any, config: Any, networks: list[Path]) -> None:
    main(config(backbones={}, tasks=[str(place.card(**FOLDS, **NO_FLOORS))]))
    assert networks == []
    where = place.root / "stores" / "tiny"
    assert ("folds", "tuned") in {
        (one["task"], one["model"]) for one in store.read_run(where)["skipped"]
    }
    folds = store.read_statistics(where, "folds")
    (crossed,) = [each for each in folds["models"] if each["kind"] == "trained"]
    assert (crossed["model"], crossed["n"], crossed["folds"]["num"]) == ("scratch", 72, 3)
    assert folds["fractions"]["comparisons"] == []
    checks = {(one["check"], one["model"]): one["status"]
              for one in store.read_leakage(where)["checks"]}  # fmt: skip
    assert checks["scored subject in fine-tuning", "scratch"] == "unknown"
    assert not any(model == "tuned" for _, model in checks)


@pytest.mark.usefixtures("networks")
def test_the_test_split_is_looked_at_only_when_it_is_open(place: Any, config: Any) -> None:
    few: dict[str, Any] = {"backbones": {}}
    closed = load_inputs(config(**few), device="cpu").recipe_digest
    main(config(test="open", **few))
    where = place.root / "stores" / "tiny"
    rows = store.read_predictions(where, "bright")
    assert set(rows[rows["model"] == "tuned"]["split"]) == {"val", "test"}
    line = json.loads((place.root / "openings.jsonl").read_text())
    assert line["recipe_digest"] == closed
    opened = {one["model"]: one["protocol"] for one in line["scores"]["bright"]}
    assert opened["tuned"] == opened["scratch"] == "fine_tuned"
    without = load_inputs(config(finetuned={}, **few), device="cpu")
    assert without.recipe_digest != closed


@pytest.mark.usefixtures("networks")
def test_a_network_that_was_trained_on_the_scored_stops_the_run(place: Any, config: Any) -> None:
    task = place.task(**NO_FLOORS)
    seen = {"subjects": [], "source_digests": []}
    tested = [task.subjects[row] for row in task.rows("test")[:2]]
    folder = place.root / "runs" / "tuned"
    write_part(folder, task, begun="mae", provenance=seen, trained=tested)
    with pytest.raises(LeakageError, match=r"scored subject in fine-tuning: 2 of 32 scored"):
        main(config())
    seen["subjects"] = tested[:1]
    write_part(folder, task, begun="mae", provenance=seen)
    with pytest.raises(LeakageError, match="model tuned, scored subject in pretraining: 1"):
        main(config())


@pytest.mark.usefixtures("networks")
def test_what_a_user_can_get_wrong_is_one_line(place: Any, config: Any) -> None:
    runs = place.root / "runs"
    for name in ("mae", "constant"):
        with pytest.raises(ValueError, match=rf"finetuned\.{name}: this is the name of a"):
            load_inputs(config(finetuned={name: str(runs / "tuned")}), device="cpu")
    with pytest.raises(ValueError, match=r"finetuned\.it: .*no such folder"):
        load_inputs(config(finetuned={"it": str(runs / "nowhere")}), device="cpu")
    with pytest.raises(ValueError, match=r"finetuned\.It: a name is of lower-case letters"):
        load_inputs(config(finetuned={"It": str(runs / "tuned")}), device="cpu")
    with pytest.raises(EmbedderError, match=r"backbones\.mae"):
        load_inputs(config(backbones={"mae": str(runs / "nowhere")}), device="cpu")


def test_a_published_network_is_applied_as_it_is(place: Any, config: Any) -> None:
    task = place.task(**NO_FLOORS)
    part = write_part(place.root / "runs" / "scratch", task)
    vit_config = VitConfig(patch_size=(4, 4, 4), size="toy", embed_dim=24, num_heads=1, depth=1)
    torch.manual_seed(3)
    vit = build_vit(vit_config)
    settings = HeadSettings(target=target_of(task, task.rows("train")), head=HeadConfig())
    head = settings.build(vit)
    torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    save_model(
        part / "model",
        vit=vit,
        vit_config=vit_config,
        preprocessing=Preprocessing(crop_shape=(8, 8, 12)),
        head=head,
        settings=settings,
        recipe={"name": "toy"},
        provenance={"finished": "2026-02-03"},
    )
    runs = place.root / "runs"
    cards = [str(place.card(**NO_FLOORS))]
    main(config(finetuned={"scratch": str(runs / "scratch")}, backbones={}, tasks=cards))
    rows = store.read_predictions(place.root / "stores" / "tiny", "bright")
    rows = rows[rows["model"] == "scratch"].set_index("subject")
    network = load_network(part / "model", device="cpu")
    val = task.rows("val")
    for row in val:
        scan = read_scan(task.scans[row][0].scan, modality="MR")
        expected = network.score_scan(scan)[0]
        assert rows.loc[task.subjects[row], "score"] == pytest.approx(expected, abs=1e-6)
    assert rows["score"].nunique() == len(val)
