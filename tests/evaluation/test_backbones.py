"""Backbones of our own: the lines of a recipe, artefacts, checkpoints of runs, untrained ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from evaluation.backbones.embedder import LAYERS, EmbedderError
from evaluation.backbones.entries import load_embedders
from evaluation.backbones.entry import Entry
from evaluation.backbones.lines import ArtefactLine, BackboneLine, RunLine, run_of, source_of
from foundation.backbone import Backbone, load_backbone, save_backbone
from foundation.checkpoint import Keep, Snapshot, write_checkpoint
from foundation.methods import build_method
from foundation.preprocessing import Preprocessing
from foundation.recipe import PretrainConfig
from foundation.running.runs import CHECKPOINTS, RUN
from foundation.vit import VitConfig, build_vit
from recipes.load import RecipeError, Section, load
from shards.index import read_dataset
from shards.scan import Scan
from shards.sealed import write_sealed
from tests.written_shards import plain, pseudonym, write_shards


class Recipe(Section):
    backbones: dict[str, BackboneLine]


def entries(
    lines: dict[str, Any], folder: Path, *, seeds: tuple[int, ...] = ()
) -> dict[str, Entry]:
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump({"backbones": lines}))
    return load_embedders(load(path, Recipe).backbones, random_seeds=seeds, device="cpu")


def scan() -> Scan:
    voxels = np.random.default_rng(1).integers(-900, 900, (11, 21, 29)).astype(np.int16)
    return Scan(voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT", metadata={})


def artefact(folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    torch.manual_seed(seed)
    config = VitConfig(size="toy", patch_size=(4, 8, 6), **{"depth": 5, **changes})
    save_backbone(
        folder,
        vit=build_vit(config),
        vit_config=config,
        preprocessing=Preprocessing(crop_shape=(8, 16, 12)),
        recipe={},
        provenance={"subjects": ["a"], "source_digests": ["b"], "method": "mae"},
    )
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"timn": "x"}, "a backbone is a path, or has exactly one of artefact, run, random"),
        ({"run": "a", "artefact": "b"}, "a backbone is a path, or has exactly one of"),
        ({"run": "a", "stap": 3}, r"backbones\.it: unknown key 'stap', did you mean 'step'"),
        ({"run": "a", "step": -3}, r"backbones\.it\.step: input should be greater than or equal"),
        ({"timm": "x"}, r"backbones\.it\.weights is missing"),
        (
            {"timm": "x", "weights": None, "axis": "axal"},
            r"backbones\.it\.axis: input should be 'a",
        ),
        ({"function": "x.y", "args": {}}, r"backbones\.it\.function: string should match"),
        ({"random": {"lik": "x"}}, r"unknown key 'backbones\.it\.random\.lik'"),
        (
            {"monai": "ViT", "weights": None, "preprocessing": {"crop_shape": [0, 1, 1]}},
            r"backbones\.it\.preprocessing: crop_shape must be positive",
        ),
    ],
)
def test_a_wrong_line_is_told_in_the_recipes_words(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        entries({"it": line}, tmp_path)
    assert "\n" not in str(caught.value)
    assert "Line" not in str(caught.value)


def test_a_path_alone_is_an_artefact(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text("backbones: {a: here/backbone, b: {run: runs/x, step: 1e3}}")
    lines = load(path, Recipe).backbones
    assert lines["a"] == ArtefactLine(artefact=Path("here/backbone"))
    assert lines["b"] == RunLine(run=Path("runs/x"), step=1000)
    assert [run_of(each) for each in lines.values()] == [None, Path("runs/x")]
    (tmp_path / "mae" / "backbone").mkdir(parents=True)
    here = ArtefactLine(artefact=str(tmp_path / "mae" / "backbone"))
    assert run_of(here) == tmp_path / "mae"
    assert [source_of(each) for each in lines.values()] == [
        "here/backbone", "run runs/x, step 1000",
    ]  # fmt: skip
    again = Recipe.model_validate(load(path, Recipe).model_dump(mode="json"))
    assert again.backbones == lines


def test_an_artefact_gives_its_last_blocks(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "backbone")
    entry = entries({"mae": str(folder)}, tmp_path)["mae"]
    assert (entry.kind, entry.title) == ("backbone", "mae")
    assert entry.description == "pretrained on 1 subjects, frozen"
    assert entry.seen == {"subjects": ["a"], "source_digests": ["b"]}
    assert entry.provenance == {"method": "mae"}
    backbone = load_backbone(folder)
    assert entry.digest == backbone.digest
    assert entry.embedder is not None
    found = entry.embedder.embed(scan())
    assert found["cls"].shape == found["mean"].shape == (LAYERS, 96)
    assert found["crop_cls"].shape == found["crop_mean"].shape == (2 * 2 * 3, 96)
    assert found["patch"].shape == (96, 96)
    assert {each.dtype for each in found.values()} == {np.dtype(np.float32)}
    for name, feature in backbone.embed_scan(scan()).items():
        np.testing.assert_array_equal(found[name][0], feature)
    # The layer before the last is that of a network without its last block.
    backbone.vit.blocks = nn.ModuleList(list(backbone.vit.blocks)[:-1])
    for name, feature in backbone.embed_scan(scan()).items():
        np.testing.assert_array_equal(found[name][1], feature)
    dense = entry.embedder.dense(scan())
    assert dense is not None
    assert dense.tokens.shape == (3, 3, 5, 96)
    assert dense.patch_voxels == (4, 8, 6)
    assert dense.offset_voxels == (0, -1, 0)
    assert dense.shape == (11, 21, 29)


def test_what_cannot_be_scored_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"^backbones\.mae: .*nowhere: is no folder"):
        entries({"mae": str(tmp_path / "nowhere")}, tmp_path)
    folder = artefact(tmp_path / "two", in_chans=2)
    with pytest.raises(EmbedderError, match=r"takes 2 sequences at once \(in_chans\)"):
        entries({"two": str(folder)}, tmp_path)


def test_untrained_networks_of_each_architecture(tmp_path: Path) -> None:
    same = [str(artefact(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))]
    other = str(artefact(tmp_path / "c", depth=2))
    lines = {"a": same[0], "b": same[1], "c": other}
    found = entries(lines, tmp_path, seeds=(0, 7))
    assert list(found) == [
        "a", "b", "c", "random_a_0", "random_a_7", "random_c_0", "random_c_7",
    ]  # fmt: skip
    random = found["random_a_7"]
    assert random.kind == "floor"
    assert random.title == "random initialisation of a and b, seed 7"
    assert random.architecture == found["a"].architecture == found["b"].architecture
    assert random.seen == {"subjects": [], "source_digests": [], "perceptual_hashes": []}
    likes = entries(
        {"x": {"random": {"like": "a", "seed": 7}}, "y": {"random": {"like": other}}, **lines},
        tmp_path,
    )
    assert likes["x"].digest == random.digest
    assert likes["y"].digest == found["random_c_0"].digest
    with pytest.raises(EmbedderError, match="'z' is neither another line \\(a, b, c\\) nor"):
        entries({"x": {"random": {"like": "z"}}, **lines}, tmp_path)
    with pytest.raises(EmbedderError, match=r"random_a_0: this name is that of an untrained"):
        entries({"a": same[0], "random_a_0": other}, tmp_path, seeds=(0,))


class Run:
    """A run's folder as a pretraining leaves it, with untrained weights."""

    def __init__(self, root: Path, section: dict[str, Any]) -> None:
        self.folder = root / "runs" / "small"
        self.shards = write_shards(root / "shards", plain(3))
        tree = {
            "name": "small",
            "shards": str(self.shards),
            "vit": {"size": "toy", "patch_size": [4, 8, 6], "depth": 2},
            "preprocessing": {"crop_shape": [8, 16, 12]},
            "train": {"steps": 9, "global_batch": 4},
            "optimiser": {"lr": 1e-3, "warmup_steps": 0},
            **section,
        }
        self.config = PretrainConfig.model_validate(tree)
        self.folder.mkdir(parents=True)
        write_sealed(
            self.folder / RUN,
            {
                "recipe": self.config.model_dump(mode="json"),
                "shards_digest": read_dataset(self.shards)["digest"],
            },
        )

    def save(self, step: int, *, healthy: bool = True) -> Any:
        """A checkpoint with weights of its own; the method it is of."""
        torch.manual_seed(step)
        method: Any = build_method(
            self.config,
            vit=build_vit(self.config.vit),
            preprocessing=self.config.preprocessing,
            total_steps=9,
            seed=0,
        )
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        weights = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        moments = {"x/exp_avg": torch.zeros(2)}
        snapshot = Snapshot(step, weights, moments, {"healthy": healthy}, "name: small\n")
        write_checkpoint(self.folder / CHECKPOINTS, snapshot, keep=Keep(last=9))
        return method


