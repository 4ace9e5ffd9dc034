"""A fine-tuned model comes back as it was and tells what its kind of task asks, or is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.artefact.golden import check_golden, golden_pair
from foundation.artefact.head import Tuned
from foundation.artefact.index import INDEX
from foundation.artefact.pushing import push_backbone
from foundation.artefact.saving import seal
from foundation.artefact.tensors import write_tensors
from foundation.backbone import BackboneError, load_backbone
from foundation.convert import convert
from foundation.converting.network import ConvertError
from foundation.embedding.features import InputError
from foundation.finetuning.calibration import Calibration, apply_calibration
from foundation.finetuning.decoders import DecoderConfig
from foundation.finetuning.links import scores_of, survival_at_ends
from foundation.finetuning.network import TunedNetwork
from foundation.model import HeadSettings, Model, load_model, save_model
from foundation.predicting.cells import cells_of, entropy, time_at
from foundation.vit import build_vit
from shards.scan import Scan, read_scan
from tests.foundation.tuned_models import (
    CONFIG,
    PREPROCESSING,
    TARGETS,
    settings_of,
    write_model,
)

LABELLED = tuple(kind for kind in TARGETS if kind != "segmentation")
MINE = Calibration(fitted_on="validation", num_subjects=50, temperatures=(2.0,), limits=(0.6,))


def scan(*, seed: int = 1) -> Scan:
    voxels = np.random.default_rng(seed).integers(-900, 900, (11, 21, 19)).astype(np.int16)
    return Scan(voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT", metadata={})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / kind, kind) for kind in TARGETS}


@pytest.mark.parametrize("kind", LABELLED)
def test_a_model_scores_by_its_head_on_the_features_of_its_backbone(
    models: dict[str, Path], kind: str
) -> None:
    model = load_model(models[kind])
    features = load_backbone(models[kind]).embed_scan(scan())
    joined = torch.from_numpy(np.concatenate([features["cls"], features["mean"]]))[None]
    torch.manual_seed(0)
    head = settings_of(kind).build(build_vit(CONFIG))
    head.load_state_dict(load_file(models[kind] / "head.safetensors"))
    logits = head.eval()(joined).detach()
    expected = scores_of(logits, TARGETS[kind])[0].numpy()
    found = model.score_scan(scan())
    assert found.shape == (len(TARGETS[kind].outputs),)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if kind == "survival":
        outcome = model.predict_scan(scan()).outcome
        np.testing.assert_allclose(
            outcome["survival"], survival_at_ends(logits)[0].numpy(), rtol=1e-5
        )
    other = model.score_scan(scan(seed=2))
    assert not np.allclose(found, other)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match=r"is of kind .*: call score_scan"):
        model.segment(scan())


def test_masks_lie_on_the_scans_own_grid(models: dict[str, Path]) -> None:
    model = load_model(models["segmentation"])
    classes, labels = model.classes_of(scan()), model.segment(scan())
    assert classes.shape == labels.shape == (11, 21, 19)
    assert set(np.unique(classes)) <= {0, 1, 2}
    assert len(np.unique(classes)) > 1
    np.testing.assert_array_equal(labels, np.array([0, 7, 2], np.uint8)[classes])
    found = model.predict_scan(scan())
    np.testing.assert_array_equal(found.mask, labels)
    for number, name in enumerate(("vein", "artery"), start=1):
        volume = (classes == number).sum() * 4.5 / 1000
        assert found[f"volume_{name}_ml"] == pytest.approx(volume)
    assert 0 < float(found["uncertainty"]) <= 1
    with pytest.raises(InputError, match="is of kind segmentation: call classes_of or segment"):
        model.score_scan(scan())


@pytest.mark.parametrize("features", [2, 3])
def test_a_decoder_of_several_maps_comes_back(tmp_path: Path, features: int) -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG)
    settings = HeadSettings(
        target=TARGETS["segmentation"], decoder=DecoderConfig(kind="unetr", features=features)
    )
    decoder = settings.build(vit)
    save_model(
        tmp_path / "model",
        vit=vit,
        vit_config=CONFIG,
        preprocessing=PREPROCESSING,
        head=decoder,
        settings=settings,
        recipe={},
        provenance={},
    )
    model = load_model(tmp_path / "model")
    assert model.settings == settings
    before = Model(
        model.backbone, TunedNetwork(model.backbone.vit, decoder, settings.target), settings
    )
    np.testing.assert_array_equal(model.classes_of(scan()), before.classes_of(scan()))


def test_a_model_is_a_backbone_too_but_not_the_other_way(
    models: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load_backbone(models["binary"])
    assert "predicts  fine-tuned for tumour: binary (0, 1); load_model" in backbone.report()
    assert "schema 2" in backbone.report()
    assert load_model(models["binary"]).digest == backbone.digest
    with pytest.raises(BackboneError, match="demo: is a backbone without a head"):
        load_model("demo")
    told: list[str] = []
    load_model(models["binary"], say=told.append)
    assert told == [backbone.report()]
    settings = json.loads((models["segmentation"] / "head.json").read_text())
    assert list(settings["target"]["mask_values"]) == ["vein", "artery"]
    write_model(tmp_path / "again", "binary")
    assert load_model(tmp_path / "again").digest == backbone.digest
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        *(path.name for path in INDEX.with_name("demo").iterdir()),
        "head.json",
        "head.safetensors",
    }


@pytest.mark.parametrize("to", ["folder", "model.tar.gz"])
def test_a_model_is_published_with_its_head(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setenv("SCANFM_CACHE", str(tmp_path / "cache"))
    at = push_backbone(models["binary"], tmp_path / to)
    assert load_model(at).digest == load_model(models["binary"]).digest


def test_a_conversion_would_lose_the_head(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="is a fine-tuned model, and its head cannot be"):
        convert(models["binary"], to="torch", out=tmp_path / "b.pt2")
    assert not any(tmp_path.iterdir())


def test_cells_of_classes() -> None:
    shares = np.array([0.8])
    found = cells_of({"scores": shares}, TARGETS["binary"], MINE)
    calm = math.sqrt(0.8) / (math.sqrt(0.8) + math.sqrt(0.2))  # at temperature 2
    assert list(found) == [
        "label",
        "probability_0",
        "probability_1",
        "calibrated",
        "uncertainty",
        "set",
    ]
    assert found["label"] == "1"
    assert found["probability_1"] == pytest.approx(calm)
    assert found["probability_0"] == pytest.approx(1 - calm)
    nats = -calm * math.log(calm) - (1 - calm) * math.log(1 - calm)
    assert found["uncertainty"] == pytest.approx(nats / math.log(2))
    assert found["set"] == "1"  # 1 - 0.8 is within 0.6, 1 - 0.2 is not
    wide = MINE.model_copy(update={"limits": (0.9,)})
    assert cells_of({"scores": shares}, TARGETS["binary"], wide)["set"] == "0; 1"
    three = {"scores": np.array([0.5, 0.1, 0.4])}
    bare = cells_of(three, TARGETS["multiclass"], None)
    assert (bare["label"], bare["set"]) == ("liver", "")
    assert bare["probability_heart"] == pytest.approx(0.4)
    told = cells_of(three, TARGETS["multiclass"], MINE)
    expected = apply_calibration(three["scores"][None], MINE, TARGETS["multiclass"])[0]
    assert told["probability_liver"] == pytest.approx(expected[0])
    assert told["set"] == "liver; heart"
    assert cells_of(three, TARGETS["ordinal"], None)["label"] == "I"
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(1)
    assert entropy(np.array([1.0, 0.0, 0.0])) == 0


def test_cells_of_several_labels_and_of_a_quantity() -> None:
    both = Calibration(
        fitted_on="validation", num_subjects=50, temperatures=(1.0, None), limits=(0.95, None)
    )
    found = cells_of({"scores": np.array([0.9, 0.5])}, TARGETS["multilabel"], both)
    assert found["label"] == "gas; fluid"
    assert (found["set_gas"], found["set_fluid"]) == ("0; 1", "")
    nats = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert found["uncertainty"] == pytest.approx((nats / math.log(2) + 1) / 2)
    age = {"scores": np.array([61.0])}
    half = Calibration(fitted_on="validation", num_subjects=50, limits=(7.5,))
    assert cells_of(age, TARGETS["regression"], half) == {"value": 61, "low": 53.5, "high": 68.5}
    assert math.isnan(float(cells_of(age, TARGETS["regression"], None)["low"]))


def test_cells_of_a_survival() -> None:
    """0.95 at 100 days, 0.65 at 250, 0.35 at 400."""
    outcome = {"scores": np.array([-300.0]), "survival": np.array([0.95, 0.65, 0.35])}
    found = cells_of(outcome, TARGETS["survival"], None)
    assert list(found)[:4] == ["risk", "survival_100d", "survival_250d", "survival_400d"]
    assert found["risk"] == -300
    assert found["survival_250d"] == 0.65
    assert found["median_days"] == pytest.approx(325)
    assert found["low_days"] == pytest.approx(125)
    assert math.isnan(float(found["high_days"]))
    assert time_at(np.array([0.5, 0.5, 0.1]), share=0.5, ends_days=(1.0, 2.0, 3.0)) == 1.0


def test_a_file_is_predicted_as_its_scan(models: dict[str, Path], tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-500, 500, (18, 17, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    model = load_model(models["multiclass"])
    found = model.predict(tmp_path / "scan.nii.gz", modality="CT")
    same = model.predict_scan(read_scan(tmp_path / "scan.nii.gz", modality="CT"))
    assert found.cells == same.cells
    assert found["label"] in TARGETS["multiclass"].classes


def test_several_sequences_at_once_are_refused(tmp_path: Path) -> None:
    pair = CONFIG.model_copy(update={"in_chans": 2})
    vit, settings = build_vit(pair), settings_of("binary")
    save_model(
        tmp_path / "pair",
        vit=vit,
        vit_config=pair,
        preprocessing=PREPROCESSING,
        head=settings.build(vit),
        settings=settings,
        recipe={},
        provenance={},
    )
    with pytest.raises(InputError, match="takes 2 sequences at once"):
        load_model(tmp_path / "pair")


def change_settings(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "head.json").read_text())
    change(content)
    (folder / "head.json").write_text(json.dumps(content))


def other_logits(folder: Path) -> None:
    tensors = load_file(folder / "head.safetensors")
    name = "layers.0.bias"
    save_file({**tensors, name: tensors[name] + 2e-3}, folder / "head.safetensors")


def half_a_head(folder: Path) -> None:
    (folder / "head.json").unlink()


def no_head(folder: Path) -> None:
    for name in ("head.json", "head.safetensors"):
        (folder / name).unlink()


def a_tensor_too_many(folder: Path) -> None:
    tensors = load_file(folder / "head.safetensors")
    save_file({**tensors, "surprise": torch.zeros(2)}, folder / "head.safetensors")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "head.safetensors")
    name = "layers.0.weight"
    save_file({**tensors, name: tensors[name] * torch.nan}, folder / "head.safetensors")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (half_a_head, "must list exactly the files of a backbone; differs in head.json"),
        (no_head, "holds logits of a head, which is not there"),
        (a_tensor_too_many, "holds the foreign tensor 'surprise'"),
        (not_finite, "'layers.0.weight' holds values that are not finite"),
        (other_logits, r"the stored output of the head comes out 0\.001[0-9]* away"),
        (
            lambda f: change_settings(f, lambda c: c.update(hed=1)),
            r"head\.json: unknown key 'hed', did you mean 'head'",
        ),
        (
            lambda f: change_settings(f, lambda c: c.update(head=None)),
            "either head or decoder, one of them",
        ),
        (
            lambda f: change_settings(f, lambda c: c["target"].update(outputs=["a", "b"])),
            "binary has 1 outputs",
        ),
        (
            lambda f: change_settings(f, lambda c: c["target"].update(classes=["a"])),
            "binary has 2 classes",
        ),
        (
            lambda f: change_settings(
                f,
                lambda c: c.update(
                    calibration={"fitted_on": "validation", "num_subjects": 9, "limits": [1, 2]}
                ),
            ),
            "calibration.limits: 2 values, expected 1",
        ),
        (
            lambda f: change_settings(f, lambda c: c["head"].update(hidden_dim=5)),
            r"lacks 'layers\.1\.bias'",
        ),
    ],
)
def test_damage_to_a_head_is_one_clear_line(
    models: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], line: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["binary"], folder)
    damage(folder)
    seal(folder)
    with pytest.raises(BackboneError, match=line) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_large_logits_may_differ_by_their_rounding(tmp_path: Path) -> None:
    """Another processor rounds otherwise: of logits near 1000 the sixth digit, never the fourth."""
    settings = settings_of("binary")
    vit = build_vit(CONFIG).eval()
    network = TunedNetwork(vit, settings.build(vit), settings.target).eval()
    tuned = Tuned(settings, network, 4)
    bias = network.head.get_parameter("layers.0.bias").data
    bias.fill_(1000.0)
    write_tensors(golden_pair(vit, tuned=tuned), tmp_path / "golden", mode_of=Path(__file__))
    bias.add_(0.05)
    assert 0 < check_golden(vit, tmp_path / "golden", tuned=tuned) <= 1e-4
    bias.add_(0.1)
    with pytest.raises(BackboneError, match=r"output of the head comes out 0\.00015 away"):
        check_golden(vit, tmp_path / "golden", tuned=tuned)
