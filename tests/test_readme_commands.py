"""Every command and every snippet of the README's sections on use runs, as it stands there.

They run in a scratch folder that holds stand-ins under the names that the README uses.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from evaluation.scoring.config import EvaluationConfig
from foundation.artefact.index import INDEX
from foundation.finetuning.recipe import FinetuneConfig
from recipes.load import load, parse
from shards.phantom.cohort import write_cohort, write_subject
from shards.pseudonym import load_key
from tests.foundation.hub_server import HubServer
from tests.foundation.test_export import MAE, make_run

TITLES = ("Use a backbone", "Embed your scans", "Fine-tune", "Publish a backbone")
TEMPLATE = "recipes/finetune/template.yaml"
CLINIC: dict[str, Any] = {
    "name": "clinic",
    "tasks": ["mortality.yaml", "tumour.yaml"],
    "data_root": "data",
    "pseudonym_key": "key",
    "backbone": "demo",
    "crop_shape": [24, 20, 28],
    "decoder": {"kind": "light", "features": 2, "overlap": 0.0},
    "train": {"steps": 2, "global_batch": 2},
    "checkpoint": {"every_steps": 1},
    "log": {"every_steps": 1},
    "build_workers": 0,
}
"""What a reader fills in, and so small that it is done in seconds."""
COHORT = {
    "name": "clinic",
    "table": "phantom/cohort.csv",
    "subject": "{subject}",
    "scan": "{scan}",
    "mask": "{mask}",
    "modality": "{modality}",
    "split": {"column": "split"},
    "licence": "CC0-1.0",
    "source": "made by a test",
}
CARD = {
    "title": "A stand-in",
    "disease": "none",
    "cohort": "cohort.yaml",
    "where": {"body_part": ["chest"]},
    "protocol": {"split": "cohort"},
    "spacing_mm": [12.0, 15.0, 12.0],  # a chest is one window or two
    "floors": {"volume": None, "radiomics": None, "voxels": None},
}
CARDS = {
    "mortality": {"kind": "binary", "label": {"column": "sex", "positive": "F"}},
    "tumour": {"kind": "segmentation", "label": {"classes": {"tumour": 5}}},
}


class Told(NamedTuple):
    """What stands in the blocks of a section, in order."""

    lines: tuple[str, ...]
    python: tuple[str, ...]
    yaml: tuple[str, ...]


def told_in(readme: str, title: str) -> Told:
    """Of a section, until the next heading of any level."""
    (section,) = re.findall(
        rf"^##+ {title}\n(.*?)(?=^##+ )", readme, flags=re.DOTALL | re.MULTILINE
    )
    blocks: dict[str, list[str]] = {"bash": [], "python": [], "yaml": []}
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
        blocks[language].append(content)
    lines = [line for block in blocks["bash"] for line in block.splitlines() if line]
    return Told(tuple(lines), tuple(blocks["python"]), tuple(blocks["yaml"]))


def words_of(line: str) -> list[str]:
    """Module and words of a ``python -m`` line, without what launches it on several processes."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["python", "-m"], line
    return words[4:] if words[2] == "foundation.launch" else words[2:]


