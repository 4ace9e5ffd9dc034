"""Backbones from elsewhere: slices through timm, encoders of MONAI, functions, tables."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from evaluation.backbones.embedder import EmbedderError
from evaluation.backbones.entries import load_embedders
from evaluation.backbones.entry import Entry
from evaluation.backbones.lines import BackboneLine
from evaluation.backbones.tables import TableEmbedder
from shards.scan import Scan

VIT = "test_vit"  # timm's own for tests: 160 pixels, patches of 16, width 64, depth 6
CROP = [32, 32, 64]


def load(line: Any, *, seeds: tuple[int, ...] = ()) -> dict[str, Entry]:
    lines = {"it": TypeAdapter(BackboneLine).validate_python(line)}
    return load_embedders(lines, random_seeds=seeds, device="cpu")


def embedder(line: Any) -> Any:
    return load(line)["it"].embedder


def scan(shape: tuple[int, int, int] = (9, 20, 30), *, seed: int = 1) -> Scan:
    voxels = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    return Scan(voxels, spacing_mm=(4.0, 1.5, 1.0), modality="CT", metadata={})


@pytest.fixture
def vit_file(tmp_path: Path) -> tuple[Any, Path]:
    """A network of timm, and the file of its weights with the head it had."""
    import timm

    torch.manual_seed(8)
    network = timm.create_model(VIT, num_classes=5).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    return network, tmp_path / "vit.safetensors"


@torch.inference_mode()
def test_slices_of_a_scan_through_timm(vit_file: tuple[Any, Path]) -> None:
    """Against timm by hand: every slice windowed, resized, padded and normalised."""
    network, path = vit_file
    entry = load({"timm": VIT, "weights": str(path), "slices": 3})["it"]
    assert (entry.kind, entry.seen) == ("backbone", None)
    assert entry.provenance["licence"] == "unknown"
    assert entry.embedder is not None
    found = entry.embedder.embed(scan())
    assert found["cls"].shape == found["mean"].shape == (4, 64)
    assert found["crop_cls"].shape == (3, 64)
    assert found["patch"].shape == (256, 64)
    # 30 x 30 mm fills the square; slices 1, 4 and 7 of 9 are the middles of three thirds.
    unit = (torch.from_numpy(scan().voxels[[1, 4, 7]]).float()[:, None] + 1000) / 2000
    pictures = torch.nn.functional.interpolate(unit, (160, 160), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    tokens = network.forward_features((pictures.expand(-1, 3, -1, -1) - mean) / std)
    cls, patches = tokens[:, 0], tokens[:, network.num_prefix_tokens :]
    np.testing.assert_allclose(found["crop_cls"], cls.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["cls"][0], cls.mean(dim=0).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["mean"][0], patches.mean(dim=(0, 1)).numpy(), atol=1e-5)
    assert entry.embedder.dense(scan()) is None


def test_slices_keep_their_shape_in_mm_and_padding_does_not_count(
    vit_file: tuple[Any, Path],
) -> None:
    sagittal = embedder(
        {"timm": VIT, "weights": str(vit_file[1]), "axis": "sagittal", "slices": 50}
    )
    found = sagittal.embed(scan((5, 20, 7)))  # 20 x 30 mm: 107 of 160 rows, patches 1 to 8 of 10
    assert found["crop_cls"].shape == (7, 64)
    assert sagittal._shape_in_input(scan((5, 20, 7))) == (107, 160)
    weight = sagittal._weight((107, 160), num_patches=100).view(10, 10)
    assert weight.sum(dim=1).tolist() == [0] + [10] * 8 + [0]


def test_another_network_of_timm_gives_its_deepest_map() -> None:
    entry = load({"timm": "test_resnet", "weights": None, "slices": 2, "seed": 3})["it"]
    assert (entry.kind, entry.description) == (
        "floor", "timm's test_resnet over 2 axial slices, never trained",
    )  # fmt: skip
    assert entry.embedder is not None
    found = entry.embedder.embed(scan())
    np.testing.assert_array_equal(found["cls"], found["mean"])
    assert found["cls"].shape[0] == 1
    again, other = (
        load({"timm": "test_resnet", "weights": None, "slices": 2, "seed": seed})["it"]
        for seed in (3, 4)
    )
    assert entry.digest == again.digest != other.digest


def test_weights_are_loaded_whole_or_not_at_all(vit_file: tuple[Any, Path]) -> None:
    network, path = vit_file
    tensors = dict(network.state_dict())

    def refused(change: Callable[[dict[str, Any]], None], match: str, name: str) -> None:
        changed = dict(tensors)
        change(changed)
        where = path.with_name(name)
        if name.endswith("pth"):
            torch.save({"epoch": 3, "state_dict": changed}, where)
        else:
            save_file(changed, where)
        with pytest.raises(EmbedderError, match=match) as caught:
            load({"timm": VIT, "weights": str(where)})
        assert str(caught.value).startswith("backbones.it: ")

    refused(lambda t: t.pop("blocks.2.mlp.fc1.bias"), r"lacks 'blocks\.2\.mlp\.fc1\.bias'", "a.pth")
    refused(lambda t: t.update(extra=torch.zeros(2)), "holds 'extra', which", "b.safetensors")
    refused(
        lambda t: t.update(cls_token=torch.zeros(1, 1, 9)),
        r"'cls_token' has shape \(1, 1, 9\), the network asks \(1, 1, 64\)",
        "c.safetensors",
    )
    whole = path.with_name("d.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, whole)
    digests = {load({"timm": VIT, "weights": str(each)})["it"].digest for each in (whole, path)}
    assert len(digests) == 1


class Bomb:
    """Runs code when something unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("raise SystemExit('exploded')",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(EmbedderError, match=r"bomb\.pth: cannot be read as tensors alone"):
        load({"timm": VIT, "weights": str(tmp_path / "bomb.pth")})


def test_names_that_nobody_has() -> None:
    with pytest.raises(EmbedderError, match="timm has no network 'test_vitt', did you mean"):
        load({"timm": "test_vitt", "weights": None})
    with pytest.raises(EmbedderError, match="no such file of weights"):
        load({"timm": VIT, "weights": "nowhere.safetensors"})
    with pytest.raises(EmbedderError, match="MONAI has no network 'resnet11', did you mean"):
        load({"monai": "resnet11", "weights": None, "preprocessing": {"crop_shape": CROP}})


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    make = timm.create_model

    def offline(name: str, *, pretrained: bool, **others: Any) -> Any:
        if pretrained:
            raise ConnectionError("no route to the hub\nmore")
        return make(name, pretrained=False, **others)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(EmbedderError, match=r"ConnectionError: no route to the hub\); where the"):
        load({"timm": VIT, "weights": "name"})


def test_untrained_twins_of_foreign_networks(vit_file: tuple[Any, Path]) -> None:
    entries = load({"timm": VIT, "weights": str(vit_file[1]), "slices": 2}, seeds=(0, 1))
    assert list(entries) == ["it", "random_it_0", "random_it_1"]
    assert [each.kind for each in entries.values()] == ["backbone", "floor", "floor"]
    assert len({each.architecture for each in entries.values()}) == 1
    assert len({each.digest for each in entries.values()}) == 3


SWIN = {
    "monai": "SwinUNETR",
    "args": {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": [1, 1, 1, 1]},
    "preprocessing": {"crop_shape": CROP, "spacing_mm": [2.0, 1.5, 1.5]},
}
RESNET = {
    "monai": "resnet10",
    "args": {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2, "widen_factor": 0.125},
    "preprocessing": {"crop_shape": CROP},
}


@torch.inference_mode()
def test_an_encoder_of_monai(tmp_path: Path) -> None:
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(4)
    network = SwinUNETR(**SWIN["args"]).eval()  # type: ignore[arg-type]
    save_file(network.state_dict(), tmp_path / "swin.safetensors")
    found = embedder({**SWIN, "weights": str(tmp_path / "swin.safetensors")})
    assert found.spacing_mm == (2.0, 1.5, 1.5)
    assert found.patch_size == (32, 32, 32)
    one = scan((32, 32, 64))
    window = ((torch.from_numpy(one.voxels).float() + 1000) / 2000)[None, None]
    deepest = network.swinViT(window, True)[-1]
    np.testing.assert_allclose(
        found.embed(one)["mean"][0], deepest.mean(dim=(2, 3, 4))[0].numpy(), atol=1e-5
    )
    dense = found.dense(one)
    np.testing.assert_allclose(dense.tokens[0, 0, 1], deepest[0, :, 0, 0, 1].numpy(), atol=1e-5)


@torch.inference_mode()
def test_a_part_of_a_network_of_monai_has_its_own_file(tmp_path: Path) -> None:
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(**SWIN["args"])  # type: ignore[arg-type]
    save_file(network.swinViT.state_dict(), tmp_path / "encoder.safetensors")
    line = {**SWIN, "weights": str(tmp_path / "encoder.safetensors")}
    with pytest.raises(EmbedderError, match="lacks 'decoder1"):
        load(line)
    load({**line, "into": "swinViT"})
    with pytest.raises(EmbedderError, match=r"no submodule 'swinvit' \(into\), did you mean 'swin"):
        load({**line, "into": "swinvit"})


def test_other_networks_of_monai() -> None:
    resnet = embedder({**RESNET, "weights": None})
    found = resnet.embed(scan())
    assert found["mean"].shape == (1, 64)
    assert resnet.dense(scan()).tokens.shape[3] == 64
    vit = embedder(
        {
            "monai": "ViT", "weights": None, "preprocessing": {"crop_shape": [8, 16, 24]},
            "args": {
                "in_channels": 1, "img_size": [8, 16, 24], "patch_size": [4, 8, 6],
                "hidden_size": 12, "mlp_dim": 24, "num_layers": 1, "num_heads": 2,
            },
        }
    )  # fmt: skip
    assert vit.patch_size == (4, 8, 6)
    assert vit.dense(scan()).tokens.shape == (3, 3, 5, 12)
    with pytest.raises(EmbedderError, match="its encoder is not known here; name the submodule"):
        load(
            {
                "monai": "BasicUNet", "weights": None, "args": {"spatial_dims": 3},
                "preprocessing": {"crop_shape": CROP},
            }
        )  # fmt: skip
    with pytest.raises(EmbedderError, match="does not take these args"):
        load({**RESNET, "weights": None, "args": {"depth": 3}})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        monkeypatch.delitem(sys.modules, "theirs", raising=False)
        (tmp_path / "theirs.py").write_text(textwrap.dedent(text))
        return "theirs"

    return write


def test_a_function_of_a_window(module: Callable[[str], str]) -> None:
    module(
        """
        def embed(window, *, scale):
            cells = window[0, 0].unfold(0, 4, 4).unfold(1, 5, 5).unfold(2, 6, 6)
            mean = cells.mean(dim=(3, 4, 5))[..., None] * scale
            return {"cls": window.mean()[None], "patch_tokens": mean}
        """
    )
    line = {
        "function": "theirs:embed", "args": {"scale": 2.0},
        "preprocessing": {"crop_shape": [4, 10, 12]}, "sees": [],
    }  # fmt: skip
    entry = load(line)["it"]
    assert entry.seen == {"subjects": [], "source_digests": [], "perceptual_hashes": []}
    assert entry.embedder is not None
    one = scan((4, 10, 12))
    found = entry.embedder.embed(one)
    unit = one.voxels / 1000.0
    assert found["cls"].item() == pytest.approx(unit.mean(), abs=1e-5)
    assert found["mean"].item() == pytest.approx(2 * unit.mean(), abs=1e-5)
    dense = entry.embedder.dense(one)
    assert dense is not None
    assert dense.tokens.shape == (1, 2, 2, 1)
    assert dense.tokens[0, 1, 0, 0] == pytest.approx(2 * unit[:, 5:, :6].mean(), abs=1e-5)


def test_a_class_is_made_once_and_its_weights_count(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    module(
        """
        import torch

        class Encoder(torch.nn.Module):
            def __init__(self, weights):
                super().__init__()
                self.scale = float(open(weights).read())

            def forward(self, window):
                assert not self.training
                return {"mean": window.mean(dim=(2, 3, 4))[0] * self.scale}
        """
    )
    (tmp_path / "w.txt").write_text("3")
    line = {
        "function": "theirs:Encoder", "weights": str(tmp_path / "w.txt"),
        "preprocessing": {"crop_shape": [9, 20, 30]},
    }  # fmt: skip
    first = load(line)["it"]
    assert first.seen is None
    assert first.embedder is not None
    found = first.embedder.embed(scan())
    assert found["mean"].item() == pytest.approx(3 * scan().voxels.mean() / 1000, abs=1e-5)
    np.testing.assert_array_equal(found["cls"], found["mean"])
    assert "patch" not in found
    assert first.embedder.dense(scan()) is None
    (tmp_path / "w.txt").write_text("4")
    assert load(line)["it"].digest != first.digest


def test_a_changed_source_is_another_backbone(module: Callable[[str], str]) -> None:
    line = {"function": "theirs:f", "preprocessing": {"crop_shape": [4, 10, 12]}}
    digests = set()
    for factor in (1, 1, 2):
        module(f"def f(window):\n    return {{'cls': window.mean(dim=(2, 3, 4))[0] * {factor}}}\n")
        digests.add(load(line)["it"].digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return window.mean()", "returns <class 'torch.Tensor'>, expected a mapping with some of"),
        ("return {'pooled': window}", r"returns \['pooled'\], expected a mapping"),
        ("return {'cls': window}", r"returns cls of shape \(1, 1, 4, 10, 12\), expected 1 or 2"),
        ("return {'cls': window[0, 0, 0, 0] / 0}", "not finite for an empty window"),
        ("raise KeyError('x')", r"cannot take a window of \(1, 1, 4, 10, 12\) \(KeyError"),
        ("return {'patch_tokens': window[0].movedim(0, 3)[:3]}", "do not tile a window of"),
    ],
)
def test_a_function_that_breaks_its_contract(
    module: Callable[[str], str], body: str, line: str
) -> None:
    module(f"def f(window):\n    {body}\n")
    with pytest.raises(EmbedderError, match=line):
        load({"function": "theirs:f", "preprocessing": {"crop_shape": [4, 10, 12]}})


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("if window.std() > 0: raise KeyError('x')", r"fails on a window of .*\(KeyError: 'x'\)"),
        ("size += int(window.std() > 0)", "1 layers of 4 features, and of another window 1 of 3"),
    ],
)
def test_a_function_that_fails_on_a_scan(
    module: Callable[[str], str], body: str, line: str
) -> None:
    module(
        f"""
        import torch

        def f(window):
            size = 3
            {body}
            return {{'cls': torch.ones(size)}}
        """
    )
    found = embedder({"function": "theirs:f", "preprocessing": {"crop_shape": [4, 10, 12]}})
    with pytest.raises(EmbedderError, match=line):
        found.embed(scan())


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{'cls': 1}[scan]", r"theirs:Own fails on a scan of \(9, 20, 30\) \(TypeError"),
        ("{'cls': row, 'mean': row}", "crop_cls is not so"),
        ("dict.fromkeys(('cls', 'mean', 'crop_cls', 'crop_mean'), row[0])", "cls is not so"),
    ],
)
def test_an_embedder_of_their_own_that_breaks_its_contract(
    module: Callable[[str], str], given: str, line: str
) -> None:
    module(
        f"""
        import numpy as np

        class Own:
            digest, spacing_mm, dense = "a" * 64, None, None

            def embed(self, scan):
                row = np.ones((1, 3))
                return {given}
        """
    )
    with pytest.raises(EmbedderError, match=line):
        embedder({"function": "theirs:Own"}).embed(scan())


