"""A published backbone comes back as it was, and every kind of damage is one clear line."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.backbone import (
    Backbone,
    BackboneError,
    load_backbone,
    random_backbone,
    save_backbone,
)
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from foundation.windows import prepare
from shards.scan import Scan

CONFIG = VitConfig(size="toy", patch_size=(4, 8, 6), depth=2)
PREPROCESSING = Preprocessing(crop_shape=(8, 16, 18))
PROVENANCE = {
    "name": "small",
    "method": "mae",
    "hours": 0.5,
    "world_size": 2,
    "device": "CPU",
    "shards": {
        "name": "demo",
        "digest": "a" * 64,
        "num_samples": 3,
        "num_subjects": 2,
        "sources": [{"name": "c", "num_samples": 3, "licence": "CC0-1.0", "source": "here"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save(tmp_path / "backbone")
    return tmp_path / "backbone"


def save(folder: Path) -> None:
    save_backbone(
        folder,
        vit=build_vit(CONFIG),
        vit_config=CONFIG,
        preprocessing=PREPROCESSING,
        recipe={"name": "small", "vit": {"size": "toy"}},
        provenance=PROVENANCE,
    )


def scan(shape: tuple[int, int, int] = (11, 21, 19)) -> Scan:
    voxels = np.random.default_rng(1).integers(-900, 900, shape).astype(np.int16)
    return Scan(voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT", metadata={})


def reseal(folder: Path) -> None:
    """Bring SHA256SUMS in line with files that were changed."""
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def test_a_backbone_comes_back_with_equal_features(folder: Path) -> None:
    torch.manual_seed(3)
    identity = {"preprocessing": PREPROCESSING, "digest": "", "provenance": {}}
    before = Backbone(build_vit(CONFIG), **identity).embed_scan(scan())
    loaded = load_backbone(folder)
    for name, feature in loaded.embed_scan(scan()).items():
        assert feature.shape == (96,)
        assert feature.dtype == np.float32
        np.testing.assert_array_equal(feature, before[name])
    assert loaded.provenance == PROVENANCE
    assert loaded.digest == load_backbone(folder).digest
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_same_content_has_the_same_digest_and_no_pickle(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    save(tmp_path / "again")
    assert load_backbone(tmp_path / "again").digest == load_backbone(folder).digest
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "golden.safetensors", "provenance.json", "README.md"} < names
    assert not any(name.endswith((".pt", ".pth", ".pkl", ".bin")) for name in names)
    assert "CC0-1.0" in (folder / "README.md").read_text()


def test_saving_over_an_old_backbone_replaces_all_of_it(folder: Path) -> None:
    before = load_backbone(folder).digest
    (folder / "stray").write_text("old")
    torch.manual_seed(4)
    save(folder)
    assert load_backbone(folder).digest != before
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]


def corrupt_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def drop_file(folder: Path) -> None:
    (folder / "golden.safetensors").unlink()


def drop_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def foreign_sums(folder: Path) -> None:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  ../../secret\n")


def newer_schema(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "schema_version": 99}))
    reseal(folder)


def unknown_config_key(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["vit"]["patchsize"] = 3
    (folder / "config.json").write_text(json.dumps(content))
    reseal(folder)


def missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    reseal(folder)


def foreign_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "surprise": torch.zeros(2)}, folder / "model.safetensors")
    reseal(folder)


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "norm.bias": torch.zeros(95)}, folder / "model.safetensors")
    reseal(folder)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "norm.bias": tensors["norm.bias"] + 2e-4}, folder / "model.safetensors")
    reseal(folder)


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))
    reseal(folder)


class Bomb:
    """Runs code when something unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (corrupt_weights, "model.safetensors: its SHA-256 is not the one"),
        (drop_file, "golden.safetensors: missing"),
        (drop_sums, "has no SHA256SUMS"),
        (foreign_sums, "must list exactly the files of a backbone; differs in ../../secret"),
        (newer_schema, "schema version 99, this code reads 1"),
        (unknown_config_key, "unknown key 'patchsize', did you mean 'patch_size'"),
        (missing_tensor, "lacks 'norm.weight'"),
        (foreign_tensor, "foreign tensor 'surprise'"),
        (wrong_shape, r"'norm.bias' has shape \(95,\), config.json asks \(96,\)"),
        (other_weights, "embedding comes out 0.0002 away"),
        (a_pickle, "not a safetensors file"),
    ],
)
def test_damage_is_one_clear_line(folder: Path, damage: Callable[[Path], None], line: str) -> None:
    damage(folder)
    with pytest.raises(BackboneError, match=line) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "exploded").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="is no folder; a backbone is the folder backbone/"):
        load_backbone(tmp_path / "nowhere")


def test_a_random_backbone_follows_its_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (
        random_backbone(CONFIG, preprocessing=PREPROCESSING, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    features = [backbone.embed_scan(scan())["cls"] for backbone in (one, same, other)]
    np.testing.assert_array_equal(features[0], features[1])
    assert not np.allclose(features[0], features[2])
    assert one.digest == same.digest != other.digest


def test_windows_are_pooled_and_padding_does_not_count() -> None:
    """Against the definition: each window by itself, patch tokens weighted by what they see."""
    backbone = random_backbone(CONFIG, preprocessing=PREPROCESSING, seed=1)
    wide = scan((8, 16, 27))
    volume, inside, _ = prepare(wide, preprocessing=PREPROCESSING, device="cpu")
    assert volume.shape == wide.voxels.shape
    assert inside.all()
    with torch.inference_mode():
        left, right = (backbone.vit(volume[None, None, ..., s : s + 18]) for s in (0, 9))
    found = backbone.embed_scan(wide)
    cls = (left.cls_token + right.cls_token)[0] / 2
    mean = torch.cat([left.patch_tokens, right.patch_tokens], dim=1).mean(dim=1)[0]
    np.testing.assert_allclose(found["cls"], cls.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["mean"], mean.numpy(), atol=1e-5)

    # 4 of 8 slices are inside, in the middle: no row of patches is free of the scan along D.
    # 4 of 18 columns are inside, all in the second of three patches.
    narrow = scan((4, 16, 4))
    volume, inside, _ = prepare(narrow, preprocessing=PREPROCESSING, device="cpu")
    assert volume.shape == PREPROCESSING.crop_shape
    assert inside[2:6, :, 7:11].all()
    assert inside.sum() == narrow.voxels.size
    with torch.inference_mode():
        tokens = backbone.vit(volume[None, None]).patch_tokens.unflatten(1, (2, 2, 3))
    np.testing.assert_allclose(
        backbone.embed_scan(narrow)["mean"], tokens[0, :, :, 1].mean(dim=(0, 1)).numpy(), atol=1e-5
    )


def test_a_scan_is_resampled_to_the_contract() -> None:
    contract = PREPROCESSING.model_copy(update={"spacing_mm": (3.0, 2.0, 3.0)})
    backbone = random_backbone(CONFIG, preprocessing=contract, seed=1)
    native = random_backbone(CONFIG, preprocessing=PREPROCESSING, seed=1)
    resampled = backbone.embed_scan(scan())["cls"]
    assert not np.allclose(resampled, native.embed_scan(scan())["cls"])
    np.testing.assert_array_equal(
        resampled, native.embed_scan(scan(), spacing_mm=(3.0, 2.0, 3.0))["cls"]
    )
