"""The model card tells what a person must know, from what the run has recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundation.artefact.benchmark import (
    BenchmarkError,
    Scored,
    model_with,
    read_statistics,
    scored,
)
from foundation.artefact.curve import in_bars, loss_curve
from foundation.artefact.footprint import compute_in_words, energy_in_words
from foundation.artefact.index import INDEX
from foundation.artefact.licences import licence, strictest
from foundation.artefact.pushing import push_backbone
from foundation.backbone import load_backbone
from foundation.finetuning.calibration import Calibration
from foundation.preprocessing import Preprocessing
from foundation.push import main
from foundation.running.card import licences_of, model_card
from foundation.vit import VitConfig
from tests.foundation.tuned_models import TARGETS, settings_of, write_model

CONFIG = VitConfig(size="toy", patch_size=(4, 8, 6), depth=2)
PREPROCESSING = Preprocessing(crop_shape=(8, 16, 18))
DEMO = INDEX.with_name("demo")


def source(licence: str) -> dict[str, Any]:
    return {"name": "c | d", "num_samples": 3, "licence": licence, "source": "of\nhere"}


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "method": "mae",
        "steps": 100,
        "hours": 2.0,
        "world_size": 4,
        "device": "NVIDIA H100 80GB HBM3",
        "recipe_digest": "c" * 64,
        "shards": {
            "name": "demo",
            "digest": "a" * 64,
            "num_samples": 3,
            "num_subjects": 2,
            "modalities": {"CT": 3},
            "sources": [source("CC BY 4.0"), source("CC0-1.0")],
            "folders": [{"name": "demo", "digest": "b" * 64, "num_samples": 3, "num_subjects": 2}],
        },
        "loss_curve": [[50, 0.9], [100, 0.5]],
        **changes,
    }


def card(**changes: Any) -> str:
    recipe = {"mae": {"mask_ratio": 0.75}, "train": {"steps": 100, "micro_batch": None}}
    return model_card(
        CONFIG, preprocessing=PREPROCESSING, provenance=provenance(**changes), recipe=recipe
    )


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_card_tells_data_licence_recipe_curve_and_cost() -> None:
    text = card()
    for line in [
        "| compute | 2.00 h x 4 NVIDIA H100 80GB HBM3 = 8.00 device hours |",
        "3 scans of 2 subjects (3 CT).",
        "| c \\| d | 3 | CC BY 4.0 | of here |",
        f"| demo | 3 | 2 | `{'b' * 64}` |",
        "| mae | mask_ratio 0.75 |",
        "| train | steps 100 |",
        "Loss `█▁` from 0.9 to 0.5",
        "| loss | 0.9 | 0.5 |",
        "**CC BY 4.0** (attribution: name the source)",
    ]:
        assert line in text
    assert front_matter(text)["license"] == "cc-by-4.0"
    assert "about 7.3 kWh, not measured: each device at 700 W" in text
    assert text.index("## Use") < text.index("## Intended use") < text.index("## Limits")
    assert "## Benchmark" not in text


def test_a_card_of_an_unknown_past_says_so() -> None:
    text = model_card(CONFIG, preprocessing=PREPROCESSING, provenance={}, recipe="a: text")
    assert "Unknown." in text
    assert "| compute | unknown |" in text
    assert front_matter(text)["license"] == "other"
    assert front_matter(text)["license_name"] == "unknown"
    assert "## Recipe" not in text


@pytest.mark.parametrize(
    ("names", "most", "hub"),
    [
        (["CC0-1.0"], "CC0-1.0", "cc0-1.0"),
        (["CC0-1.0", "MIT"], "MIT", "mit"),
        (["Apache-2.0", "CC BY-SA 4.0"], "CC BY-SA 4.0", "cc-by-sa-4.0"),
        (["CC BY-NC 4.0", "CC BY-SA 4.0"], "CC BY-NC 4.0", "cc-by-nc-4.0"),
        (["CC BY-NC-SA 4.0", "CC-BY-NC-ND-4.0"], "CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0"),
        (["CC BY 4.0 (CT), MIT (MR)", "CC0-1.0"], "MIT", "mit"),
        (["CC BY-NC 4.0", "data use agreement"], "data use agreement", "other"),
        ([], "unknown", "other"),
    ],
)
def test_the_most_restrictive_licence_wins(names: list[str], most: str, hub: str) -> None:
    assert strictest(names).name == most
    assert strictest(names).hub == hub


def test_licences_are_ranked_by_what_they_ask() -> None:
    order = [
        "CC0-1.0",
        "BSD-3-Clause",
        "CC-BY-SA-4.0",
        "cc-by-nc-4.0",
        "CC BY ND 4.0",
        "by request",
    ]
    ranks = [licence(name).rank for name in order]
    assert ranks == sorted(set(ranks))


def test_weights_that_training_began_from_bring_their_licence() -> None:
    begun = {
        "name": "timm:x",
        "architecture": "vit",
        "licence": "cc-by-nc-4.0",
        "digest": "d" * 64,
        "report": {"coverage": 0.9},
    }
    assert licences_of(provenance(initialised_from=begun))[-1] == "cc-by-nc-4.0"
    text = card(initialised_from=begun)
    assert front_matter(text)["license"] == "cc-by-nc-4.0"
    assert "Those of the other parts hold beside it: CC BY 4.0; CC0-1.0." in " ".join(text.split())


def test_an_estimate_of_energy_names_its_assumption() -> None:
    ran = {"hours": 10.0, "world_size": 2, "device": "NVIDIA A100-SXM4-80GB"}
    assert compute_in_words(ran).endswith("= 20.00 device hours")
    assert energy_in_words(ran).startswith("about 10 kWh, not measured: each device at 400 W")
    assert energy_in_words({**ran, "device": "Another 9000"}) == "unknown"
    assert energy_in_words({}) == compute_in_words({}) == "unknown"


def test_a_curve_is_of_means_over_equal_spans() -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 9)]
    lines += [{"step": 5, "incident": "spike"}, {"step": 9, "loss": float("nan")}]
    assert loss_curve(lines, points=4) == [[2, 1.5], [4, 3.5], [6, 5.5], [8, 7.5]]
    assert loss_curve(lines[:1], points=4) == [[1, 1.0]]
    assert loss_curve([]) == []
    assert in_bars([[2, 1.5], [4, 3.5], [6, 8.5]]) == "▁▃█"
    assert in_bars([[2, 1.5]]) == "▁"


def statistics(*, second: bool = False) -> dict[str, Any]:
    def one(model: str, kind: str, value: float | None, **more: Any) -> dict[str, Any]:
        found = {"value": value, "low": 0.5, "high": 0.9, "reason": None, **more}
        protocol = "linear"
        return {
            "model": model,
            "kind": kind,
            "protocol": protocol,
            "n": 40,
            "scores": {"auroc": found},
        }

    models = [one("mae", "backbone", 0.75), one("age", "floor", 0.6), one("voxels", "floor", 0.7)]
    models += [one("none", "floor", None, reason="one class")]
    models += [one("dino", "backbone", None, reason="one class")] if second else []
    return {"task": "stroke", "metric": "auroc", "split": "val", "models": models}


def test_rows_of_a_benchmark() -> None:
    row = Scored("stroke", "linear", "auroc", "val", 40, "0.750 [0.500, 0.900]", "")
    assert scored([statistics()], model=None) == [row._replace(floor="0.700 [0.500, 0.900] voxels")]
    (dino,) = scored([statistics(second=True)], model="dino")
    assert dino.score == "none (one class)"
    with pytest.raises(BenchmarkError, match=r"several: backbone dino, mae; name one"):
        scored([statistics(second=True)], model=None)
    with pytest.raises(BenchmarkError, match="no backbone 'mea', only mae"):
        scored([statistics()], model="mea")


def test_rows_of_a_fine_tuned_model_are_of_its_task() -> None:
    trained = {**statistics()["models"][0], "model": "mae_tuned", "kind": "trained"}
    stroke = statistics()
    stroke["models"].append({**trained, "protocol": "fine_tuned"})
    copd = {**stroke, "task": "copd"}
    (row,) = scored([copd, stroke], model=None, tuned_for="stroke")
    assert (row.task, row.protocol, row.n) == ("stroke", "fine_tuned", 40)
    with pytest.raises(BenchmarkError, match="no model trained for this task 'mae', only mae_t"):
        scored([stroke], model="mae", tuned_for="stroke")
    with pytest.raises(BenchmarkError, match="'mae_tuned', only none"):
        scored([stroke], model="mae_tuned", tuned_for="cancer")


def test_a_published_card_holds_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    (store / "statistics").mkdir(parents=True)
    with pytest.raises(BenchmarkError, match="no statistics here"):
        read_statistics(store)
    before = load_backbone(DEMO)
    (store / "statistics/stroke.json").write_text(json.dumps(statistics(second=True)))
    models = {"mae": {"kind": "backbone", "digest": before.digest}}
    (store / "run.json").write_text(json.dumps({"models": models}))
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["push", "demo", str(out), "--store", str(store)])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == f"published: {out}"
    text = (out / "README.md").read_text()
    assert "| stroke | linear | auroc | val | 40 | 0.750 [0.500, 0.900] |" in text
    assert "| mae | mask_ratio 0.75" in text
    published = load_backbone(out)
    assert published.digest != before.digest
    with pytest.raises(BenchmarkError, match=r"has not scored .*, only mae \(.*with --model"):
        model_with(published.digest, store)
    assert model_with(before.digest, store / "statistics/stroke.json") == "mae"
    (store / "statistics/other.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"is not what evaluation\.run writes"):
        read_statistics(store)


TUNED: dict[str, Any] = {
    "title": "Tumour of the kidney",
    "definition": "by histology | of\nthe operation",
    "num_train": 30,
    "num_val": 12,
    "fraction": 0.2,
    "begun": "demo_mae",
    "begun_digest": "d" * 64,
    "tune": "lora",
    "best_step": 40,
    "metric": "auroc",
    "validation": {
        "n": 12,
        "split": "val",
        "scores": {
            "auroc": {"value": 0.8124, "low": 0.61, "high": 0.95},
            "brier": 0.2,
            "nll": {"value": None, "reason": "too few"},
        },
    },
}
CALIBRATION = Calibration(
    fitted_on="validation",
    num_subjects=12,
    temperatures=(None,),
    limits=(0.73,),
    reason="12 subjects are too few for a temperature",
)


def test_a_card_of_a_fine_tuned_model_tells_what_it_predicts_and_how_well() -> None:
    text = model_card(
        CONFIG,
        preprocessing=PREPROCESSING,
        provenance=provenance(**TUNED),
        settings=settings_of("binary", calibration=CALIBRATION),
    )
    for line in [
        "| task | Tumour of the kidney (`tumour`) |",
        "| label | by histology \\| of the operation |",
        "| classes | 0, 1 |",
        f"| begun from | demo_mae (digest `{'d' * 16}`) |",
        "| training subjects | 30, 20% of the training subjects |",
        "| validation subjects | 12 |",
        "| trained | low-rank adapters, merged into the backbone's weights |",
        "| head | features both, dropout 0.0 |",
        "| step kept | 40 |",
        "12 subjects of the split val, which chose the step as well.",
        "| auroc | 0.812 [0.610, 0.950] |",
        "| brier | 0.200 |",
        "| nll | none (too few) |",
        "| fitted on | 12 subjects, validation |",
        "| limit of 90% sets or intervals | 0.73 |",
        "| missing | 12 subjects are too few for a temperature |",
        "python -m foundation.predict THIS_FOLDER SCANS --out predictions.csv\n",
        "Not a medical device",
    ]:
        assert line in text
    assert "scans seen | unknown" not in text
    assert "Validation subjects chose the step" in " ".join(text.split())
    about = front_matter(text)
    assert about["pipeline_tag"] == "image-classification"
    assert about["tags"] == ["medical", "3d", "fine-tuned", "binary", "mae"]
    assert "pretrained without labels" not in text


def test_a_card_of_a_cross_validated_model_does_not_say_that_its_scores_flatter() -> None:
    validation = {**TUNED["validation"], "split": "cv"}
    nothing = Calibration(fitted_on="out of fold", num_subjects=12, reason="12 are too few")
    text = model_card(
        CONFIG,
        preprocessing=PREPROCESSING,
        provenance=provenance(**{**TUNED, "fraction": 0.025, "validation": validation}),
        settings=settings_of("binary", calibration=nothing),
    )
    assert "12 subjects, each by the model of the fold that had not seen it." in text
    assert "Validation subjects chose" not in text
    assert "Its scores are those of the models of the folds" in " ".join(text.split())
    assert "| training subjects | 30, 2.5% of the training subjects |" in text
    assert "| calibration | none: 12 are too few |" in text
    assert max(len(line) for line in text.split("## Limits")[1].splitlines()) <= 100


@pytest.mark.parametrize("kind", TARGETS)
def test_a_card_of_any_kind_of_model_whose_past_is_unknown(kind: str) -> None:
    text = model_card(
        CONFIG, preprocessing=PREPROCESSING, provenance={}, settings=settings_of(kind)
    )
    for line in ["| label | not defined", "| begun from | unknown |", "| calibration | none |"]:
        assert line in text
    assert "## Validation" not in text
    is_mask = kind == "segmentation"
    assert ("--masks masks/" in text) == is_mask
    assert ("| values in a mask | 7 vein, 2 artery |" in text) == is_mask
    assert ("| intervals | 3, up to 400 days |" in text) == (kind == "survival")


def test_a_benchmark_on_the_card_of_a_model_leaves_its_own_sections(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "regression", provenance={"name": "age"})
    row = Scored("age", "linear", "r2", "test", 9, "0.5", "none")
    at = push_backbone(folder, tmp_path / "out", benchmark=[row])
    text = (Path(at) / "README.md").read_text()
    assert "## Benchmark" in text
    assert "| kind | regression |" in text