MAE = {"mae": {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2}}
DINO = {
    "dino": {
        "head": {"num_prototypes": 16, "hidden_dim": 24, "bottleneck_dim": 8},
        "local_crops": {"num_crops": 1, "shape": [4, 8, 12]},
    }
}


def embedded(entry: Entry) -> np.ndarray:
    assert entry.embedder is not None
    return entry.embedder.embed(scan())["cls"][0]


def expected(vit: Any) -> np.ndarray:
    contract = Preprocessing(crop_shape=(8, 16, 12))
    backbone = Backbone(vit, preprocessing=contract, digest="", provenance={})
    return backbone.embed_scan(scan())["cls"]


def test_the_newest_healthy_checkpoint_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path, MAE)
    run.save(2)
    wanted = run.save(4)
    run.save(6, healthy=False)
    run.save(8)
    damaged = run.folder / CHECKPOINTS / "step-000008" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    before = sorted(run.folder.rglob("*"))
    entry = entries({"mae": {"run": str(run.folder)}}, tmp_path)["mae"]
    assert sorted(run.folder.rglob("*")) == before, "a run is read and left as it is"
    np.testing.assert_array_equal(embedded(entry), expected(wanted.backbone))
    assert entry.provenance["steps"] == 4
    assert entry.provenance["scans_seen"] == 16
    assert entry.provenance["shards"]["name"] == "toy"
    assert entry.seen is not None
    assert entry.seen["subjects"] == sorted(pseudonym(f"subject-{n}") for n in range(3))
    assert len(entry.seen["source_digests"]) == 3
    unhealthy = entries({"mae": {"run": str(run.folder), "step": 6}}, tmp_path)["mae"]
    assert unhealthy.digest != entry.digest
    assert unhealthy.architecture == entry.architecture
    with pytest.raises(EmbedderError, match="not the bytes that were written"):
        entries({"mae": {"run": str(run.folder), "step": 8}}, tmp_path)
    with pytest.raises(EmbedderError, match="no checkpoint of step 5; it has 2, 4, 6, 8"):
        entries({"mae": {"run": str(run.folder), "step": 5}}, tmp_path)
    with pytest.raises(EmbedderError, match="mae has no student and teacher"):
        entries({"mae": {"run": str(run.folder), "weights": "teacher"}}, tmp_path)


