"""What a run may begin from: read, checked, taken over and told, or refused in one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from foundation.backbone import BackboneError, load_backbone, save_backbone
from foundation.beginning.initial import (
    InitialConfig,
    InitialError,
    begin_from,
    find_beginning,
    keep_beginning,
    kept_beginning,
    with_beginning,
)
from foundation.beginning.sources import SourceError
from foundation.preprocessing import Preprocessing
from foundation.vit import Vit3d, VitConfig, build_vit
from recipes.load import RecipeError, parse

TARGET = VitConfig(
    size="tiny", depth=2, num_heads=3, patch_size=(4, 8, 16), position="learned",
    position_grid=(2, 3, 5),
)  # fmt: skip
OWN = VitConfig(size="toy", depth=2, patch_size=(4, 8, 6), in_chans=2)
PROVENANCE = {
    "name": "first",
    "method": "mae",
    "hours": 0.5,
    "world_size": 2,
    "device": "CPU",
    "subjects": ["b", "c"],
    "source_digests": ["2" * 64],
    "shards": {
        "name": "demo",
        "digest": "a" * 64,
        "num_samples": 3,
        "num_subjects": 2,
        "sources": [{"name": "x", "num_samples": 3, "licence": "CC0-1.0", "source": "here"}],
    },
    "initialised_from": {
        "name": "timm:vit_base_patch16_224.mae",
        "architecture": "vit_base_patch16_224.mae",
        "licence": "cc-by-nc-4.0",
        "digest": "b" * 64,
        "report": {"coverage": 1.0},
    },
}


def flat_model(architecture: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 64, "depth": 2, "num_classes": 3}
    return timm.create_model(architecture, pretrained=False, **{**settings, **options})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(flat_model().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published backbone of two channels."""
    folder = tmp_path_factory.mktemp("own") / "backbone"
    torch.manual_seed(5)
    save_backbone(
        folder,
        vit=build_vit(OWN),
        vit_config=OWN,
        preprocessing=Preprocessing(crop_shape=(8, 16, 18)),
        recipe={},
        provenance=PROVENANCE,
    )
    return folder


def section(weights: object, **about: object) -> InitialConfig:
    return InitialConfig(weights=str(weights), **about)


def of_file(path: Path, **about: object) -> InitialConfig:
    told = {"architecture": "vit_tiny_patch16_224", "licence": "apache-2.0"}
    return section(path, **{**told, **about})


def begun(config: InitialConfig, vit_config: VitConfig) -> Vit3d:
    torch.manual_seed(9)
    vit = build_vit(vit_config)
    found = find_beginning(config, vit_config=vit_config).source.digest
    begin_from(vit, config, vit_config=vit_config, digest=found)
    return vit.eval()


def test_a_file_is_taken_over_and_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beginning = find_beginning(of_file(file), vit_config=TARGET)
    keep_beginning(tmp_path, beginning)
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith(f"begins  {file} (apache-2.0): 99.9% of the backbone, 28 tensors")
    assert "        resized: position_table, patch_embed.weight" in more
    assert "        missing, left as drawn: registers" in more
    assert "        unexpected: head.bias, head.weight" in more
    kept = kept_beginning(tmp_path)
    assert kept is not None
    assert kept["architecture"] == "vit_tiny_patch16_224"
    assert len(kept["digest"]) == 64
    assert len(kept["report"]["loaded"]) == 28
    assert kept_beginning(file.parent) is None

    vit = begun(of_file(file), TARGET)
    qkv = flat_model().state_dict()["blocks.1.attn.qkv.weight"]
    assert torch.equal(vit.blocks[1].attn.qkv.weight, qkv)
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_what_is_drawn_later_does_not_depend_on_the_reading(file: Path) -> None:
    torch.manual_seed(3)
    build_vit(TARGET)
    expected = torch.rand(4)
    torch.manual_seed(3)
    vit = build_vit(TARGET)
    config = of_file(file)
    digest = find_beginning(config, vit_config=TARGET).source.digest
    begin_from(vit, config, vit_config=TARGET, digest=digest)
    assert torch.equal(torch.rand(4), expected)
    with pytest.raises(InitialError, match="not the same on every rank"):
        begin_from(vit, config, vit_config=TARGET, digest="0" * 64)


