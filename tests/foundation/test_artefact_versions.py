"""Older artefacts load, newer ones are refused with the way out, and the report tells the truth."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from foundation.artefact.index import INDEX, known_backbones
from foundation.artefact.layout import CONFIG, BackboneError
from foundation.artefact.saving import seal
from foundation.artefact.versions import SCHEMA_VERSION, UPGRADES, Texts, check_version, upgraded
from foundation.backbone import Backbone, load_backbone, random_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig

DEMO = INDEX.with_name("demo")


def renamed(texts: Texts) -> Texts:
    """From 1 to 2: a name changes."""
    vit = {("width" if name == "embed_dim" else name): v for name, v in texts.config["vit"].items()}
    return texts._replace(config={**texts.config, "vit": vit})


def widened(texts: Texts) -> Texts:
    """From 2 to 3: what was fixed becomes a setting."""
    return texts._replace(preprocessing={**texts.preprocessing, "window_mr": [0.5, 99.5]})


def texts(version: Any) -> Texts:
    return Texts({"schema_version": version, "vit": {"embed_dim": 96}}, {"crop_shape": [8, 16, 12]})


def test_an_older_artefact_takes_the_steps_it_lacks() -> None:
    steps = (renamed, widened)
    first = upgraded(texts(1), where="here", upgrades=steps)
    assert first.config["vit"] == {"width": 96}
    assert first.preprocessing["window_mr"] == [0.5, 99.5]
    second = upgraded(texts(2), where="here", upgrades=steps)
    assert second.config["vit"] == {"embed_dim": 96}
    assert second.preprocessing["window_mr"] == [0.5, 99.5]
    assert upgraded(texts(3), where="here", upgrades=steps) == texts(3)
    with pytest.raises(BackboneError, match="here: schema version 4, this code reads 1 to 3"):
        upgraded(texts(4), where="here", upgrades=steps)


@pytest.mark.parametrize("version", [0, -1, None, "1", True, 1.0, [1]])
def test_what_is_no_version(version: Any) -> None:
    with pytest.raises(BackboneError, match=r"here: schema version .*, this code reads 1"):
        check_version(version, where="here", newest=1)


def test_a_newer_artefact_with_files_of_its_own_is_told_as_newer(tmp_path: Path) -> None:
    folder = tmp_path / "newer"
    shutil.copytree(DEMO, folder)
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, "schema_version": SCHEMA_VERSION + 1}))
    seal(folder)
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  head.safetensors\n")
    with pytest.raises(BackboneError, match="written by a newer scanfm, install that: pip install"):
        load_backbone(folder)


def test_the_artefact_that_comes_along_loads_for_ever() -> None:
    """Written with schema version 1 by a run on phantoms; whatever comes later must read it."""
    said: list[str] = []
    backbone = load_backbone("demo", say=said.append)
    assert len(UPGRADES) + 1 == SCHEMA_VERSION
    assert backbone.digest == known_backbones()["demo"].entry.digest
    loaded = backbone.loaded
    assert loaded is not None
    assert (loaded.version, loaded.num_tensors) == (1, 54)
    assert loaded.num_parameters == sum(t.numel() for t in backbone.vit.state_dict().values())
    assert loaded.golden_error < 1e-5
    assert said == [backbone.report()]
    for line in ["demo (demo of the index", "5 x 5 x 5 mm", "CT -1000 to 1000 HU", "54 tensors"]:
        assert line in said[0]
    assert "no person was scanned" in (DEMO / "README.md").read_text()
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 3_000_000


def test_a_backbone_that_was_not_loaded_says_so() -> None:
    config = VitConfig(size="toy", patch_size=(4, 8, 6), depth=1)
    backbone = random_backbone(config, preprocessing=Preprocessing(crop_shape=(8, 16, 12)), seed=1)
    assert backbone.loaded is None
    assert backbone.report() == f"backbone  not loaded from anywhere, digest {backbone.digest[:16]}"
    assert isinstance(backbone, Backbone)


def test_whoever_may_read_the_folder_may_read_its_tensors(tmp_path: Path) -> None:
    from foundation.artefact.saving import save_backbone
    from foundation.vit import build_vit

    config = VitConfig(size="toy", patch_size=(4, 8, 6), depth=1)
    before = os.umask(0o022)
    try:
        save_backbone(
            tmp_path / "b",
            vit=build_vit(config),
            vit_config=config,
            preprocessing=Preprocessing(crop_shape=(8, 16, 12)),
            recipe={},
            provenance={},
        )
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "b").iterdir()}
    assert modes == {0o644}