def test_an_embedder_of_their_own(module: Callable[[str], str]) -> None:
    module(
        """
        import numpy as np

        class Own:
            digest, spacing_mm = "a" * 64, (2.0, 1.0, 1.0)

            def embed(self, scan):
                row = np.full((1, 3), scan.voxels.mean(), np.float32)
                return {"cls": row, "mean": row, "crop_cls": row, "crop_mean": row}

            def dense(self, scan):
                return None

        def nothing():
            return 3
        """
    )
    entry = load({"function": "theirs:Own"})["it"]
    assert entry.embedder is not None
    assert entry.embedder.spacing_mm == (2.0, 1.0, 1.0)
    assert entry.embedder.embed(scan())["cls"].shape == (1, 3)
    assert entry.digest != "a" * 64
    with pytest.raises(EmbedderError, match="it lacks digest, spacing_mm, embed, dense"):
        load({"function": "theirs:nothing"})
    with pytest.raises(EmbedderError, match="absent cannot be imported"):
        load({"function": "absent:f"})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_features(tmp_path: Path, suffix: str) -> None:
    table = pandas.DataFrame({"who": ["007", "007", "12"], "a": [1.0, 3.0, 5.0], "b": [0, 0, 1]})
    path = tmp_path / f"table.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    found = embedder({"features": str(path), "subject": "who"})
    assert isinstance(found, TableEmbedder)
    np.testing.assert_array_equal(found.embed_subject("007")["cls"], [[2.0, 0.0]])
    with pytest.raises(EmbedderError, match="has no row of a subject of the cohort"):
        found.embed_subject("7")
    with pytest.raises(EmbedderError, match="no column 'subject'; name it as subject"):
        load({"features": str(path)})