def test_a_network_of_the_hub_brings_its_licence_and_its_pictures_normalisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub is played by timm's own builder, whose weights are drawn."""
    build = timm.create_model
    asked = []

    def from_hub(name: str, *, pretrained: bool) -> nn.Module:
        if pretrained:
            asked.append(name)
            torch.manual_seed(1)
        return build(name, pretrained=False, depth=1)

    monkeypatch.setattr(timm, "create_model", from_hub)
    tree = {"embed_dim": 768, "num_heads": 12, "depth": 1, "patch_size": (2, 16, 16)}
    vit_config = VitConfig(**tree, num_registers=0, position="rope")
    config = section("timm:vit_base_patch16_224.mae")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    beginning = find_beginning(config, vit_config=vit_config)
    assert torch.equal(torch.get_rng_state(), before)
    assert asked == ["vit_base_patch16_224.mae"]
    assert beginning.source.licence == "cc-by-nc-4.0"
    assert beginning.fitted.report.unused == ("pos_embed",)
    assert beginning.source.digest == find_beginning(config, vit_config=vit_config).source.digest

    # Air, -1, is what black was: 0 before ImageNet's mean and deviation.
    model = from_hub("vit_base_patch16_224.mae", pretrained=True)
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    expected = model.patch_embed(black[None, :, None, None].expand(1, 3, 224, 224))[0, 0]
    found = beginning.fitted.tensors
    air = found["patch_embed.bias"] - found["patch_embed.weight"].sum(dim=1)
    torch.testing.assert_close(air, expected, atol=1e-4, rtol=1e-4)