@pytest.fixture(scope="module")
def readme() -> str:
    return (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sections(readme: str) -> dict[str, Told]:
    return {title: told_in(readme, title) for title in TITLES}


def test_every_command_is_one_and_knows_its_words(
    sections: dict[str, Told],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fast, and told before a reader runs into it; the slow test runs them all."""
    lines = [line for told in sections.values() for line in told.lines]
    commands = [words_of(line) for line in lines if line.startswith("python ")]
    assert len(commands) == len(lines) - 1  # the one that copies the template
    assert len(commands) > 12
    for module, *words in commands:
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        # finetune is a recipe's command, whose text of help is its docstring.
        if module == "foundation.finetune":
            overrides = [word for word in words[1:] if "=" in word]
            assert len(overrides) == len(words) - 1
            load(project / TEMPLATE, FinetuneConfig, overrides)
            continue
        with pytest.raises(SystemExit) as left:
            importlib.import_module(module).main()
        assert left.value.code == 0
        helped = capsys.readouterr().out
        assert not [word for word in words if word.startswith("--") and word not in helped]
    (evaluation,) = sections["Fine-tune"].yaml
    told = yaml.safe_load(evaluation)
    tree = {"name": "x", "title": "x", "data_root": "x", "pseudonym_key": "x", "tasks": ["x.yaml"]}
    tree |= {"backbones": {"mae": "x"}}
    assert set(parse({**tree, **told}, EvaluationConfig, where="README").finetuned) == set(
        told["finetuned"]
    )


def test_every_key_of_a_finetuning_is_explained(project: Path) -> None:
    """In its template, set or in a comment."""
    text = (project / TEMPLATE).read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:# )?(\w+):", text, flags=re.MULTILINE))
    assert set(FinetuneConfig.model_fields) <= named
    for section in ("tune", "head", "decoder", "loss", "reading", "train"):
        fields = FinetuneConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        block = text[re.search(rf"^{section}:", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
        keys = re.findall(r"^  (\w+):", block.split("\n\n")[0], flags=re.MULTILINE)
        assert keys == list(fields)


def test_the_quick_ones_run_as_they_stand(
    sections: dict[str, Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding with the backbone of the package, in this process."""
    for name in ("scans", "masks"):
        (tmp_path / name).mkdir()
    write_subject(3, folder=tmp_path, seed=1)  # a chest as DICOM, a head as NIfTI
    monkeypatch.chdir(tmp_path)
    for line in sections["Embed your scans"].lines:
        module, *words = words_of(line)
        monkeypatch.setattr(sys, "argv", [module, *words])
        importlib.import_module(module).main()
    assert (tmp_path / "features.parquet").is_file()
    assert (tmp_path / "features.csv").read_text().count("\n") == 2
    assert len(list((tmp_path / "maps").rglob("*.tokens.nii"))) == 1
    shutil.copy(tmp_path / "scans/phantom-1-0003/head.nii.gz", tmp_path / "scan.nii.gz")
    (snippet,) = sections["Use a backbone"].python
    told: dict[str, Any] = {}
    exec(snippet, told)
    assert told["features"].mean.shape == (96,)


@pytest.fixture
def scratch(tmp_path: Path, project: Path) -> Path:
    """What a reader has: scans, labels, a run, and a server that stands for the hub."""
    write_cohort(tmp_path / "data/phantom", subjects=10, seed=1, workers=1, overwrite=False)
    load_key(tmp_path / "key")
    phantom = tmp_path / "data/phantom/scans"
    for number in (3, 4):
        name = f"phantom-1-{number:04d}"
        shutil.copytree(phantom / name / "chest", tmp_path / "scans" / name / "chest")
    shutil.copy(phantom / "phantom-1-0003/head.nii.gz", tmp_path / "scan.nii.gz")
    (tmp_path / TEMPLATE).parent.mkdir(parents=True)
    shutil.copy(project / TEMPLATE, tmp_path / TEMPLATE)
    write(tmp_path / "cohort.yaml", COHORT)
    for name, card in CARDS.items():
        write(tmp_path / f"{name}.yaml", {"name": name, **CARD, **card})
    make_run(tmp_path, name="demo_mae", steps=(500, 1000), mae=MAE)
    return tmp_path


def write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def fill_in(path: Path) -> None:
    """As a reader does with the template; what is not named here stays as it is there."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in CLINIC.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    write(path, tree)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_they_run_as_they_stand(
    sections: dict[str, Told], scratch: Path, project: Path, hub: HubServer
) -> None:
    """A command that a change of the README adds is run too; it must end well."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(project),
        "SCANFM_CACHE": str(scratch / "cache"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_a_stand_in",
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=scratch, env=environment, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    for title in TITLES:
        for line in sections[title].lines:
            words = shlex.split(line, comments=True)
            if words[0] == "python":
                run(sys.executable, *words[1:])
            else:
                assert words[:2] == ["cp", TEMPLATE]
                run(*words)
                fill_in(scratch / words[2])
        for snippet in sections[title].python:
            run(sys.executable, "-c", snippet)
    check_what_is_there(scratch, hub)


def check_what_is_there(scratch: Path, hub: HubServer) -> None:
    """Where the text says that it lies."""
    runs = scratch / "runs"
    for name in ("clinic", "clinic_2", "scratch", "few", "lora", "head", "last"):
        facts = json.loads((runs / name / "mortality/part.json").read_text())
        assert facts["tune"] == {"lora": "lora", "head": "head", "last": "last_blocks"}.get(
            name, "full"
        )
        assert (facts["begun"] == "scratch") == (name == "scratch")
        for file in ("log.jsonl", "predictions.csv", "model/head.json", "checkpoints"):
            assert (runs / name / "mortality" / file).exists()
    assert (runs / "few/mortality_50/model").is_dir()
    for file in ("README.md", "provenance.json"):
        published = (runs / "clinic/mortality/model" / file).read_text()
        assert str(INDEX.parent) not in published  # no folder of this machine
        assert str(scratch) not in published
    assert (scratch / "predictions.csv").read_text().count("\n") == 3
    assert len(list((scratch / "masks").rglob("*.mask.nii.gz"))) == 2
    assert len(list((scratch / "maps").rglob("*.tokens.nii"))) == 2
    assert set(hub.repositories) == {"org/mortality"}