def test_student_and_teacher_of_dino(tmp_path: Path) -> None:
    run = Run(tmp_path, DINO)
    method = run.save(3)
    line = {"run": str(run.folder)}
    found = entries(
        {
            "given": line,
            "teacher": {**line, "weights": "teacher"},
            "student": {**line, "weights": "student"},
        },
        tmp_path,
    )
    teacher, student = expected(method.teacher.backbone), expected(method.student.backbone)
    assert not np.allclose(teacher, student)
    np.testing.assert_array_equal(embedded(found["given"]), teacher)
    np.testing.assert_array_equal(embedded(found["teacher"]), teacher)
    np.testing.assert_array_equal(embedded(found["student"]), student)


def test_shards_that_a_foreign_backbone_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "abroad.py").write_text("def f(window):\n    return {'cls': window.mean()[None]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shards = write_shards(tmp_path / "shards", plain(3))
    line = {"function": "abroad:f", "preprocessing": {"crop_shape": [4, 6, 8]}}
    found = entries({"a": line, "b": {**line, "sees": [str(shards)]}}, tmp_path)
    assert found["a"].seen is None
    assert found["b"].seen is not None
    assert found["b"].seen["subjects"] == sorted(pseudonym(f"subject-{n}") for n in range(3))
    with pytest.raises(EmbedderError, match=r"^backbones\.b: .*nowhere"):
        entries({"b": {**line, "sees": [str(tmp_path / "nowhere")]}}, tmp_path)
    with pytest.raises(EmbedderError, match="a name is of lower-case letters, digits and _"):
        entries({"../b": line}, tmp_path)


def test_a_run_whose_shards_have_changed_cannot_say_what_it_has_seen(tmp_path: Path) -> None:
    run = Run(tmp_path, MAE)
    with pytest.raises(EmbedderError, match="no whole and healthy checkpoint yet"):
        entries({"mae": {"run": str(run.folder)}}, tmp_path)
    run.save(1)
    facts = json.loads((run.folder / RUN).read_text())
    write_sealed(run.folder / RUN, {**facts, "shards_digest": "0" * 64})
    with pytest.raises(EmbedderError, match="are not those the run was begun with"):
        entries({"mae": {"run": str(run.folder)}}, tmp_path)
    with pytest.raises(EmbedderError, match=r"no run here \(run\.json is missing\)"):
        entries({"mae": {"run": str(tmp_path)}}, tmp_path)
