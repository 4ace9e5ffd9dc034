"""An export computes what the backbone computes, for any batch, and holds neither pickle nor path.

The networks have one block: what an export could get wrong is in the first. All kinds of positions
in both formats are a slow test.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation import convert as command
from foundation.backbone import Backbone, load_backbone, random_backbone, save_backbone
from foundation.convert import convert
from foundation.converting import graph, program
from foundation.converting.checking import check_network
from foundation.converting.network import (
    OUTPUTS,
    ConvertError,
    example_inputs,
    frozen_network,
    licences_of,
)
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

PREPROCESSING = Preprocessing(crop_shape=(8, 24, 18), spacing_mm=(3.0, 1.5, 2.0))

KINDS: dict[str, dict[str, Any]] = {
    "sincos": {"num_registers": 0},
    "learned": {"position": "learned", "position_grid": (2, 2, 4), "layer_scale": 0.1},
    "rope": {"position": "rope", "embed_dim": 80, "num_heads": 2, "in_chans": 2},
    "rope_mm": {
        "position": "rope_mm",
        "embed_dim": 64,
        "num_heads": 4,
        "in_chans": 3,
        "num_registers": 2,
        "mlp": "swiglu",
    },
}


def config_of(kind: str) -> VitConfig:
    return VitConfig(size="toy", patch_size=(4, 8, 6), depth=1, **KINDS[kind])


def save(folder: Path, kind: str) -> Path:
    config = config_of(kind)
    torch.manual_seed(5)
    save_backbone(
        folder,
        vit=build_vit(config),
        vit_config=config,
        preprocessing=PREPROCESSING,
        recipe={"name": "small"},
        provenance={"name": "small"},
    )
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of the network that uses every input."""
    folder = tmp_path_factory.mktemp("torch")
    convert(save(folder / "backbone", "rope_mm"), to="torch", out=folder / "small.pt2")
    return folder