def test_a_hub_out_of_reach_is_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def from_hub(name: str, *, pretrained: bool) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nand much more")
        return build(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", from_hub)
    config = section("timm:vit_tiny_patch16_224")
    with pytest.raises(SourceError, match=r"ConnectionError: no route to host\); .* bring") as told:
        find_beginning(config, vit_config=TARGET)
    assert "\n" not in str(told.value)


def test_our_own_backbone_goes_on_as_it_is(own: Path) -> None:
    vit = begun(section(own, min_coverage=1.0), OWN)
    expected = load_backbone(own).vit.state_dict()
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    report = find_beginning(section(own), vit_config=OWN).fitted.report
    assert set(report.loaded) == set(expected)
    assert report.coverage == 1


@torch.inference_mode()
def test_our_own_backbone_takes_other_channels_and_patches(own: Path) -> None:
    """One channel for two, and enlarged patches: an enlarged volume is embedded as before."""
    vit = begun(section(own), OWN.model_copy(update={"in_chans": 1, "patch_size": (4, 16, 12)}))
    source = load_backbone(own).vit
    generator = torch.Generator().manual_seed(6)
    patch = torch.rand(3, 1, 4, 8, 6, generator=generator)
    enlarged = nn.functional.interpolate(
        patch[:, 0], (16, 12), mode="bicubic", antialias=True, align_corners=False
    )
    expected = source.patch_embed(patch.expand(-1, 2, -1, -1, -1).flatten(1))
    found = vit.patch_embed(enlarged.flatten(1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    report = find_beginning(
        section(own), vit_config=OWN.model_copy(update={"in_chans": 1, "patch_size": (4, 6, 8)})
    ).fitted.report
    assert report.resized == ("patch_embed.weight",)
    assert report.unused == ("absent_embed",)


def test_a_provenance_owns_up_to_what_came_before(own: Path, tmp_path: Path) -> None:
    keep_beginning(tmp_path, find_beginning(section(own), vit_config=OWN))
    kept = kept_beginning(tmp_path)
    assert kept is not None
    now = {
        "name": "second", "subjects": ["a", "b"], "source_digests": ["1" * 64],
        "perceptual_hashes": ["3" * 64],
    }  # fmt: skip
    provenance = with_beginning(now, kept)
    assert "perceptual_hashes" not in provenance, "the first one's are unknown"
    assert provenance["subjects"] == ["a", "b", "c"]
    assert provenance["source_digests"] == ["1" * 64, "2" * 64]
    begun_from = provenance["initialised_from"]
    assert begun_from["licence"] == "CC0-1.0, cc-by-nc-4.0"
    assert begun_from["digest"] == load_backbone(own).digest
    assert begun_from["past"]["shards"]["digest"] == "a" * 64
    assert "subjects" not in begun_from["past"]
    published = tmp_path / "backbone"
    save_backbone(
        published,
        vit=build_vit(OWN),
        vit_config=OWN,
        preprocessing=Preprocessing(crop_shape=(8, 16, 18)),
        recipe={},
        provenance={**PROVENANCE, **provenance},
    )
    card = (published / "README.md").read_text()
    assert "| licence | CC0-1.0, cc-by-nc-4.0 |" in card
    assert json.dumps(load_backbone(published).provenance["initialised_from"])


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"weights": "w.pth"}, r"w.pth: files of this kind can run code"),
        ({"weights": "w.safetensors"}, "does not tell its architecture: add it"),
        ({"weights": "w.safetensors", "architecture": "a"}, "does not tell its licence: add it"),
        ({"weights": "timm:a", "licence": "mit"}, "licence is for a .safetensors file"),
        ({"weights": "timm:a", "min_coverage": 90}, "min_coverage: .* less than or equal to 1"),
    ],
)
def test_a_section_that_makes_no_sense(tree: dict[str, object], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        parse(tree, InitialConfig, where="recipe")


def damaged(folder: Path) -> InitialConfig:
    content = bytearray((folder / "backbone" / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "backbone" / "model.safetensors").write_bytes(content)
    return section(folder / "backbone")


def no_safetensors(folder: Path) -> InitialConfig:
    (folder / "w.safetensors").write_bytes(b"PK" * 40)
    return of_file(folder / "w.safetensors")


def shallow(folder: Path) -> InitialConfig:
    save_file(flat_model(depth=1).state_dict(), folder / "w.safetensors")
    return of_file(folder / "w.safetensors")


def named(name: str) -> Callable[[Path], InitialConfig]:
    return lambda _: section(f"timm:{name}")


@pytest.mark.parametrize(
    ("make", "kind", "line"),
    [
        (lambda folder: of_file(folder / "w.safetensors"), SourceError, "cannot be read as safe"),
        (no_safetensors, SourceError, "cannot be read as safetensors"),
        (
            lambda folder: of_file(folder / "backbone" / "model.safetensors"),
            SourceError,
            "no 'patch_embed.proj.weight'",
        ),
        (shallow, InitialError, r"gives 5\d\.\d% of the backbone.*blocks.1.*at least 90.0% is ask"),
        (lambda folder: section(folder / "nowhere"), SourceError, "no such folder; weights are"),
        (section, BackboneError, "has no SHA256SUMS"),
        (damaged, BackboneError, "its SHA-256 is not the one"),
        (lambda folder: section(folder / "backbone"), InitialError, "2 heads, the backbone's 3"),
        (named("vit_tny_patch16_224"), SourceError, "did you mean 'vit_t"),
        (named("resnet18"), SourceError, "resnet18 is not a plain ViT"),
        (named("vit_base_patch32_clip_quickgelu_224"), SourceError, "eps 1e-05 and QuickGELU"),
    ],
)
def test_what_cannot_be_begun_from(
    make: Callable[[Path], InitialConfig],
    kind: type[ValueError],
    line: str,
    own: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(own, tmp_path / "backbone")
    with pytest.raises(kind, match=line) as told:
        find_beginning(make(tmp_path), vit_config=TARGET)
    assert "\n" not in str(told.value)