def run_here(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Outputs for ``inputs.safetensors``, and the facts, in this process."""
    extra = {program.FACTS: ""}
    module = torch.export.load(folder / "small.pt2", extra_files=extra).module()
    with torch.inference_mode():
        return module(**load_file(folder / "inputs.safetensors")), extra[program.FACTS]


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"foundation", "shards", "recipes", "timm", "einops"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from safetensors.torch import load_file, save_file
extra = {"scanfm.json": ""}
module = torch.export.load("small.pt2", extra_files=extra).module()
with torch.inference_mode():
    save_file(module(**load_file("inputs.safetensors")), "found.safetensors")
print(extra["scanfm.json"])
"""


def run_alone(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The same in a process that cannot import this package, timm or einops."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "found.safetensors"), done.stdout


@pytest.mark.parametrize("run", [run_here, pytest.param(run_alone, marks=pytest.mark.slow)])
def test_a_program_computes_what_the_backbone_does(exported: Path, run: Any) -> None:
    backbone = load_backbone(exported / "backbone")
    inputs = example_inputs(backbone, batch=5, seed=9)
    assert list(inputs) == ["volume", "spacing_mm", "present"]
    save_file(inputs, exported / "inputs.safetensors")
    found, facts = run(exported)
    with torch.inference_mode():
        output = backbone.vit(**inputs)
    torch.testing.assert_close(found["cls"], output.cls_token, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["patch_tokens"], output.patch_tokens, rtol=0, atol=1e-5)
    mean = output.patch_tokens.mean(dim=1)
    torch.testing.assert_close(found["mean"], mean, rtol=0, atol=1e-5)
    assert json.loads(facts)["digest"] == backbone.digest
    assert json.loads(facts)["preprocessing"]["crop_shape"] == [8, 24, 18]
    # Spacing and presence are inputs, not constants of the trace.
    for name, other in (("spacing_mm", inputs["spacing_mm"] * 3), ("present", ~inputs["present"])):
        with torch.inference_mode():
            changed = backbone.vit(**{**inputs, name: other}).cls_token
        assert not torch.allclose(found["cls"], changed, atol=1e-4)


def test_a_program_holds_no_pickle_and_no_path(exported: Path, tmp_path: Path) -> None:
    program.check_no_pickle(exported / "small.pt2")
    with zipfile.ZipFile(exported / "small.pt2") as archive:
        content = b"".join(archive.read(member) for member in archive.namelist())
    for trace in (b"site-packages", b"foundation/", b".py", str(Path.cwd()).encode()):
        assert trace not in content
    loaded = torch.export.load(exported / "small.pt2")
    inputs = example_inputs(load_backbone(exported / "backbone"), batch=2, seed=0)
    loaded.example_inputs = ((), inputs)
    torch.export.save(loaded, tmp_path / "pickled.pt2")
    with pytest.raises(ConvertError, match=r"pickled.pt2: .*sample_inputs/model.pt is a pickle"):
        program.check_no_pickle(tmp_path / "pickled.pt2")


def test_a_graph_has_named_inputs_and_outputs_and_any_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "new" / "small.onnx"
    checked = convert(save(tmp_path / "backbone", "learned"), to="onnx", out=out)
    assert set(checked.differences) == set(OUTPUTS)
    assert "largest difference from the backbone: cls " in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("volume", ["batch", 1, 8, 24, 18])
    ]
    assert {each.name: each.shape for each in session.get_outputs()} == {
        "cls": ["batch", 96],
        "mean": ["batch", 96],
        "patch_tokens": ["batch", 18, 96],
    }
    backbone = load_backbone(tmp_path / "backbone")
    inputs = example_inputs(backbone, batch=4, seed=3)
    found = session.run(["patch_tokens"], {"volume": inputs["volume"].numpy()})[0]
    with torch.inference_mode():
        expected = backbone.vit(inputs["volume"]).patch_tokens.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["scanfm"])
    assert facts["digest"] == backbone.digest
    content = out.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert [path.name for path in out.parent.iterdir()] == ["small.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_positions_in_both_formats(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    backbone = random_backbone(config_of(kind), preprocessing=PREPROCESSING, seed=2)
    for write, name in ((program.write_program, "a.pt2"), (graph.write_graph, "a.onnx")):
        checked = write(backbone, tmp_path / name)
        assert max(checked.differences.values()) <= checked.tolerance


def small(kind: str = "sincos", *, crop_shape: tuple[int, int, int] = (8, 24, 18)) -> Backbone:
    preprocessing = PREPROCESSING.model_copy(update={"crop_shape": crop_shape})
    return random_backbone(config_of(kind), preprocessing=preprocessing, seed=1)


def test_a_difference_is_measured_and_refused() -> None:
    """The check sees a wrong value, a wrong shape and a NaN in any output and batch."""
    backbone = small()
    network = frozen_network(backbone)

    def off_by(change: Any, *, batch: int) -> Any:
        def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            found = network(**inputs)
            if len(inputs["volume"]) == batch:
                found["mean"] = change(found["mean"])
            return found

        return run

    right = check_network(network_run(backbone), backbone, tolerance=0, what="x.pt2")
    assert right.differences == dict.fromkeys(OUTPUTS, 0.0)
    near = check_network(off_by(lambda t: t + 1e-3, batch=3), backbone, tolerance=1e-2, what="x")
    assert near.differences["mean"] == pytest.approx(1e-3, rel=0.1)
    assert "mean 1.0e-03" in str(near)
    with pytest.raises(ConvertError, match=r"x.pt2: its mean comes out 0.02 from the backbone's"):
        check_network(off_by(lambda t: t + 0.02, batch=1), backbone, tolerance=1e-2, what="x.pt2")
    with pytest.raises(ConvertError, match="its mean comes out nan"):
        check_network(off_by(lambda t: t * torch.nan, batch=1), backbone, tolerance=1, what="x")
    with pytest.raises(ConvertError, match=r"its mean has shape \(3, 95\), the backbone's"):
        check_network(off_by(lambda t: t[:, 1:], batch=3), backbone, tolerance=1, what="x")


def network_run(backbone: Backbone) -> Any:
    network = frozen_network(backbone)
    return lambda inputs: network(**inputs)


def test_what_fails_the_check_leaves_nothing_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(backbone: Backbone, path: Path) -> Any:
        path.write_bytes(b"half an export")
        shifted = network_run(small("learned"))
        return check_network(shifted, backbone, tolerance=1e-5, what=path.name)

    monkeypatch.setattr(program, "write_program", wrong)
    where = save(tmp_path / "backbone", "sincos")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "small.pt2"
    out.write_bytes(b"the export of before")
    with pytest.raises(ConvertError, match=r"small.pt2: its cls comes out .* nothing was written"):
        convert(where, to="torch", out=out)
    assert out.read_bytes() == b"the export of before"
    assert [path.name for path in out.parent.iterdir()] == ["small.pt2"]


def test_what_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    for out, to, line in (
        ("a.onnx", "torch", r"a.onnx: a file of --to torch ends in .pt2"),
        ("a.pt2", "torch", r"a.pt2: is a folder"),
        ("thesis", "monai", r"thesis: is there and is no bundle"),
        ("new", "monai", r"give --modality, one of CT, MR, PT, OT"),
    ):
        with pytest.raises(ConvertError, match=line):
            convert(tmp_path / "nowhere", to=to, out=tmp_path / out)
    assert (tmp_path / "thesis" / "chapter").exists()
    with pytest.raises(ConvertError, match=r"crop_shape \(8, 24, 20\) is no whole number of"):
        frozen_network(small(crop_shape=(8, 24, 20)))


@pytest.mark.parametrize(
    ("to", "out", "library", "line"),
    [
        ("onnx", "a.onnx", "onnxscript", r"\(onnxscript\): pip install 'scanfm\[export\]'"),
        ("monai", "a", "monai", "which is not installed: pip install monai"),
    ],
)
def test_a_library_that_is_not_there_is_told_at_once(
    to: str, out: str, library: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConvertError, match=line):
        convert(tmp_path / "nowhere", to=to, out=tmp_path / out, modality="CT")


def test_the_command_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(tmp_path / "nowhere"), "--to", "torch", "--out", "small.pt2"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_the_licences_of_scans_and_first_weights_travel() -> None:
    provenance = {
        "shards": {"sources": [{"licence": "CC-BY-4.0"}, {"licence": "CC-BY-4.0"}]},
        "initialised_from": {"licence": "Apache-2.0"},
    }
    assert licences_of(provenance) == ["Apache-2.0", "CC-BY-4.0"]
    assert licences_of({}) == []
